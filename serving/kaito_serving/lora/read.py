"""Reading an adapter's folder as PEFT saves it, and refusing what could not be served exactly.

`expressible.json` is the one list of what can be.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kaito_serving.errors import AdapterError, WeightsError
from kaito_serving.model.folder import refuse_pickles_alone, tensor_bytes

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError),
    re.error,
)
_EXPRESSIBLE: Mapping[str, Any] = json.loads((Path(__file__).parent / "expressible.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter on the CPU: per module name the pair A [r, in] and B [out, r], B already times c.

    `rank` is the largest r.
    """

    name: str
    rank: int
    layers: Mapping[str, tuple[Tensor, Tensor]]


def find(directory: Path) -> list[Path]:
    """The adapter folders below `directory`, by name: those that hold an adapter_config.json."""
    if not directory.is_dir():
        return []
    return sorted(folder for folder in directory.iterdir() if (folder / "adapter_config.json").is_file())


def read(folder: Path, name: str | None = None) -> Adapter:
    """Read one adapter, named like its folder unless a name is given; AdapterError when it cannot be served exactly."""
    name = name or folder.name
    refuse_pickles_alone(folder, AdapterError)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        ranks = _Pattern(float(config["r"]), config.get("rank_pattern"))
        alphas = _Pattern(float(config["lora_alpha"]), config.get("alpha_pattern"))
    except _UNREADABLE as error:
        raise AdapterError(f"The adapter {name} has no readable adapter_config.json with r and lora_alpha.") from error
    for key, value in config.items():
        if not _is_expressible(key, value):
            raise AdapterError(f"The adapter {name} uses {key}={json.dumps(value)}, which cannot be served exactly.")
    file = folder / WEIGHTS
    try:
        tensor_bytes(file)
        tensors = load_file(file)
    except (WeightsError, SafetensorError) as error:
        raise AdapterError(f"The adapter {name} cannot be read: {error}") from error
    layers = {}
    for module, (down, up) in _pairs(name, tensors).items():
        rank = ranks.of(module)
        if rank < 1 or down.shape[0] != rank or up.shape[1] != rank:
            raise AdapterError(
                f"The adapter {name} says rank {rank:g} for {module}, but its matrices are "
                f"{' x '.join(map(str, down.shape))} and {' x '.join(map(str, up.shape))}."
            )
        factor = alphas.of(module) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        scaled = factor * up.float()
        if not torch.isfinite(scaled).all():
            alpha = alphas.of(module)
            raise AdapterError(f"The adapter {name} is not finite in {module} with lora_alpha {alpha:g}.")
        layers[module] = (down, scaled)
    return Adapter(name=name, rank=max(down.shape[0] for down, _ in layers.values()), layers=layers)


class _Pattern:
    """A number per module: PEFT's rank_pattern or alpha_pattern, whose keys are ends of module names or expressions."""

    def __init__(self, default: float, patterns: Mapping[str, float] | None) -> None:
        self._default = default
        self._patterns = [(re.compile(rf"(.*\.)?({key})$"), float(value)) for key, value in (patterns or {}).items()]

    def of(self, module: str) -> float:
        return next((value for pattern, value in self._patterns if pattern.match(module)), self._default)


def _is_expressible(key: str, value: Any) -> bool:
    if key in _EXPRESSIBLE["free"] or key in _EXPRESSIBLE["served"]:
        return True
    return not value or value in _EXPRESSIBLE["only"].get(key, ())


def _pairs(name: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        outside = [part for part in key.split(".") if part in _EXPRESSIBLE["never"]]
        if outside:
            raise AdapterError(f"The adapter {name} changes {outside[0]}, which is served as it is in the base model.")
        module, _, kind = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not key.startswith(PREFIX) or not key.endswith(".weight") or kind not in ("A", "B") or tensor.ndim != 2:
            raise AdapterError(f"The adapter {name} holds {key}, which is no LoRA matrix of a linear layer.")
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"The adapter {name} holds numbers that are not finite in {key}.")
        (downs if kind == "A" else ups)[module] = tensor
    if not downs or downs.keys() != ups.keys():
        raise AdapterError(f"The adapter {name} is incomplete: its lora_A and lora_B matrices do not pair up.")
    return {module: (downs[module], ups[module]) for module in downs}
