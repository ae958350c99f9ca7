"""How long each room of the tests took, told at the end of a run.

A room is ``tests/<tier>/<package>``, such as ``unit/provisioner``; files that lie in a tier itself belong to the room
of the tier's name. Seconds are those of set-up, test and tear-down, added up over all processes of pytest-xdist; a
fixture that tests share counts for the test that needs it first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

import pytest


class Report(Protocol):
    """What of pytest's report of a phase of a test counts here."""

    nodeid: str
    duration: float


@dataclass(slots=True)
class Room:
    """The tests of a room that ran, and their seconds."""

    tests: set[str] = field(default_factory=set)
    seconds: float = 0.0


def room_of(nodeid: str) -> str:
    """The name of a test's room."""
    folders = PurePosixPath(nodeid.partition("::")[0]).parent.parts
    return "/".join(folders[1:3]) or "tests"


def by_room(reports: Iterable[Report]) -> dict[str, Room]:
    """Rooms by name, in alphabetical order."""
    found: dict[str, Room] = {}
    for report in reports:
        room = found.setdefault(room_of(report.nodeid), Room())
        room.tests.add(report.nodeid)
        room.seconds += report.duration
    return dict(sorted(found.items()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each room, and one for all of them; pytest-xdist hands every worker's reports to this process."""
    reports = [
        report for kind in terminalreporter.stats.values() for report in kind if isinstance(report, pytest.TestReport)
    ]
    rooms = by_room(reports)
    if not rooms:
        return
    terminalreporter.section("rooms")
    width = max(map(len, rooms))
    for name, room in rooms.items():
        terminalreporter.write_line(f"{name:{width}}  {len(room.tests):5} tests  {room.seconds:8.1f} s")
    total = sum(room.seconds for room in rooms.values())
    terminalreporter.write_line(f"{'all':{width}}  {sum(len(r.tests) for r in rooms.values()):5} tests  {total:8.1f} s")
