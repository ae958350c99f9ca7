"""A deletion that the cloud accepts and then fails at is told, and tried again after a pause."""

from __future__ import annotations

from typing import get_args

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import END
from tests.unit.provisioner.world import World

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.provisioner.cloud import State
from kaito_hooks.provisioner.errors import CloudError, LaunchFailed, OperationInProgress

CLAIM = "ws000000001"
TRY = Budget(reconciles=8, requests=8)
"""A deletion of ten seconds, looked at every 5 s, and what is told when it has failed."""
CAUSE = LaunchFailed("DeleteVMSSAgentPoolFailed", "the subnet is still in use")


@pytest.fixture(params=get_args(NodeAPI))
def world(request: pytest.FixtureRequest) -> World:
    world = World(node_api=request.param)
    world.ready_claim()
    return world


def fail_deletions(world: World, error: CloudError | None, *, state: State = State.FAILED, after: float = 10.0) -> None:
    """Every deletion that the cloud accepts ends in ``state``, ``after`` seconds later."""
    world.cloud.delete_seconds = after
    tick = world.cloud.tick

    def work() -> None:
        pool = world.cloud.pools.get(CLAIM)
        if pool is not None and pool.state is State.DELETING and world.clock.monotonic() >= pool.done_at:
            pool.state, pool.etag, pool.error = state, f"{pool.etag}-failed", error
        tick()

    world.cloud.tick = work  # type: ignore[method-assign]


def asked(world: World, verb: str) -> int:
    return sum(found == verb for found, _ in world.cloud.requests)


@pytest.mark.parametrize("error", [CAUSE, None], ids=["with an error", "without one"])
def test_a_deletion_that_fails_later_is_told_and_tried_again_after_a_pause(
    world: World, error: CloudError | None
) -> None:
    world.allow(END + 10 * TRY)
    fail_deletions(world, error)
    world.give_back()
    world.run(600)
    # Ten seconds of trying and a minute of pause, with a fifth of jitter.
    assert 600 / (10 + 5 + 72) - 1 <= asked(world, "delete") <= 600 / (10 + 60) + 1
    told = [message for _, _, reason, message in world.heard.events if reason == "FailedTermination"]
    assert len(told) >= asked(world, "delete") - 1
    cause = error.message if error is not None else "unknown"
    assert all(cause in message for message in told)
    assert world.claim() is not None


def test_during_the_pause_the_condition_tells_the_cause(world: World) -> None:
    world.allow(END + TRY)
    fail_deletions(world, CAUSE)
    world.give_back()
    world.run(30)
    assert CAUSE.message in world.there().ending()
    before = asked(world, "get")
    world.run(30)
    assert CAUSE.message in world.there().ending()
    assert asked(world, "get") == before


def test_a_deletion_that_somebody_else_canceled_is_no_failure(world: World) -> None:
    world.allow(END + 4 * TRY)
    fail_deletions(world, OperationInProgress("OperationCanceled", "preempted"), state=State.CANCELED)
    world.give_back()
    world.run(120)
    assert "FailedTermination" not in world.heard.reasons()
    assert 2 <= asked(world, "delete") <= 4


def test_a_deletion_that_succeeds_at_last_ends_the_claim(world: World) -> None:
    world.allow(END + 2 * TRY)
    working = world.cloud.tick
    fail_deletions(world, CAUSE)
    world.give_back()
    world.run(60)
    world.cloud.tick = working  # type: ignore[method-assign]
    world.run(120)
    assert world.claim() is None
    assert world.cloud.pools == {}


def test_a_pool_that_had_failed_before_its_claim_went_is_deleted_at_once(world: World) -> None:
    world.allow(END)
    pool = world.cloud.pools[CLAIM]
    pool.state, pool.error, pool.etag = State.FAILED, CAUSE, "failed-before"
    world.give_back()
    world.run(5)
    assert world.cloud.pools[CLAIM].state is State.DELETING
    assert "FailedTermination" not in world.heard.reasons()
