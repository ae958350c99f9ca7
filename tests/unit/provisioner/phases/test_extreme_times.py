"""Times and durations that the API server takes and a calendar does not hold: a machine is given back all the same."""

from __future__ import annotations

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import DRAIN, END, LAUNCH
from tests.unit.provisioner.world import World

from kaito_hooks.provisioner import resources

CLAIM = "ws000000001"
NODE_CLAIMS = resources.CLAIMS["NodeClaim"]
EXTREME = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0000-01-01T00:00:00Z", "tomorrow"]
HUGE = 2**63 - 1
"""The largest number of seconds that the API server takes of a Pod."""


@pytest.fixture
def world() -> World:
    return World(node_api="NodeClaim")


def ends(world: World, *, within: Budget) -> None:
    """The claim is given back, and nothing is left of it."""
    world.give_back()
    world.allow(within)
    world.run(900)
    assert world.billing() == []
    assert world.claim() is None


@pytest.mark.parametrize("grace", ["100000000h", "99999999999999999999h"])
def test_a_grace_period_beyond_the_calendar_holds_no_machine(world: World, grace: str) -> None:
    world.ready_claim()
    claim = world.there().object
    claim["spec"]["terminationGracePeriod"] = grace
    world.cluster.put(NODE_CLAIMS, claim)
    ends(world, within=END + END)


@pytest.mark.parametrize("text", EXTREME)
@pytest.mark.parametrize("annotation", ["karpenter.sh/nodeclaim-termination-timestamp", "kaito.sh/pool-succeeded-at"])
def test_an_annotation_with_a_time_that_is_none_holds_no_machine(world: World, annotation: str, text: str) -> None:
    claim = world.ask()
    claim["metadata"].setdefault("annotations", {})[annotation] = text
    world.cluster.put(NODE_CLAIMS, claim)
    world.allow(LAUNCH + LAUNCH)
    world.run(205)
    ends(world, within=END + END)


@pytest.mark.parametrize("evictable", [True, False], ids=["may be evicted", "must not be disrupted"])
def test_a_pod_with_the_largest_grace_of_its_own_leaves_by_the_claim_s_deadline(world: World, evictable: bool) -> None:
    world.ready_claim()
    node = world.node_of()
    assert node is not None
    annotations = {} if evictable else {"karpenter.sh/do-not-disrupt": "true"}
    metadata = {"annotations": annotations}
    world.add_pod("slow", node["metadata"]["name"], terminationGracePeriodSeconds=HUGE, metadata=metadata)
    claim = world.there().object
    claim["spec"]["terminationGracePeriod"] = "5m"
    world.cluster.put(NODE_CLAIMS, claim)
    ends(world, within=END + 10 * DRAIN)


def test_a_pod_that_ends_with_the_largest_grace_is_waited_for_until_the_deadline(world: World) -> None:
    world.ready_claim()
    node = world.node_of()
    assert node is not None
    metadata = {"deletionTimestamp": "9999-12-31T23:59:59Z", "deletionGracePeriodSeconds": HUGE}
    world.add_pod("slow", node["metadata"]["name"], metadata=metadata)
    claim = world.there().object
    claim["spec"]["terminationGracePeriod"] = "5m"
    world.cluster.put(NODE_CLAIMS, claim)
    ends(world, within=END + 10 * DRAIN)
