"""Which weights a preset's model image holds: the user's own, or a tiny model of its architecture made here."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from kaito_local.errors import BuildError, UsageError
from kaito_local.machine.processes import last_lines

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


def tiny_weights(cache: Path, *, report: Callable[[str], None] = lambda line: None) -> Path:
    """A folder with the tiny model; trained (half a minute) when there is none for this source and these libraries."""
    source = Path(__file__).parent
    versions = [f"{library} {metadata.version(library)}" for library in _LIBRARIES]
    content = b"".join((source / name).read_bytes() for name in ("tinymodel.py", "corpus.txt"))
    key = hashlib.sha256(content + " ".join(versions).encode()).hexdigest()[:12]
    folder = cache / "weights" / f"tiny-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            report("training a tiny model of Phi-3's architecture")
            log = folder.parent / "tinymodel.log"
            with log.open("wb") as output:
                # A process of its own: torch's threads and memory are gone when it ends.
                command = [sys.executable, "-m", "kaito_local.images.tinymodel", str(folder)]
                # One thread: programs are built meanwhile, and torch's threads would spin for a free processor.
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False)
            if done.returncode != 0:
                raise BuildError(f"training the tiny model failed; {log} ends:\n{last_lines(log)}")
            for old in folder.parent.glob("tiny-*"):
                if old != folder:
                    with contextlib.suppress(OSError):
                        shutil.rmtree(old)
    return folder
