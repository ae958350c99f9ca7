"""Long-running programs under one parent that is pid 1 of its pid namespace: started in order, restarted when they end.

The parent also reaps whatever orphans the namespace leaves it (containers' shims, `kubectl exec` sessions). A
program that ends is started again after a back-off (0.1 s, doubling to 5 s; forgotten after 10 s of running), so
`kill -9` of any one of them heals.
What runs is written to a status file, for those outside the namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 5.0
_STEADY_SECONDS = 10.0
_TICK = 0.02


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised command.

    ``log`` receives its output (appended). ``after`` holds it back until something answers: ``host:port`` that
    accepts connections, or the absolute path of a file or socket that exists. ``delay`` seconds more are waited at
    the first start only.
    """

    name: str
    command: tuple[str, ...]
    log: str
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    after: str = ""
    delay: float = 0.0

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Program:
        """The program that ``asdict`` wrote."""
        return cls(**{**data, "command": tuple(data["command"])})

    def write(self) -> dict[str, Any]:
        """Plain data, for a JSON file."""
        return {**asdict(self), "environment": dict(self.environment)}


@dataclass(slots=True)
class _Running:
    program: Program
    pid: int = 0
    started: float = 0.0
    not_before: float = 0.0
    backoff: float = _FIRST_BACKOFF
    starts: int = 0
    last_exit: str = ""


class Supervisor:
    """Runs ``programs`` until SIGTERM; the caller must be pid 1 of a pid namespace, whose end ends them all."""

    def __init__(self, programs: Sequence[Program], *, status_file: Path) -> None:
        now = time.monotonic()
        self._running = [_Running(program, not_before=now + program.delay) for program in programs]
        self._status_file = status_file

    def run(self) -> None:
        """Blocks until SIGTERM or SIGINT."""
        stopping: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, frame: stopping.append(received))
        signal.signal(signal.SIGCHLD, lambda received, frame: None)
        self._write_status()
        while not stopping:
            changed = self._reap()
            changed = self._start_due() or changed
            if changed:
                self._write_status()
            _sleep_until_child_ends(self._next_look())

    def _reap(self) -> bool:
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return changed
            if pid == 0:
                return changed
            for entry in self._running:
                if entry.pid == pid:
                    self._ended(entry, status)
                    changed = True

    def _ended(self, entry: _Running, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        ran = now - entry.started
        if ran > _STEADY_SECONDS:
            entry.backoff = _FIRST_BACKOFF
        entry.pid = 0
        entry.last_exit = f"exit {code}" if code >= 0 else f"signal {-code}"
        entry.not_before = now + entry.backoff
        print(
            f"{entry.program.name} ended ({entry.last_exit}) after {ran:.1f} s; again in {entry.backoff:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        entry.backoff = min(entry.backoff * 2, _LONGEST_BACKOFF)

    def _start_due(self) -> bool:
        changed = False
        for entry in self._running:
            if entry.pid == 0 and time.monotonic() >= entry.not_before and answers(entry.program.after):
                entry.pid = _spawn(entry.program)
                entry.started = time.monotonic()
                entry.starts += 1
                changed = True
        return changed

    def _next_look(self) -> float:
        waiting = [entry for entry in self._running if entry.pid == 0]
        if not waiting:
            return 60.0
        return max(_TICK, min(entry.not_before for entry in waiting) - time.monotonic())

    def _write_status(self) -> None:
        entries = [
            {
                "name": entry.program.name,
                "pid": entry.pid,
                "starts": entry.starts,
                "last_exit": entry.last_exit,
                "log": entry.program.log,
            }
            for entry in self._running
        ]
        partial = self._status_file.with_suffix(".partial")
        partial.write_text(json.dumps(entries))
        partial.rename(self._status_file)


def _sleep_until_child_ends(seconds: float) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        pending = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        pending = None
    if pending is None:
        signal.sigtimedwait({signal.SIGCHLD}, seconds)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def answers(target: str) -> bool:
    """Whether `Program.after` is fulfilled: ``host:port`` accepts connections, the file exists, or it is empty."""
    if not target:
        return True
    if target.startswith("/"):
        return os.path.exists(target)
    host, port = target.rsplit(":", 1)
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
        return True
    return False


def _spawn(program: Program) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        log = os.open(program.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(program.directory)
        os.execve(program.command[0], program.command, {**os.environ, **program.environment})
    except OSError as error:
        os.write(2, f"cannot start {program.command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)
