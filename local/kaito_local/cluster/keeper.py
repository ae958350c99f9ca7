"""``python -m kaito_local.cluster.keeper PLAN.json``: keeps programs running that are outside the cluster's namespaces.

Those are the AKS emulator, which boots nodes and therefore lives beside the cluster and not in it, and the parts of a
control plane without nodes, which needs no namespaces. A program that ends is started again after a back-off. All of
them end with this process, and it ends by itself once the process that it waits for (the cluster) is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kaito_local.errors import StartError
from kaito_local.machine.pki import write_private
from kaito_local.machine.processes import Child, Identity, last_lines
from kaito_local.machine.supervisor import Program, answers

_PROCESS = "keeper-process.json"
_STATUS = "keeper-status.json"
_STOP_SECONDS = 30.0
_TICK = 0.05
_LOOK_EVERY = 1.0
_BACKOFFS = (0.1, 0.5, 1.0, 2.0, 5.0)
_STEADY_SECONDS = 10.0


def start_keeper(directory: Path, programs: Sequence[Program], *, until: Identity | None = None) -> None:
    """Starts a keeper in the background; it outlives this command. Raises StartError if it does not come up.

    One that is still ending is to be stopped first (`stop_keeper`).
    """
    plan = directory / "keeper.json"
    status = directory / _STATUS
    status.unlink(missing_ok=True)
    described = {
        "programs": [program.write() for program in programs],
        "until": asdict(until) if until else None,
        "status": str(status),
    }
    plan.write_text(json.dumps(described, indent=1))
    log = directory / "log" / "keeper.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kaito_local.cluster.keeper", str(plan)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    try:
        identity = Identity.of(process.pid)
        if identity is None:
            raise StartError(f"the keeper ended at once; {log} ends:\n{last_lines(log)}")
        write_private(directory / _PROCESS, json.dumps(asdict(identity)).encode())
        deadline = time.monotonic() + 60.0
        while not status.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise StartError(f"the keeper did not start; {log} ends:\n{last_lines(log)}")
            time.sleep(_TICK)
    except BaseException:
        process.kill()
        process.wait()
        raise


def running_keeper(directory: Path) -> Identity | None:
    """The keeper of this cluster; None if it does not run, or has begun to stop what it keeps."""
    keeper = _recorded(directory)
    return keeper if keeper is not None and keeper.running() and (directory / _STATUS).exists() else None


def stop_keeper(directory: Path) -> None:
    """Ends the keeper and what it keeps; returns when all of it is gone, also what was ending already. Idempotent.

    Raises StartError if something does not end although it was killed.
    """
    keeper = _recorded(directory)
    if keeper is not None and not keeper.kill(signal.SIGTERM, wait=_STOP_SECONDS):
        keeper.send_signal(signal.SIGKILL)
    # What a killed keeper kept ends a moment after it.
    kept = [Identity(entry["pid"], entry["started"]) for entry in _entries(directory) if entry.get("started")]
    for process in (*([keeper] if keeper is not None else []), *kept):
        if not process.kill(wait=_STOP_SECONDS):
            raise StartError(f"process {process.pid} of {directory} does not end although it was killed")
    for name in (_STATUS, _PROCESS):
        (directory / name).unlink(missing_ok=True)


def kept_programs(directory: Path) -> list[tuple[str, int | None, Path]]:
    """Name, pid (None: waiting to be started) and log of what the keeper of this cluster keeps."""
    return [(entry["name"], entry["pid"], Path(entry["log"])) for entry in _entries(directory)]


class _Kept:
    def __init__(self, program: Program) -> None:
        self.child = Child(
            program.name, program.command, log=Path(program.log), environment={**os.environ, **program.environment}
        )
        self.after = program.after
        self.started = 0.0
        self.not_before = 0.0
        self.failures = 0

    def tend(self) -> bool:
        """Starts the program if it is time; whether anything changed."""
        now = time.monotonic()
        if self.child.alive():
            return False
        if self.started:
            if now - self.started > _STEADY_SECONDS:
                self.failures = 0
            self.not_before = now + _BACKOFFS[min(self.failures, len(_BACKOFFS) - 1)]
            self.failures += 1
            self.started = 0.0
            print(f"{self.child.name} ended; again in {self.not_before - now:.1f} s", file=sys.stderr, flush=True)
            return True
        if now < self.not_before or not answers(self.after):
            return False
        self.child.start()
        self.started = now
        return True


def main(plan_file: Path) -> int:
    """Runs until SIGTERM or until the process it waits for is gone."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: stopping.append(received))
    signal.signal(signal.SIGCHLD, lambda received, frame: None)
    # A signal, such as the one for a child that ended, writes a byte here and so ends the wait below.
    woken, wakes = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    plan = json.loads(plan_file.read_text())
    until = Identity(**plan["until"]) if plan["until"] else None
    kept = [_Kept(Program.read(data)) for data in plan["programs"]]
    status = Path(plan["status"])
    _write_status(status, kept)
    while not stopping and (until is None or until.running()):
        # Not any(): every program is tended in every round.
        if sum(entry.tend() for entry in kept):
            _write_status(status, kept)
        waiting = any(not entry.child.alive() for entry in kept)
        if select.select([woken], [], [], _TICK if waiting else _LOOK_EVERY)[0]:
            os.read(woken, 1024)
    status.unlink(missing_ok=True)  # from here on nothing is kept
    for entry in reversed(kept):
        entry.child.stop(grace=3.0)
    return 0


def _recorded(directory: Path) -> Identity | None:
    try:
        return Identity(**json.loads((directory / _PROCESS).read_text()))
    except FileNotFoundError:
        return None


def _entries(directory: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads((directory / _STATUS).read_text())
    except FileNotFoundError:
        return []
    return entries


def _write_status(file: Path, kept: Sequence[_Kept]) -> None:
    entries = []
    for child in (entry.child for entry in kept):
        process = Identity.of(child.pid) if child.pid is not None else None
        identity = asdict(process) if process is not None else {"pid": None, "started": None}
        entries.append({"name": child.name, **identity, "log": str(child.log)})
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(entries))
    partial.rename(file)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
