"""The summary of a run by rooms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.rooms import by_room, room_of


@dataclass(frozen=True)
class Phase:
    nodeid: str
    duration: float


@pytest.mark.parametrize(
    ("nodeid", "room"),
    [
        ("tests/unit/provisioner/test_drain.py::test_a", "unit/provisioner"),
        ("tests/cluster/workspace/deeper/test_b.py::test_b[a/b::c]", "cluster/workspace"),
        ("tests/demo/test_nodes.py::test_c", "demo"),
        ("tests/test_d.py::test_d", "tests"),
    ],
)
def test_a_test_belongs_to_the_room_of_its_folder(nodeid: str, room: str) -> None:
    assert room_of(nodeid) == room


def test_a_room_counts_each_test_once_and_all_of_its_phases() -> None:
    one, two, other = "tests/unit/b/t.py::one", "tests/unit/b/t.py::two", "tests/unit/a/t.py::one"
    found = by_room([Phase(one, 1.0), Phase(one, 0.5), Phase(other, 4.0), Phase(two, 2.0)])
    assert list(found) == ["unit/a", "unit/b"]
    assert {name: (len(room.tests), room.seconds) for name, room in found.items()} == {
        "unit/a": (1, 4.0),
        "unit/b": (2, 3.5),
    }
