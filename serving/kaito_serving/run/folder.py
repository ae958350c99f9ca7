"""The folder of one running server: what its processes tell one another, the sockets between them, its HAProxy's files.

Its name holds the process that owns it, so that servers beside one another never mix, and whatever a server that was
killed left behind is neither read nor kept, also when a restarted container gives the same process id again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_PREFIX = "kaito-serving-"


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """Where everything lies below `root`."""

    root: Path

    @property
    def reports(self) -> Path:
        """A file per replica: how far it is."""
        return self.root / "reports"

    @property
    def metrics(self) -> Path:
        """The files of prometheus_client's multiprocess mode."""
        return self.root / "metrics"

    def sockets(self, replicas: int) -> list[Path]:
        """Where replicas answer HTTP; more than there are replicas, as those that end overlap with those that begin."""
        return [self.root / f"replica-{slot}.sock" for slot in range(2 * replicas + 1)]

    @property
    def state(self) -> Path:
        """The socket of what speaks for all replicas."""
        return self.root / "state.sock"

    @property
    def log(self) -> Path:
        """The socket that takes the replicas' log lines."""
        return self.root / "log.sock"


def claim(paths: Sequence[Path]) -> Path:
    """The first of `paths` that no other process has; it is this one's as long as it runs."""
    for path in paths:
        lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return path
    raise RuntimeError(f"All of the {len(paths)} sockets are in use.")


@contextmanager
def server_folder(base: Path) -> Iterator[ServerFolder]:
    """This process' folder below `base`, for nobody else to read; it goes with all that is in it.

    Folders of processes that do not run any more are removed first.
    """
    base.mkdir(parents=True, exist_ok=True)
    for left in base.glob(_PREFIX + "*"):
        if not _owned(left.name):
            shutil.rmtree(left, ignore_errors=True)
    folder = ServerFolder(base / _name(psutil.Process()))
    folder.root.mkdir(mode=0o700)
    for each in (folder.reports, folder.metrics):
        each.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder.root, ignore_errors=True)


def _name(process: psutil.Process) -> str:
    return f"{_PREFIX}{process.pid}-{int(process.create_time() * 1000)}"


def _owned(name: str) -> bool:
    pid = name.removeprefix(_PREFIX).partition("-")[0]
    try:
        return pid.isdigit() and _name(psutil.Process(int(pid))) == name
    except psutil.NoSuchProcess:
        return False
