"""Checkpoints that can be trusted after a crash: a seal inside says what every file holds, and for which job.

A checkpoint without the seal, or with another job's key, is never resumed: with another number of processes, say, a
step has other rows. The newest of each other job is set aside until this one has a checkpoint of its own, so that a
start with the earlier settings goes on. One that is damaged is set aside for good; one that cannot be read, because of
the disk, say, is left for the next start. The files hold pickles (optimizer state), so they are only ever read from the
volume that this job wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kaito_tuning import reading

_SEAL = "sealed.json"
_PLACE = "checkpoint-"
_ASIDE = "set-aside-"
_DIGITS = hashlib.sha256().digest_size * 2
"""Of the key of a configuration, which the keys of its jobs begin with."""


@dataclass(frozen=True, slots=True)
class _Sealed:
    """What a seal says; ``processes`` is 0 where it does not say how many trained together.

    ``files``: the SHA-256 of each by its path in the checkpoint; empty where an earlier release sealed it.
    """

    step: int
    key: str
    processes: int
    files: Mapping[str, str]


def job_key(*parts: bytes, within: str = "") -> str:
    """A digest over what makes two runs the same, behind the key of what they share with others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return f"{within}{digest.hexdigest()}"


def seal(folder: Path, *, key: str, processes: int) -> None:
    """Marks a checkpoint of so many processes as complete, after its files have reached the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SEAL)
    for path in files:
        sync(path)
    digests = {str(path.relative_to(folder)): _digest(path) for path in files}
    (folder / _SEAL).write_text(json.dumps({"key": key, "processes": processes, "files": digests}))
    sync(folder / _SEAL)
    sync(folder)


def prepare(output_dir: Path, *, key: str, processes: int) -> str:
    """Leaves the checkpoints of this key in their place, and says in a sentence, or "", what the start does with them.

    The newest of each other key is set aside, and put back by a start with that key; torn ones are removed. Those whose
    seal cannot be read are left to ``verify``.
    """
    found, unread = _sealed(output_dir)
    for path in output_dir.glob(f"{_PLACE}*"):
        if path not in found and path not in unread:
            _remove(_out_of_the_way(path))
    newest_of: dict[str, Path] = {}
    for path, sealed in sorted(found.items(), key=lambda item: item[1].step):
        newest_of[sealed.key] = path
    for path, sealed in found.items():
        if sealed.key == key:
            with suppress(OSError):  # a newer one of the same name
                path.rename(output_dir / f"{_PLACE}{sealed.step}")
        elif path == newest_of[sealed.key]:
            path.rename(output_dir / f"{_ASIDE}{sealed.step}-{hashlib.sha256(sealed.key.encode()).hexdigest()[:8]}")
        else:
            _remove(path)
    return _sentence({path: found[path] for path in newest_of.values()}, key=key, processes=processes)


def verify(output_dir: Path, *, key: str, last: bool = False) -> list[str]:
    """Sets aside what may not be read, and of this key the newest until one holds what was sealed.

    Returns a sentence for each. Raises OSError where one cannot be read and that is not its own fault; ``last``: no
    start comes after this one, so that it is set aside as well.
    """
    sentences = []
    for folder, error in sorted(_sealed(output_dir, aside=False)[1].items()):
        _wait_for_the_next_start(error, folder / _SEAL, last=last)
        sentences.append(set_aside(folder, f"{_SEAL}: {error.strerror}", key=key))
    while (path := newest(output_dir, key=key)) is not None and (why := _damage(path, last=last)):
        sentences.append(set_aside(path, why, key=key))
    return sentences


def set_aside(folder: Path, why: str, *, key: str) -> str:
    """Takes a checkpoint that cannot be loaded out of the way, for good, and says what the training does instead."""
    with suppress(FileNotFoundError):  # another process has done so
        _out_of_the_way(folder)
    before = newest(folder.parent, key=key)
    then = "begins anew" if before is None else f"goes on from the one of step {before.name.removeprefix(_PLACE)}"
    return (
        f"the checkpoint of step {folder.name.removeprefix(_PLACE)} cannot be loaded ({why}): it is set aside, and the "
        f"training {then}"
    )


def newest(output_dir: Path, *, key: str) -> Path | None:
    """The sealed checkpoint of this key with the most steps that is in its place."""
    sealed_ones, _ = _sealed(output_dir, aside=False)
    found = {sealed.step: path for path, sealed in sealed_ones.items() if sealed.key == key}
    return found[max(found)] if found else None


def newest_step(output_dir: Path, *, key: str) -> int:
    """The optimizer steps in the newest sealed checkpoint of this key, or of one that begins so; 0 without one."""
    found, _ = _sealed(output_dir, aside=False)
    return max((sealed.step for sealed in found.values() if sealed.key.startswith(key)), default=0)


def remove_others(output_dir: Path) -> None:
    """Frees the disk of what was set aside."""
    for path in output_dir.glob(f"{_ASIDE}*"):
        _remove(path)


def remove_all(output_dir: Path) -> None:
    """Frees the disk after the result was exported."""
    remove_others(output_dir)
    for path in output_dir.glob(f"{_PLACE}*"):
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


def _sealed(output_dir: Path, *, aside: bool = True) -> tuple[dict[Path, _Sealed], dict[Path, OSError]]:
    """Each whole checkpoint, those that were set aside too, and what its seal says; and those whose seal cannot be
    read.
    """
    found, unread = {}, {}
    for path in output_dir.iterdir() if output_dir.is_dir() else ():
        match = re.fullmatch(rf"{_PLACE}(\d+)|{_ASIDE}(\d+)-\w+", path.name)
        if match and (aside or match[1]):
            try:
                if sealed := _seal_of(path, int(match[1] or match[2])):
                    found[path] = sealed
            except OSError as error:
                unread[path] = error
    return found, unread


def _seal_of(folder: Path, step: int) -> _Sealed | None:
    """None for a folder without a seal that says something. Raises OSError where it cannot be read."""
    try:
        said = json.loads((folder / _SEAL).read_text())
        return _Sealed(step, str(said["key"]), int(said.get("processes", 0)), dict(said.get("files", {})))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _damage(folder: Path, *, last: bool) -> str:
    """Which file of a sealed checkpoint does not hold what was sealed, and why; "" if all do."""
    sealed = _seal_of(folder, 0)
    for name, digest in sealed.files.items() if sealed else ():
        try:
            if _digest(folder / name) != digest:
                return f"{name} is not as it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            _wait_for_the_next_start(error, folder / name, last=last)
            return f"{name}: {error.strerror}"
    return ""


def _wait_for_the_next_start(error: OSError, path: Path, *, last: bool) -> None:
    """Raises an error that is not about the file, with its name; of the disk not if no other start comes."""
    if reading.passing(error) and (not last or error.errno in reading.OF_THE_PROCESS):
        raise OSError(error.errno, error.strerror, str(path)) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _out_of_the_way(path: Path) -> Path:
    """Where it is after a rename that works whoever owns what is in it, and that makes it nobody's checkpoint."""
    name = path.name.removeprefix(_PLACE)
    return path.rename(path.with_name(f"{_ASIDE}unloadable-{name}-{uuid.uuid4().hex[:8]}"))


def _remove(folder: Path) -> None:
    """The seal first: what a crash leaves of the folder is no checkpoint."""
    if folder.is_dir() and not folder.is_symlink():
        with suppress(OSError):
            (folder / _SEAL).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(OSError):
            folder.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
