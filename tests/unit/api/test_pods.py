"""Which Pods hold nothing of their node any more."""

from __future__ import annotations

from typing import Any

import pytest

from kaito_hooks.api.pods import has_ended


@pytest.mark.parametrize(
    ("pod", "ended"),
    [
        ({"status": {"phase": "Succeeded"}}, True),
        ({"status": {"phase": "Failed", "reason": "Evicted"}}, True),
        ({"status": {"phase": "Running"}}, False),
        ({"status": {"phase": "Pending"}}, False),
        ({"status": {"phase": "Unknown"}}, False),
        ({"metadata": {"deletionTimestamp": "2026-01-02T12:00:00Z"}, "status": {"phase": "Running"}}, False),
        ({"status": None}, False),
        ({}, False),
    ],
)
def test_a_pod_has_ended_when_its_phase_says_so_and_not_before(pod: dict[str, Any], ended: bool) -> None:
    assert has_ended(pod) is ended
