"""docs/conditions.md explains every reason that the controllers write, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.docs import reasons

PAGE = (Path(__file__).parents[3] / "docs" / "conditions.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.partition("## Workspace\n")[2].splitlines()
    if line.startswith("| `")
]


@pytest.fixture(scope="module")
def written() -> dict[str, set[str]]:
    return reasons.written()


def explained() -> set[str]:
    return {reason for row in ROWS for reason in re.findall(r"`([^`]+)`", row[0])}


def test_every_reason_that_is_written_is_explained(written: dict[str, set[str]]) -> None:
    missing = {reason: sorted(places) for reason, places in written.items() if reason not in explained()}
    assert not missing, f"docs/conditions.md must say what these mean and what to do: {missing}"


def test_every_reason_that_is_explained_is_written(written: dict[str, set[str]]) -> None:
    assert explained() - written.keys() == set(), "docs/conditions.md explains reasons that nobody writes"


def test_each_reason_has_its_meaning_and_what_to_do() -> None:
    assert ROWS
    assert [row for row in ROWS if len(row) < 3 or any(not cell.strip(" |") for cell in row)] == []


def test_reasons_are_followed_through_variables_parameters_and_loops(written: dict[str, set[str]]) -> None:
    """One of each way in which the source says a reason, by the specification of the two APIs."""
    literal, of_a_condition, of_a_parameter, of_a_loop, of_a_class, of_a_mapping, joined = (
        "RollStarted",
        "machineFailedCreation",
        "WorkspaceInferenceStatusFailed",
        "AwaitingVolumeDetachment",
        "QuotaExceeded",
        "Registered",
        "CreatedNodeClaim",
    )
    assert {literal, of_a_condition, of_a_parameter, of_a_loop, of_a_class, of_a_mapping, joined} <= written.keys()
