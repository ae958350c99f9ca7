"""Refusals that last: each is asked again when it is due, tells its cause, and costs no more than that."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, get_args

import pytest
from tests.driven.budget import Budget
from tests.taxonomy import Row
from tests.unit.provisioner.azure.refusals import AT_ONCE, JITTER, refusal
from tests.unit.provisioner.budget import END, FAILURE, LAUNCH, ORDER, looks
from tests.unit.provisioner.world import World

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.azure.errors import Refusal, classify, retry_after
from kaito_hooks.provisioner.cloud import State
from kaito_hooks.provisioner.errors import (
    AuthenticationFailed,
    CloudError,
    InsufficientCapacity,
    LaunchFailed,
    OperationInProgress,
    QuotaExceeded,
)

CLAIM = "ws000000001"
MINUTE = 60.0
DELETION = Budget(reconciles=2, requests=3)
"""Of a broken pool: a look, a GET and a DELETE."""
QUOTA = QuotaExceeded("QuotaExceeded", "not enough cores")
NOT_ALLOWED = AuthenticationFailed("AuthorizationFailed", "no role assignment")
BUSY = OperationInProgress("OperationNotAllowed", "another operation is in progress")


@pytest.fixture(params=get_args(NodeAPI))
def world(request: pytest.FixtureRequest) -> World:
    world = World(node_api=request.param)
    world.cloud.create_seconds = 10.0
    world.cloud.delete_seconds = 1.0
    return world


def asked(world: World, verb: str) -> int:
    return sum(found == verb for found, _ in world.cloud.requests)


def told(world: World) -> list[str]:
    """The reasons of the launch condition, one after the other; grows as time passes."""
    reasons = [world.step_of("launched")[1]]

    def note(what: str, after: bool) -> None:
        reason = world.step_of("launched")[1]
        if after and reason != reasons[-1]:
            reasons.append(reason)

    world.cluster.touch = note
    return reasons


@pytest.mark.parametrize("verb", ["get", "delete"])
@pytest.mark.parametrize(
    ("error", "pause"),
    [(BUSY, 30.0), (NOT_ALLOWED, MINUTE), (QUOTA, MINUTE)],
    ids=["busy", "not allowed", "a pause that is longer than a minute"],
)
def test_a_failed_pool_that_may_not_be_deleted_keeps_its_cause_and_is_tried_again_by_itself(
    world: World, error: CloudError, pause: float, verb: str
) -> None:
    tries = int(5 * MINUTE / pause)
    world.cloud.fail_creation = [QUOTA]
    world.allow(ORDER + looks(10) + FAILURE + tries * DELETION)
    world.ask()
    world.run(8)
    reasons = told(world)
    world.cloud.refuse = lambda asked: error if asked == verb else None
    before = asked(world, verb)
    world.run(5 * MINUTE)
    assert tries / JITTER - 1 <= asked(world, verb) - before <= tries
    assert reasons == ["AgentPoolCreating", "QuotaExceeded"]
    assert ("FailedTermination" in world.heard.reasons()) == (error is not BUSY)
    world.cloud.refuse = lambda asked: None
    world.allow(DELETION + looks(10) + ORDER + LAUNCH)
    world.run(pause * JITTER)
    assert world.billing() == []
    world.run(10 * MINUTE * JITTER)
    assert world.there().ready
    assert len(world.cloud.created) == 2


def test_a_deletion_that_fails_after_it_was_accepted_is_not_repeated_at_each_look(world: World) -> None:
    world.cloud.fail_creation = [QUOTA]
    world.cloud.fail_deletion = [LaunchFailed("InternalOperationError", "the scale set is stuck")] * 20
    world.allow(ORDER + looks(10) + FAILURE + 10 * DELETION)
    world.ask()
    world.run(8)
    reasons = told(world)
    world.run(5 * MINUTE)
    assert 4 <= asked(world, "delete") <= 5
    assert reasons == ["AgentPoolCreating", "QuotaExceeded"]


def test_a_failed_pool_that_somebody_else_deletes_is_not_sought_again_and_again(world: World) -> None:
    world.cloud.fail_creation = [QUOTA]

    def gone(what: str, after: bool) -> None:
        if after and world.step_of("launched")[1] == "QuotaExceeded":
            world.cloud.pools.pop(CLAIM, None)

    world.cluster.touch = gone
    world.allow(ORDER + looks(10) + FAILURE)
    world.ask()
    world.run(MINUTE)
    assert world.step_of("launched")[1] == "QuotaExceeded"
    assert asked(world, "delete") == 0


@pytest.mark.parametrize("header", ["0", "-3", "Thu, 01 Jan 2026 00:00:00 GMT"], ids=["0", "negative", "our past"])
def test_a_retry_after_that_says_nothing_is_no_leave_to_hurry(world: World, header: str) -> None:
    def refuse(verb: str) -> CloudError | None:
        wait = retry_after({"Retry-After": header}, world.clock.now())
        return classify(Refusal.of(429, {}, retry_after=wait)) if verb == "create" else None

    world.cloud.refuse = refuse
    world.allow(4 * ORDER)
    world.ask()
    world.run(30 + 60 + 120)
    assert 3 <= asked(world, "create") <= 4


def test_a_credential_that_needs_a_minute_costs_one_look_and_no_order(world: World) -> None:
    world.allow(Budget(reconciles=4, requests=1) + LAUNCH)
    world.cloud.refuse = lambda verb: NOT_ALLOWED
    world.ask()
    world.run(MINUTE)
    assert world.cloud.requests == [("list", "")]
    assert world.step_of("launched")[1] == "AuthenticationFailed"
    world.cloud.refuse = lambda verb: None
    world.run(MINUTE * (JITTER - 1))
    assert len(world.cloud.created) == 1, "a look was refused, not an order"
    world.run(MINUTE)
    assert world.there().ready


def test_after_a_look_that_was_refused_the_claim_tells_again_why_its_order_was(world: World) -> None:
    refusals: dict[str, CloudError] = {"create": QUOTA}
    world.cloud.refuse = refusals.get
    world.allow(3 * ORDER)
    world.ask()
    world.run(1)
    said = world.there().first_waiting()
    assert said is not None
    assert said[0] == "QuotaExceeded"
    refusals |= {"list": NOT_ALLOWED, "get": NOT_ALLOWED}
    world.cluster.patch(resources.CLAIMS[world.node_api], CLAIM, {"metadata": {"annotations": {"note": "hurry"}}})
    world.run(1)
    assert world.step_of("launched")[1] == "AuthenticationFailed"
    del refusals["list"], refusals["get"]
    world.run(MINUTE * JITTER)
    assert world.step_of("launched")[1] == "QuotaExceeded"


def test_a_pool_of_somebody_else_is_looked_at_once_a_minute_until_it_is_gone(world: World) -> None:
    world.cloud.add_foreign(CLAIM)
    world.allow(11 * Budget(reconciles=2, requests=1) + LAUNCH)
    world.ask()
    world.run(10 * MINUTE)
    assert 10 / JITTER - 1 <= asked(world, "list") <= 11
    assert world.step_of("launched")[1] == "PoolNameConflict"
    del world.cloud.pools[CLAIM]
    world.run(MINUTE * JITTER)
    assert len(world.cloud.created) == 1


# Any refusal, of any verb, at any time of a life

LONG = 10 * MINUTE
REFUSALS = {row.reason: row for row in AT_ONCE}
"""One of each class."""


def before_the_order(world: World) -> None:
    world.ask()


def while_the_pool_is_made(world: World) -> None:
    world.allow(ORDER + looks(30))
    world.ask()
    world.run(30)


def when_the_pool_has_failed(world: World) -> None:
    world.allow(LAUNCH)
    world.cloud.fail_creation = [InsufficientCapacity("AllocationFailed", "none left")]
    world.ask()
    world.run(178)


def at_its_end(world: World) -> None:
    world.ready_claim()
    world.give_back()


def allowed_tries(row: Row, *, longest: float) -> int:
    """How often that refusal may be asked for in ten minutes."""
    pauses = itertools.chain(row.retries, itertools.repeat(row.retries[-1]))
    moments = itertools.accumulate(min(pause, longest) for pause in pauses)
    return 1 + sum(1 for _ in itertools.takewhile(lambda moment: moment <= LONG, moments))


def settled(world: World) -> bool:
    claim: Any = world.claim()
    return claim is None or claim.ready


@pytest.mark.parametrize("row", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("verb", ["list", "get", "create", "delete"])
@pytest.mark.parametrize(
    "begin",
    [before_the_order, while_the_pool_is_made, when_the_pool_has_failed, at_its_end],
    ids=lambda begin: begin.__name__.replace("_", " "),
)
def test_ten_minutes_of_a_refusal_cost_what_the_table_allows_and_then_all_goes_on(
    begin: Callable[[World], None], verb: str, row: Row
) -> None:
    world = World()
    begin(world)
    world.cloud.refuse = lambda asked: refusal(row, world) if asked == verb else None
    # An end, a look and the deletion of a broken pool wait for a minute at most, an order as the table says.
    longest = LONG if begin is before_the_order else MINUTE
    world.allow(LAUNCH + FAILURE + END + allowed_tries(row, longest=longest) * ORDER)
    world.run(LONG)
    world.cloud.refuse = lambda asked: None
    world.allow(LAUNCH + FAILURE + END + 4 * ORDER)
    world.run(JITTER * (row.retries[-1] + 3 * MINUTE) + LONG)
    assert settled(world)
    assert [pool.state for pool in world.cloud.pools.values()] == [State.SUCCEEDED] * len(world.cloud.pools)
