"""What was fetched is what was asked for: weights of the right architecture, an adapter, and no pickles alone."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence, Set
from pathlib import Path, PurePosixPath
from typing import Any

from kaito_hooks.artifacts import safetensors
from kaito_hooks.artifacts.errors import Damaged, RefusedContent, UnsupportedArtifact

_PICKLES = (".bin", ".pt", ".pth", ".pkl")
# The same tensors once more, in another library's layout.
_DUPLICATES = ("consolidated*.safetensors", "original/*")
# The model_type under which transformers itself has each class; another one would need code of the repository.
_NATIVE = {
    "FalconForCausalLM": "falcon",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Phi3ForCausalLM": "phi3",
    "PhiForCausalLM": "phi",
}
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_SMALL = (".json", ".txt", ".model", ".jinja")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def is_duplicate(name: str) -> bool:
    """Whether a file, by its path in a model's folder, holds tensors that other files hold, too."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _DUPLICATES)


def is_left_out(name: str) -> bool:
    """Whether a model or adapter is fetched without this file: a pickle is never opened, a duplicate not needed."""
    return PurePosixPath(name).suffix.lower() in _PICKLES or is_duplicate(name)


def is_no_small_file(name: str) -> bool:
    """Whether a file is none of those that describe a model and its tokenizer: weights, code, pictures."""
    return not name.endswith(_SMALL) or is_duplicate(name)


def check_weights(folder: Path, *, architecture: str | None, source: str, left_out: Sequence[str] = ()) -> None:
    """A model folder in the Hugging Face layout, complete, in safetensors, of ``architecture`` (None: any).

    ``left_out``: files that ``source`` has and the folder has not. Raises RefusedContent, UnsupportedArtifact or
    Damaged with a sentence that names ``source``.
    """
    refuse_pickles_alone(folder, source=source, left_out=left_out)
    for name in _weights(folder, _files(folder), architecture=architecture, source=source):
        safetensors.header(folder / name)


def check_tokenizer(folder: Path, *, architecture: str | None, source: str, left_out: Sequence[str] = ()) -> None:
    """What can be said of a model by its small files alone: as `check_weights`, whose weights may be left out.

    Raises UnsupportedArtifact, too, if there is no tokenizer.
    """
    refuse_pickles_alone(folder, source=source, left_out=left_out)
    _weights(folder, _files(folder) | set(left_out), architecture=architecture, source=source)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UnsupportedArtifact(f"{source} holds no tokenizer: there is none of {', '.join(_TOKENIZER_FILES)}")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _weights(folder: Path, names: Set[str], *, architecture: str | None, source: str) -> list[str]:
    """The names of the files with the model's weights, of all ``names`` that it has."""
    if not (folder / "config.json").is_file():
        raise UnsupportedArtifact(f"{source} holds no model: there is no config.json in its weights folder")
    check_config(folder / "config.json", architecture=architecture, source=source)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        found = sorted({str(name) for name in (_json(index).get("weight_map") or {}).values()})
        missing = [name for name in found if name not in names]
        if missing:
            raise UnsupportedArtifact(f"{source} is incomplete: {', '.join(missing[:3])} of its index is missing")
    else:
        found = sorted(name for name in names if _is_weights(name))
    if not found:
        raise UnsupportedArtifact(f"{source} holds no weights: there is no *.safetensors beside its config.json")
    return found


def _is_weights(name: str) -> bool:
    return "/" not in name and name.endswith(".safetensors") and not is_duplicate(name)


def check_config(path: Path, *, architecture: str | None, source: str) -> None:
    """A model's config.json: of ``architecture`` (None: any), and no code of its own is needed to load it.

    ``auto_map`` alone is no reason to refuse: many models name code for old libraries beside their native class.
    """
    config = _json(path)
    offered = [str(name) for name in config.get("architectures") or []]
    if architecture is not None and architecture not in offered:
        architectures = ", ".join(offered) or "none"
        raise UnsupportedArtifact(
            f"{source} holds a model of architecture {architectures}, but the preset needs {architecture}"
        )
    for name in offered:
        native, own = _NATIVE.get(name), config.get("model_type")
        if (native is None and config.get("auto_map")) or (native is not None and own not in (None, native)):
            raise RefusedContent(
                f"{source} needs code of its own to be loaded (model_type {own!r}), which is never run"
            )


def check_adapter(folder: Path, *, source: str, left_out: Sequence[str] = ()) -> None:
    """A LoRA adapter as PEFT saves it; else as `check_weights`."""
    refuse_pickles_alone(folder, source=source, left_out=left_out)
    missing = [name for name in _ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise UnsupportedArtifact(f"{source} is no adapter: {' and '.join(missing)} missing under /data")
    config = _json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise UnsupportedArtifact(f"{source} holds a {config.get('peft_type')} adapter; only LORA can be served")
    safetensors.header(folder / "adapter_model.safetensors")


def refuse_pickles_alone(folder: Path, *, source: str, left_out: Sequence[str]) -> None:
    """Raises RefusedContent if there are weights that can run code when they are loaded, and no others.

    Many models and adapters carry both kinds; pickles beside safetensors are never opened.
    """
    names = [*(path.name for path in folder.iterdir()), *left_out]
    found = sorted(name for name in names if PurePosixPath(name).suffix.lower() in _PICKLES)
    if found and not any(map(_is_weights, names)):
        raise RefusedContent(
            f"{source} holds pickled weights only ({', '.join(found[:3])}), which can run code when loaded; "
            "convert them to safetensors"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Damaged(f"{path.name} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise Damaged(f"{path.name} is no JSON object")
    return document
