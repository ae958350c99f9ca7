"""Which chat template conversations are rendered by: the asked one, else that of an adapter, else the model's own.

A base model has none; an adapter that was trained on conversations brings the one that it was trained with.
"""

from __future__ import annotations

import logging
from pathlib import Path

from kaito_serving.errors import OptionError

FILE = "chat_template.jinja"
"""Beside adapter_config.json, as transformers call it beside a model's config.json."""

_LOG = logging.getLogger(__name__)


def choose(asked: str | None, adapters: Path) -> str | None:
    """A file's path or the text itself; None: the model's own. ``adapters``: the folder of the adapters' folders.

    Where adapters bring different ones the first by name is taken, with a warning. OptionError for one that cannot be
    read.
    """
    if asked or not adapters.is_dir():
        return asked
    files = sorted(folder / FILE for folder in adapters.iterdir() if (folder / "adapter_config.json").is_file())
    found: dict[Path, str] = {}
    for file in filter(Path.is_file, files):
        try:
            found[file] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise OptionError(f"The chat template {file} cannot be read: {error}") from error
    if not found:
        return None
    first = next(iter(found))
    others = sorted(file.parent.name for file, text in found.items() if text != found[first])
    if others:
        _LOG.warning(
            "The adapters %s and %s were trained with different chat templates; that of %s is used (--chat_template "
            "chooses another).",
            first.parent.name,
            ", ".join(others),
            first.parent.name,
        )
    _LOG.info("Chat template: that of the adapter %s", first.parent.name)
    return str(first)
