"""Checkpoints that can be trusted after a crash: a seal inside says that every file was written, and for which job.

A checkpoint without the seal, or with another job's key, is never resumed. The files hold pickles (optimizer state),
so they are only ever read from the volume that this job wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from kaito_tuning.errors import DiskFull

_SEAL = "sealed.json"


def job_key(*parts: bytes) -> str:
    """A digest over what makes two runs the same: configuration, data, base model."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def seal(folder: Path, *, key: str) -> None:
    """Marks a checkpoint as complete, after its files have reached the disk."""
    try:
        for path in folder.rglob("*"):
            if path.is_file():
                _sync(path)
        (folder / _SEAL).write_text(json.dumps({"key": key}))
        _sync(folder / _SEAL)
    except OSError as error:
        raise DiskFull(f"a checkpoint could not be written: {error.strerror} ({error.filename})") from error


def newest(output_dir: Path, *, key: str) -> Path | None:
    """The sealed checkpoint of this key with the most steps; all others are removed."""
    found: list[tuple[int, Path]] = []
    for path in output_dir.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and _key_of(path) == key:
            found.append((int(match[1]), path))
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(found)[1] if found else None


def remove_all(output_dir: Path) -> None:
    """Frees the disk after the result was exported."""
    for path in output_dir.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def _key_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _SEAL).read_text())["key"])
    except (OSError, ValueError, KeyError):
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
