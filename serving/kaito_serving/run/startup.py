"""How far each replica is, told in files: whoever speaks for all of them reads these."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Startup:
    """How far a replica is.

    `step` says what it does while it loads, `progress` which part of that is done, 0 to 1, where it is known. `reason`
    is the sentence of a failure; `final`: starting again changes nothing.
    """

    phase: Literal["loading", "ready", "failed"] = "loading"
    step: str = ""
    progress: float | None = None
    reason: str = ""
    final: bool = False


class Report:
    """Tells how far this process is, in a file of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, startup: Startup) -> None:
        """Write it, whole or not at all; a full disk ends nothing, as whoever reads it sees an older state."""
        process = psutil.Process()
        file = self._folder / f"{process.pid}.json"
        partial = file.with_suffix(".partial")
        try:
            partial.write_text(json.dumps({**asdict(startup), "began": process.create_time()}), encoding="utf-8")
            os.replace(partial, file)
        except OSError as error:
            _LOG.warning("How far the start is cannot be written to %s: %s", file, error)


@dataclass(frozen=True, slots=True)
class Told:
    """What one process told last, when it began (seconds since the epoch), and whether it still runs."""

    startup: Startup
    alive: bool
    began: float = 0.0
    pid: int = 0


def read(folder: Path) -> list[Told]:
    """What every process told, in the order in which they began, also those that have ended."""
    told = []
    for file in folder.glob("*.json"):
        fields = json.loads(file.read_text(encoding="utf-8"))
        began = fields.pop("began")
        pid = int(file.stem)
        told.append(Told(Startup(**fields), _alive(pid, began), began, pid))
    return sorted(told, key=lambda each: each.began)


def forget(folder: Path, told: Sequence[Told]) -> list[Told]:
    """Remove what processes told that have ended, but for the last of them, which may say why; those removed."""
    ended = [each for each in told if not each.alive][:-1]
    for each in ended:
        (folder / f"{each.pid}.json").unlink(missing_ok=True)
    return ended


def _alive(pid: int, began: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
