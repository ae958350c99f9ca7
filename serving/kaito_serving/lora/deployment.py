"""The adapters of a deployment: those of a folder, and the mix that requests get that name none."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kaito_serving.errors import AdapterError
from kaito_serving.lora.read import Adapter, find, read
from kaito_serving.options import strength

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Adapters, and a strength for each."""

    adapters: Sequence[Adapter]
    mix: Mapping[str, float]


def deployment(directory: Path, *, strengths: Mapping[str, float], environment: Mapping[str, str]) -> Deployment:
    """Read the adapters of a folder; AdapterError or OptionError with a sentence.

    The mix is made of `strengths`, else of environment variables named like the adapters, else of 1.0.
    """
    found = [read(folder) for folder in find(directory)]
    unknown = sorted(set(strengths) - {adapter.name for adapter in found})
    if unknown:
        raise AdapterError(f"--adapter_strengths names {unknown[0]}, but there is no such adapter.")
    mix = {}
    for adapter in found:
        given = strengths.get(adapter.name)
        if given is None and adapter.name in environment:
            given = strength(environment[adapter.name], adapter.name)
        mix[adapter.name] = 1.0 if given is None else given
    return Deployment(found, mix)


def log_adapters(names: Sequence[str], directory: Path) -> None:
    """Say which adapters act, in the words of KAITO's inference server."""
    if names:
        _LOG.info("Adapter added: %s", ", ".join(sorted(names)))
    elif directory.is_dir():
        _LOG.warning("No adapter found in %s; the base model answers alone.", directory)
