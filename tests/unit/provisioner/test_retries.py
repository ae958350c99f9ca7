"""Each refusal of the taxonomy, from its wire form, over simulated hours: the tries come when the table says."""

from __future__ import annotations

import itertools
import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from azure.core.exceptions import ServiceRequestError
from tests.taxonomy import ROWS, THROTTLED, Row
from tests.unit.provisioner.world import World

from kaito_hooks.provisioner.azure_errors import Refusal, classify, from_sdk, retry_after
from kaito_hooks.provisioner.cloud import State
from kaito_hooks.provisioner.errors import CloudError, LaunchFailed, OperationInProgress
from kaito_local.aks import ready_made

JITTER = 1.2
LATER = [row for row in ROWS if "error" in ready_made()[row.name]]
AT_ONCE = [row for row in (*ROWS, *THROTTLED) if row not in LATER]


def refusal(row: Row, world: World) -> CloudError:
    """What the provisioner makes of that answer."""
    entry: Any = ready_made()[row.name]
    if "cut" in entry:
        return from_sdk(ServiceRequestError("the connection was cut"), world.clock.now())
    wait = retry_after(entry.get("headers") or {}, world.clock.now())
    return classify(Refusal.of(entry.get("status"), entry.get("body") or {}, retry_after=wait))


def failure(row: Row) -> CloudError:
    """What the provisioner makes of a pool that ended so."""
    entry: Any = ready_made()[row.name]
    found = Refusal.of(None, entry["error"])
    if entry.get("canceled"):
        return OperationInProgress(found.code, found.message)
    return classify(found) if entry["error"] else LaunchFailed("", "failed without an error")


def next_try(world: World) -> datetime | None:
    """The moment that the claim tells."""
    found = re.search(r" \(next try at (\S+)\)$", world.there().steps["launched"].message)
    return datetime.fromisoformat(found[1]) if found else None


@pytest.mark.parametrize("row", AT_ONCE, ids=lambda row: row.name)
def test_a_refused_order_is_tried_again_when_the_table_says(row: Row) -> None:
    world = World()
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
    step = row.retries[0] / 5
    world.run(JITTER * (sum(row.retries) + row.retries[-1]), step=step)
    assert len(tries) > len(row.retries)
    for (earlier, later), documented in zip(itertools.pairwise(tries), row.retries, strict=False):
        assert documented <= later - earlier <= documented * JITTER + 2 * step
    assert world.there().first_waiting() is not None
    assert world.step_of("launched")[1] == row.reason
    for documented, moment, came in zip(row.retries, announced, moments[1:], strict=False):
        if documented < 60:
            assert moment is None
        else:
            assert moment is not None
            assert timedelta(0) <= came - moment <= timedelta(seconds=1 + 2 * step)  # told to the second


@pytest.mark.parametrize("row", LATER, ids=lambda row: row.name)
def test_a_failed_pool_is_deleted_at_once_and_ordered_again_when_the_table_says(row: Row) -> None:
    world = World()
    world.cloud.create_seconds, world.cloud.delete_seconds = 10.0, 1.0
    world.cloud.fail_creation = [failure(row)] * 20
    tries: list[float] = []
    gone: list[float] = []
    world.cloud.touch = lambda what, after: (
        (tries if what.startswith("PUT") else gone).append(world.clock.monotonic()) if after else None
    )
    world.ask()
    step = max(1.0, row.retries[0] / 20)
    world.run(JITTER * sum(row.retries) + len(row.retries) * (world.cloud.create_seconds + 5 * step + 15), step=step)
    assert len(tries) > len(row.retries)
    for (earlier, later), documented in zip(itertools.pairwise(tries), row.retries, strict=False):
        waited = later - earlier - world.cloud.create_seconds
        assert documented <= waited <= documented * JITTER + 5 * step
    for began, ended in zip(tries, gone, strict=False):
        assert ended - began <= world.cloud.create_seconds + 5 * step


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
    world.run(5 * (60.0 + 30.0 * JITTER + 10.0), step=1.0)
    assert [name for name in names if not world.there(name).ready] == []
    assert len(world.cloud.created) == 5
    reasons = {reason for _, kind, reason, _ in world.heard.events if kind == "Warning"}
    assert "OperationInProgress" not in reasons, "waiting is no failure"
