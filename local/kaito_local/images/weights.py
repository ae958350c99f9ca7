"""Which weights a preset's model image holds: the user's own, or a tiny model of its architecture made here."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kaito_local.errors import UsageError
from kaito_local.machine.folders import ROOT
from kaito_local.machine.locks import file_lock

TINY_ARCHITECTURE = "Phi3ForCausalLM"
DEFAULT_PATH = "/workspace/tfs/weights"
_LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True)
class ModelImage:
    """A preset whose weights come out of a model image: its tag, and the folder of the image that holds them."""

    preset: str
    architecture: str
    tag: str
    path: str


def model_images(presets: Path) -> dict[str, ModelImage]:
    """All presets below ``presets/models`` with a model image, by name."""
    found = {}
    for file in sorted(presets.glob("models/*.yaml")):
        described: dict[str, Any] = yaml.safe_load(file.read_text()) or {}
        for preset, fields in described.items():
            image = (fields.get("weights") or {}).get("image")
            if image and "tag" in image:
                architecture = fields.get("architecture", "")
                found[preset] = ModelImage(preset, architecture, str(image["tag"]), image.get("path", DEFAULT_PATH))
    return found


def parse_weights(options: Sequence[str], *, known: Sequence[str]) -> dict[str, Path]:
    """``--weights PRESET=FOLDER`` options; raises UsageError for an unknown preset or a folder that does not exist.

    What is in the folder is not judged: a cluster that is given a bad one shows what its user would see.
    """
    chosen = {}
    for option in options:
        preset, separator, folder = option.partition("=")
        if not separator or not folder:
            raise UsageError(f"--weights {option}: write PRESET=FOLDER")
        if preset not in known:
            raise UsageError(
                f"--weights {option}: there is no preset {preset} with a model image; there are {', '.join(known)}"
            )
        path = Path(folder).expanduser().resolve()
        if not path.is_dir():
            raise UsageError(f"--weights {option}: {path} is not a folder")
        chosen[preset] = path
    return chosen


def tiny_weights(cache: Path, *, train: Callable[[Path], object], root: Path = ROOT) -> Path:
    """The folder of the tiny model, which ``train`` writes when there is none for this source and these libraries.

    Libraries count with their pinned versions, so that it does not matter where the model is trained.
    """
    source = Path(__file__).parent
    content = b"".join((source / name).read_bytes() for name in ("tinymodel.py", "corpus.txt"))
    pins = [
        line for line in (root / "constraints.txt").read_text().splitlines() if line.partition("==")[0] in _LIBRARIES
    ]
    key = hashlib.sha256(content + " ".join(pins).encode()).hexdigest()[:12]
    folder = cache / "weights" / f"tiny-{key}"
    with file_lock(cache / "weights" / ".lock"):
        if not folder.exists():
            for interrupted in folder.parent.glob(".tiny-*"):
                shutil.rmtree(interrupted, ignore_errors=True)
            draft = folder.with_name(f".{folder.name}")
            train(draft)
            draft.chmod(0o755)  # a server that reads it runs as another user
            draft.rename(folder)
            for old in folder.parent.glob("tiny-*"):
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
    return folder
