"""What is in a folder of weights, checked before anything heavy starts.

Only safetensors are read: a pickle (`.bin`, `.pt`, `.pth`, `.pkl`) can run code when it is loaded (CVE-2025-32434 did
so even with `weights_only`), so those that lie beside safetensors are never opened, and a folder with pickles alone is
refused. Architectures come from a list of
native classes, because a config may otherwise name code of its own (`auto_map`, CVE-2026-4372). Headers are read to
the last byte, so that an interrupted download is told from a wrong model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaito_serving.errors import StartupError, WeightsError

ARCHITECTURES = frozenset(
    {
        "FalconForCausalLM",
        "Gemma3ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Phi3ForCausalLM",
        "PhiForCausalLM",
        "Qwen3ForCausalLM",
    }
)
PICKLES = (".bin", ".pt", ".pth", ".pkl")
_INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100 * 1024 * 1024  # bytes; the limit of the safetensors library


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that may be loaded: its path, native class, parsed config.json and the size of its tensors in bytes."""

    path: Path
    architecture: str
    config: Mapping[str, Any]
    tensor_bytes: int


def inspect(path: Path) -> ModelFolder:
    """Check a base model's folder; WeightsError with one sentence when it cannot be served."""
    if not path.is_dir():
        raise WeightsError(f"There is no folder {path}: the weights of the model are missing.")
    refuse_pickles_alone(path, WeightsError)
    config = read_json(path / "config.json")
    architecture = _architecture(path, config)
    files = list(_tensor_files(path))
    size = sum(tensor_bytes(file) for file in files)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise WeightsError(f"The folder {path} holds no tokenizer (tokenizer.json).")
    return ModelFolder(path=path, architecture=architecture, config=config, tensor_bytes=size)


def fits_one_gpu(weights: float, memory: float) -> bool:
    """Whether weights, and half as much for their cache, fit into a GPU; bytes."""
    return 1.5 * weights < memory


def refuse_pickles_alone(path: Path, error: type[StartupError]) -> None:
    """Raise `error` when a folder holds weights as pickles and none as safetensors."""
    names = sorted(each.name for each in path.iterdir())
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise error(
            f"The folder {path} holds pickled weights only ({pickles[0]}), which can run code when they are loaded; "
            "only safetensors are served."
        )


def tensor_bytes(file: Path) -> int:
    """The size of a safetensors file's tensors; WeightsError when the file is damaged or cut off.

    Layout: 8 bytes little-endian header length, a JSON header with `data_offsets` per tensor, then the data.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise WeightsError(f"{file} is not a safetensors file, or it is cut off.")
            header = json.loads(stream.read(length))
        end = max((int(t["data_offsets"][1]) for name, t in header.items() if name != "__metadata__"), default=0)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise WeightsError(f"{file} is not a safetensors file: its header is damaged.") from error
    if size != 8 + length + end:
        raise WeightsError(f"{file} is damaged: it has {size} bytes, and its header says {8 + length + end}.")
    return end


def _tensor_files(path: Path) -> Iterator[Path]:
    index = path / _INDEX
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise WeightsError(f"{index} has no weight_map.")
        for name in sorted(set(shards.values())):
            if not isinstance(name, str) or Path(name).name != name:
                raise WeightsError(f"{index} names a file outside of its folder: {name!r}.")
            if not (path / name).is_file():
                raise WeightsError(f"The folder {path} lacks {name}, which {_INDEX} names; the download is incomplete.")
            yield path / name
    elif (path / "model.safetensors").is_file():
        yield path / "model.safetensors"
    else:
        raise WeightsError(f"The folder {path} holds no weights: neither model.safetensors nor {_INDEX} is there.")


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise WeightsError(f"{path / 'config.json'} must name exactly one architecture, not {named!r}.")
    if named[0] not in ARCHITECTURES:
        raise WeightsError(
            f"The architecture {named[0]} of {path} is not one that this server runs "
            f"({', '.join(sorted(ARCHITECTURES))})."
        )
    return named[0]


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder; WeightsError when there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"The folder {file.parent} holds no model: {file.name} is missing.") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} must hold a JSON object.")
    return content
