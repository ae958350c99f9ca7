"""Which job this is: everything that its result depends on, so that no checkpoint of another one is continued."""

from __future__ import annotations

from pathlib import Path

from kaito_tuning.process import checkpoints

_SMALL_FILES = {".json", ".jinja", ".model", ".tiktoken", ".txt"}
"""Of a model's folder: configuration, tokenizer, chat templates. The revision stands for the weights."""


def configured(text: bytes) -> str:
    """The key of every job of a training_config.yaml: what the others begin with."""
    return checkpoints.job_key(text)


def whole(
    configured: str,
    model_folder: Path,
    *,
    data: str,
    template: str | None,
    revision: str,
    context_length: int | None,
    processes: int,
) -> str:
    """The key of one job. ``data``: the digest of its files. ``template``: what ModelConfig.chat_template leads to."""
    files = sorted(path for path in model_folder.rglob("*") if path.suffix in _SMALL_FILES and path.is_file())
    named = [part for path in files for part in (str(path.relative_to(model_folder)).encode(), path.read_bytes())]
    settings = (data, template or "", revision, str(context_length), str(processes))
    return checkpoints.job_key(*(part.encode() for part in settings), *named, within=configured)
