"""Each refusal of the taxonomy, from its wire form, over simulated hours: the tries come when the table says."""

from __future__ import annotations

import itertools
import re
from datetime import datetime, timedelta

import pytest
from tests.taxonomy import Row
from tests.unit.provisioner.azure.refusals import AT_ONCE, JITTER, LATER, failure, refusal
from tests.unit.provisioner.budget import FAILURE, LAUNCH, ORDER, looks
from tests.unit.provisioner.world import World

from kaito_hooks.provisioner.cloud import State
from kaito_hooks.provisioner.errors import CloudError, OperationInProgress

AT_ITS_TIME = 0.1
"""Seconds that a try may come late: the requests before it."""
LOOK = 5.5
"""Seconds until what became of a young pool is seen, and a bit."""


def next_try(world: World) -> datetime | None:
    """The moment that the claim tells."""
    found = re.search(r" \(next try at (\S+)\)$", world.there().steps["launched"].message)
    return datetime.fromisoformat(found[1]) if found else None


@pytest.mark.parametrize("row", AT_ONCE, ids=lambda row: row.name)
def test_a_refused_order_is_tried_again_when_the_table_says(row: Row) -> None:
    world = World()
    world.allow((len(row.retries) + 2) * ORDER)
    tries: list[float] = []
    announced: list[datetime | None] = []
    moments: list[datetime] = []

    def refuse(verb: str) -> CloudError | None:
        if verb != "create":
            return None
        if tries:
            announced.append(next_try(world))
        tries.append(world.clock.monotonic())
        moments.append(world.clock.now())
        return refusal(row, world)

    world.cloud.refuse = refuse
    world.ask()
    world.run(JITTER * sum(row.retries) + 5)
    assert len(tries) > len(row.retries)
    for (earlier, later), documented in zip(itertools.pairwise(tries), row.retries, strict=False):
        assert documented <= later - earlier <= documented * JITTER + AT_ITS_TIME
    assert world.there().first_waiting() is not None
    assert world.step_of("launched")[1] == row.reason
    for documented, moment, came in zip(row.retries, announced, moments[1:], strict=False):
        if documented < 60:
            assert moment is None
        else:
            assert moment is not None
            assert timedelta(0) <= came - moment <= timedelta(seconds=1 + AT_ITS_TIME)  # told to the second


@pytest.mark.parametrize("row", LATER, ids=lambda row: row.name)
def test_a_failed_pool_is_deleted_at_once_and_ordered_again_when_the_table_says(row: Row) -> None:
    world = World()
    world.cloud.create_seconds, world.cloud.delete_seconds = 10.0, 1.0
    world.allow((len(row.retries) + 2) * (ORDER + looks(10) + FAILURE + looks(10)))
    world.cloud.fail_creation = [failure(row)] * 20
    tries: list[float] = []
    gone: list[float] = []
    world.cloud.touch = lambda what, after: (
        (tries if what.startswith("PUT") else gone).append(world.clock.monotonic()) if after else None
    )
    world.ask()
    world.run(JITTER * sum(row.retries) + (len(row.retries) + 1) * (world.cloud.create_seconds + LOOK))
    assert len(tries) > len(row.retries)
    for (earlier, later), documented in zip(itertools.pairwise(tries), row.retries, strict=False):
        waited = later - earlier - world.cloud.create_seconds
        assert documented <= waited <= documented * JITTER + LOOK
    for began, ended in zip(tries, gone, strict=False):
        assert ended - began <= world.cloud.create_seconds + LOOK


def test_claims_take_turns_on_a_cluster_that_takes_one_operation_at_a_time() -> None:
    world = World()
    world.cloud.create_seconds = 60.0
    names = [f"ws00000000{number}" for number in range(5)]

    def busy(verb: str) -> CloudError | None:
        others = [pool for pool in world.cloud.pools.values() if pool.state is State.CREATING]
        text = "Another operation (nodepool1 - Updating) is in progress"
        return OperationInProgress("OperationNotAllowed", text) if verb == "create" and others else None

    world.cloud.refuse = busy
    for name in names:
        world.ask(name)
    world.allow(5 * LAUNCH + 5 * 18 * ORDER)
    world.run(5 * (60.0 + 30.0 * JITTER + 10.0))
    assert [name for name in names if not world.there(name).ready] == []
    assert len(world.cloud.created) == 5
    reasons = {reason for _, kind, reason, _ in world.heard.events if kind == "Warning"}
    assert "OperationInProgress" not in reasons, "waiting is no failure"
