"""The supervisor of a cluster's and a node's programs, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.eventually import eventually

from kaito_local.machine.supervisor import Program

_RUN = """
import json, sys
from pathlib import Path
from kaito_local.machine.supervisor import Program, Supervisor
Supervisor([Program.read(p) for p in json.loads(sys.argv[1])], status_file=Path(sys.argv[2])).run()
"""


class Running:
    def __init__(self, folder: Path, programs: list[Program]) -> None:
        self.status_file = folder / "status.json"
        arguments = [json.dumps([program.write() for program in programs]), str(self.status_file)]
        self.process = subprocess.Popen([sys.executable, "-c", _RUN, *arguments], stderr=subprocess.DEVNULL)

    def status(self, name: str) -> dict[str, Any]:
        if not self.status_file.exists():
            return {"pid": 0, "starts": 0, "last_exit": ""}
        entries = json.loads(self.status_file.read_text())
        return next(entry for entry in entries if entry["name"] == name)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    begun: list[Running] = []

    def begin(*programs: Program) -> Running:
        begun.append(Running(tmp_path, list(programs)))
        return begun[-1]

    yield begin
    for running in begun:
        entries = json.loads(running.status_file.read_text()) if running.status_file.exists() else []
        running.process.kill()
        running.process.wait()
        for entry in entries:
            if entry["pid"]:
                with suppress(ProcessLookupError):
                    os.kill(entry["pid"], signal.SIGKILL)


def program(tmp_path: Path, name: str, *command: str, **more: Any) -> Program:
    return Program(name, command, str(tmp_path / f"{name}.log"), **more)


def test_a_killed_program_runs_again_and_its_end_is_told(tmp_path: Path, start: Callable[..., Running]) -> None:
    running = start(program(tmp_path, "sleeper", "/bin/sleep", "600"))
    eventually(lambda: running.status("sleeper")["pid"] > 0)
    first = running.status("sleeper")["pid"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: running.status("sleeper")["starts"] == 2)
    again = running.status("sleeper")
    assert again["pid"] not in (0, first)
    assert again["last_exit"] == "signal 9"


def test_a_program_waits_for_the_file_of_another(tmp_path: Path, start: Callable[..., Running]) -> None:
    socket = tmp_path / "socket"
    running = start(program(tmp_path, "client", "/bin/sleep", "600", after=str(socket)))
    eventually(running.status_file.exists)
    assert running.status("client")["starts"] == 0
    socket.touch()
    eventually(lambda: running.status("client")["starts"] == 1)


def test_a_program_that_cannot_start_is_tried_less_and_less_often(
    tmp_path: Path, start: Callable[..., Running]
) -> None:
    began = time.monotonic()
    running = start(program(tmp_path, "missing", "/nonexistent"), program(tmp_path, "other", "/bin/sleep", "600"))
    eventually(lambda: running.status("missing")["starts"] >= 3)
    assert running.status("missing")["last_exit"] == "exit 127"
    assert "cannot start /nonexistent" in (tmp_path / "missing.log").read_text()
    assert running.status("other")["starts"] == 1
    # After 0.1, 0.2, 0.4, 0.8, 1.6 s: the n-th start comes 0.1 * (2**(n-1) - 1) s after the first, or later.
    starts = running.status("missing")["starts"]
    assert 0.1 * (2 ** (min(starts, 6) - 1) - 1) <= time.monotonic() - began


def test_a_program_survives_the_way_through_a_file() -> None:
    described = Program("a", ("/bin/a", "-x"), "/log", environment={"A": "1"}, after="127.0.0.1:1", delay=2.0)
    assert Program.read(json.loads(json.dumps(described.write()))) == described
