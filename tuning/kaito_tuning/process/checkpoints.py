"""Checkpoints that can be trusted after a crash: a seal inside says that every file was written, and for which job.

A checkpoint without the seal, or with another job's key, is never resumed: with another number of processes, say, a
step has other rows. The newest of each other job is set aside until this one has a checkpoint of its own, so that a
start with the earlier settings goes on. The files hold pickles (optimizer state), so they are only ever read from the
volume that this job wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SEAL = "sealed.json"
_ASIDE = "set-aside-"
_DIGITS = hashlib.sha256().digest_size * 2
"""Of the key of a configuration, which the keys of its jobs begin with."""


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A whole checkpoint; ``processes`` is 0 where its seal does not say how many trained together."""

    step: int
    key: str
    processes: int


def job_key(*parts: bytes, within: str = "") -> str:
    """A digest over what makes two runs the same, behind the key of what they share with others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return f"{within}{digest.hexdigest()}"


def seal(folder: Path, *, key: str, processes: int) -> None:
    """Marks a checkpoint of so many processes as complete, after its files have reached the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    (folder / _SEAL).write_text(json.dumps({"key": key, "processes": processes}))
    sync(folder / _SEAL)
    sync(folder)


def prepare(output_dir: Path, *, key: str, processes: int) -> str:
    """Leaves the checkpoints of this key in their place, and says in a sentence, or "", what the start does with them.

    The newest of each other key is set aside, and put back by a start with that key; torn ones are removed.
    """
    found = _sealed(output_dir)
    for path in output_dir.glob("checkpoint-*"):
        if path not in found:
            _remove(path)
    newest_of: dict[str, Path] = {}
    for path, sealed in sorted(found.items(), key=lambda item: item[1].step):
        newest_of[sealed.key] = path
    for path, sealed in found.items():
        if sealed.key == key:
            with suppress(OSError):  # a newer one of the same name
                path.rename(output_dir / f"checkpoint-{sealed.step}")
        elif path == newest_of[sealed.key]:
            path.rename(output_dir / f"{_ASIDE}{sealed.step}-{hashlib.sha256(sealed.key.encode()).hexdigest()[:8]}")
        else:
            _remove(path)
    return _sentence({path: found[path] for path in newest_of.values()}, key=key, processes=processes)


def newest(output_dir: Path, *, key: str) -> Path | None:
    """The sealed checkpoint of this key with the most steps that is in its place."""
    found = {sealed.step: path for path, sealed in _sealed(output_dir, aside=False).items() if sealed.key == key}
    return found[max(found)] if found else None


def newest_step(output_dir: Path, *, key: str) -> int:
    """The optimizer steps in the newest sealed checkpoint of this key, or of one that begins so; 0 without one."""
    found = _sealed(output_dir, aside=False).values()
    return max((sealed.step for sealed in found if sealed.key.startswith(key)), default=0)


def remove_others(output_dir: Path) -> None:
    """Frees the disk of what was set aside."""
    for path in output_dir.glob(f"{_ASIDE}*"):
        _remove(path)


def remove_all(output_dir: Path) -> None:
    """Frees the disk after the result was exported."""
    remove_others(output_dir)
    for path in output_dir.glob("checkpoint-*"):
        _remove(path)


def _sentence(newest_of_each: Mapping[Path, _Sealed], *, key: str, processes: int) -> str:
    own = [sealed.step for sealed in newest_of_each.values() if sealed.key == key]
    if own:
        return f"the training goes on from the checkpoint of step {own[0]}"
    if not newest_of_each:
        return ""
    other = max(newest_of_each.values(), key=lambda sealed: sealed.step)
    if other.key[:_DIGITS] != key[:_DIGITS]:
        why = "of another training_config.yaml"
    elif other.processes not in (0, processes):
        why = f"of {other.processes} process{'es' if other.processes > 1 else ''}, and {processes} train together here"
    else:
        why = "of other data, or of a base model, a chat template or a context length that is not this one's"
    return (
        f"the checkpoint of step {other.step} is {why}: the training begins anew, and keeps that checkpoint until it "
        "has written one, for a start with the earlier settings"
    )


def _sealed(output_dir: Path, *, aside: bool = True) -> dict[Path, _Sealed]:
    """Each whole checkpoint, those that were set aside too, and what its seal says."""
    found = {}
    for path in output_dir.iterdir() if output_dir.is_dir() else ():
        match = re.fullmatch(rf"checkpoint-(\d+)|{_ASIDE}(\d+)-\w+", path.name)
        if match and (aside or match[1]) and (sealed := _seal_of(path, int(match[1] or match[2]))):
            found[path] = sealed
    return found


def _seal_of(folder: Path, step: int) -> _Sealed | None:
    try:
        said = json.loads((folder / _SEAL).read_text())
        return _Sealed(step, str(said["key"]), int(said.get("processes", 0)))
    except (OSError, ValueError, KeyError):
        return None


def _remove(folder: Path) -> None:
    """The seal first: what a crash leaves of the folder is no checkpoint."""
    (folder / _SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
