"""Child processes that never outlive the one that started them, and processes of other commands, by pid.

A pid alone may name a stranger after the machine reused it, so a process that outlives its command is remembered with
its start time as well (``Identity``), and nothing is ever signalled on the pid alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kaito_local.errors import StartError

_PF_EXITING = 0x4
"""The kernel's flag of a task that is in do_exit() (include/linux/sched.h)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for ever: its pid, and its start time in clock ticks since boot (proc(5), stat field 22)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process that has ``pid`` now; None if there is none, or only its corpse."""
        started = _started(_stat(pid))
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        """Whether this very process is still there, be it in its last moments."""
        return _started(_stat(self.pid)) == self.started

    def running(self) -> bool:
        """Whether it is there and not ending: a process that was killed may take its time to be gone.

        The first process of a PID namespace stays until all others of it have ended (pid_namespaces(7)).
        """
        if _kill_pending(self.pid):
            return False
        fields = _stat(self.pid)
        return _started(fields) == self.started and not int(fields[6]) & _PF_EXITING

    def send_signal(self, sign: signal.Signals) -> None:
        """Sends a signal, unless the process is gone."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sign)

    def wait(self, seconds: float) -> bool:
        """Waits up to so many seconds for its end; whether it has ended."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def kill(self, sign: signal.Signals = signal.SIGKILL, *, wait: float = 10.0) -> bool:
        """Signals the process and waits up to ``wait`` seconds for its end; whether it has ended."""
        self.send_signal(sign)
        return self.wait(wait)


_WITH_ITS_STARTER = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
"""Runs the command after the pid of its parent. The kernel does not tell the death of a parent that died before the
child asked for it (prctl(2), PR_SET_PDEATHSIG), so afterwards the child looks whether that one is still its parent."""


def ending_with_this(command: Sequence[str | Path]) -> list[str]:
    """The command as one that is killed when the thread that started it is."""
    return [*_WITH_ITS_STARTER, str(os.getpid()), *map(str, command)]


class Child:
    """A program with its output in a log file that dies with the thread that started it (PR_SET_PDEATHSIG)."""

    def __init__(
        self, name: str, command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self.command = tuple(map(str, command))
        self._environment = dict(environment) if environment is not None else None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the program; a no-op while it runs."""
        if self.alive():
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ending_with_this(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        """The program's process id while it runs."""
        return self._process.pid if self._process is not None and self.alive() else None

    def alive(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self, *, grace: float = 5.0) -> None:
        """Ends the program: SIGTERM, after ``grace`` seconds SIGKILL (0: SIGKILL at once); returns when it is gone."""
        if self._process is None:
            return
        if self.alive() and grace > 0:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=grace)
        if self.alive():
            self._process.kill()
        self._process.wait()
        self._process = None

    def check(self) -> None:
        """Raises StartError with the end of the log if the program has ended."""
        if not self.alive():
            status = self._process.returncode if self._process is not None else "not started"
            raise StartError(f"{self.name} ended (exit {status}); the end of {self.log}:\n{last_lines(self.log)}")


def last_lines(log: Path, *, count: int = 8, width: int = 400) -> str:
    """The last lines of a log file, each cut to ``width`` characters."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(line[:width] for line in lines)


def _kill_pending(pid: int) -> bool:
    """Whether the process has a SIGKILL that it has not died of yet (proc_pid_status(5))."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(signals >> (signal.SIGKILL - 1) & 1 for signals in pending)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third one, the state, on (proc_pid_stat(5)); empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The command's name, in brackets, may hold blanks and brackets itself.
    return stat[stat.rindex(")") + 2 :].split()


def _started(fields: Sequence[str]) -> int | None:
    """The start time in what `_stat` returns; None for no process and for a corpse."""
    return None if not fields or fields[0] in "ZX" else int(fields[19])
