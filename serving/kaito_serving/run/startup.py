"""How far each model process is, told in files: those who ask cannot choose which replica of Ray Serve answers them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil


@dataclass(frozen=True, slots=True)
class Startup:
    """How far a process is. `reason` is the sentence of a failure; `final`: starting again changes nothing."""

    phase: Literal["loading", "ready", "failed"] = "loading"
    reason: str = ""
    final: bool = False


class Report:
    """Tells how far this process is, in a file of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, startup: Startup) -> None:
        """Write it, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        process = psutil.Process()
        file = self._folder / f"{process.pid}.json"
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({**asdict(startup), "began": process.create_time()}), encoding="utf-8")
        os.replace(partial, file)


@dataclass(frozen=True, slots=True)
class Told:
    """What one process told last, and whether it still runs."""

    startup: Startup
    alive: bool


def read(folder: Path) -> Iterator[Told]:
    """What every process told, also those that have ended."""
    for file in sorted(folder.glob("*.json")):
        fields = json.loads(file.read_text(encoding="utf-8"))
        began = fields.pop("began")
        yield Told(Startup(**fields), alive=_alive(int(file.stem), began))


def _alive(pid: int, began: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
