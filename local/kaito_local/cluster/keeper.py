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

from kaito_local.errors import StartError
from kaito_local.machine.pki import write_private
from kaito_local.machine.processes import Child, Identity, last_lines
from kaito_local.machine.supervisor import Program, answers

_PROCESS = "keeper-process.json"
_TICK = 0.05
_LOOK_EVERY = 1.0
_BACKOFFS = (0.1, 0.5, 1.0, 2.0, 5.0)
_STEADY_SECONDS = 10.0


def start_keeper(directory: Path, programs: Sequence[Program], *, until: Identity | None = None) -> None:
    """Starts a keeper in the background; it outlives this command. Raises StartError if it does not come up."""
    plan = directory / "keeper.json"
    status = directory / "keeper-status.json"
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
    """The keeper of this cluster, if it runs."""
    try:
        identity = Identity(**json.loads((directory / _PROCESS).read_text()))
    except FileNotFoundError:
        return None
    return identity if identity.alive() else None


def stop_keeper(directory: Path) -> None:
    """Ends the keeper and what it keeps. Idempotent."""
    identity = running_keeper(directory)
    if identity is not None and not identity.kill(signal.SIGTERM, wait=10.0):
        identity.kill(signal.SIGKILL)
    (directory / _PROCESS).unlink(missing_ok=True)


def kept_programs(directory: Path) -> list[tuple[str, int | None, Path]]:
    """Name, pid (None: waiting to be started) and log of what the keeper of this cluster keeps."""
    try:
        entries = json.loads((directory / "keeper-status.json").read_text())
    except FileNotFoundError:
        return []
    return [(entry["name"], entry["pid"], Path(entry["log"])) for entry in entries]


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
    while not stopping and (until is None or until.alive()):
        # Not any(): every program is tended in every round.
        if sum(entry.tend() for entry in kept):
            _write_status(status, kept)
        waiting = any(not entry.child.alive() for entry in kept)
        if select.select([woken], [], [], _TICK if waiting else _LOOK_EVERY)[0]:
            os.read(woken, 1024)
    for entry in reversed(kept):
        entry.child.stop(grace=3.0)
    return 0


def _write_status(file: Path, kept: Sequence[_Kept]) -> None:
    entries = [{"name": entry.child.name, "pid": entry.child.pid, "log": str(entry.child.log)} for entry in kept]
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(entries))
    partial.rename(file)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
