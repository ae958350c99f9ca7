"""What no single claim can see: pools, claims and Nodes that have lost each other (S3, S5, S6, S7, S14)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, get_args

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import END, LAUNCH, ORDER, looks
from tests.unit.provisioner.world import WORKSPACE, World

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.cloud import Instance, State
from kaito_hooks.provisioner.errors import ConfigurationError, LaunchFailed, NotAllowed
from kaito_hooks.runtime import Forbidden, Obj, Resource

CLAIM = "ws000000001"
SWEEPS = Budget(reconciles=8, requests=5 * 3)
"""Ten minutes of them: a LIST each, and a GET of what is missing."""


@pytest.fixture(params=get_args(NodeAPI))
def world(request: pytest.FixtureRequest) -> World:
    world = World(node_api=request.param)
    world.ready_claim()
    return world


def orphan(world: World) -> None:
    """Somebody forces the claim away."""
    world.cluster.drop(resources.CLAIMS[world.node_api], CLAIM)


def test_a_pool_without_its_claim_is_deleted_in_the_second_sweep(world: World) -> None:
    orphan(world)
    world.sweep()
    assert world.billing() == [CLAIM]
    world.sweep()
    assert world.billing() == []


def test_after_the_orphaned_pool_its_node_goes(world: World) -> None:
    world.allow(SWEEPS)
    orphan(world)
    world.run(600, sweep=True)
    assert world.cloud.pools == {}
    assert world.node_of() is None


def test_only_pools_that_no_listed_claim_explains_are_asked_for_by_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ready_claim("ws00000000b")
    world.ready_claim("ws00000000c")
    orphan(world)
    asked: list[str] = []
    get = world.cluster.get

    def asking(resource: Resource, name: str, **options: Any) -> Obj:
        asked.append(name)
        return get(resource, name, **options)

    monkeypatch.setattr(world.cluster, "get", asking)
    world.sweep()
    assert set(asked) == {CLAIM}


def test_a_young_pool_is_left_alone(world: World) -> None:
    world.ask("ws00000000b")
    world.reconcile("ws00000000b")
    world.cluster.drop(resources.CLAIMS[world.node_api], "ws00000000b")
    world.sweep()
    world.clock.advance(29)
    world.sweep()
    assert "ws00000000b" in world.billing()


def test_a_pool_that_was_ordered_by_a_clock_ahead_of_ours_is_not_young_for_ever(world: World) -> None:
    """Whoever ordered it has died, or its clock was put right."""
    orphan(world)
    pool = world.cloud.pools[CLAIM]
    assert pool.created is not None
    pool.created += timedelta(days=400)
    world.sweep()
    world.sweep()
    assert world.billing() == []


def test_a_pool_of_an_older_claim_of_the_same_name_is_an_orphan(world: World) -> None:
    world.allow(LAUNCH + looks(400) + SWEEPS)
    orphan(world)
    world.ask()
    world.run(10)
    assert world.step_of("launched")[1] == "AgentPoolDeleting"
    world.run(600, sweep=True)
    claim = world.there()
    assert claim.ready
    assert world.cloud.created[-1] == claim.uid


def test_a_pool_of_a_claim_that_ends_without_our_finalizer_is_an_orphan(world: World) -> None:
    """Somebody took the finalizer away, and another one holds the claim: nobody else gives the machine back."""
    world.allow(SWEEPS + END)
    claim = world.there().object
    claim["metadata"]["finalizers"] = ["example.com/audit"]
    world.cluster.put(resources.CLAIMS[world.node_api], claim)
    world.cluster.delete(resources.CLAIMS[world.node_api], CLAIM)
    world.run(600, sweep=True)
    assert world.there().deleting
    assert world.cloud.pools == {}
    assert world.node_of() is None


def test_a_claim_that_comes_back_between_two_sweeps_keeps_its_pool(world: World) -> None:
    resource = resources.CLAIMS[world.node_api]
    kept = world.cluster.get(resource, CLAIM)
    orphan(world)
    world.sweep()
    world.cluster.put(resource, kept)
    world.sweep()
    assert world.billing() == [CLAIM]


def test_a_pool_that_upstream_made_is_collected_without_a_uid() -> None:
    world = World()
    world.cloud.add_foreign(
        CLAIM, {**WORKSPACE, "kaito.sh/machine-type": "gpu", "karpenter.sh/provisioner-name": "default"}
    )
    world.sweep()
    world.sweep()
    assert world.cloud.pools[CLAIM].state is State.DELETING


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"kaito.sh/workspace": "phi"},
        {"kaito.sh/machine-type": "gpu", "kaito.sh/workspace": "phi"},
        {"kaito.sh/machine-type": "gpu", "karpenter.sh/provisioner-name": "other", "kaito.sh/workspace": "phi"},
        {"kaito.sh/machine-type": "gpu", "karpenter.sh/nodepool": "kaito"},
    ],
    ids=["none", "workspace", "no owner", "other owner", "no workspace"],
)
def test_pools_that_only_look_like_ours_are_left_alone(labels: dict[str, str]) -> None:
    world = World()
    world.cloud.add_foreign(CLAIM, labels)
    for _ in range(3):
        world.sweep()
        world.clock.advance(200)
    assert world.cloud.pools[CLAIM].state is State.SUCCEEDED


def test_a_registered_claim_whose_pool_is_gone_is_deleted(world: World) -> None:
    world.allow(END)
    del world.cloud.pools[CLAIM]
    world.set_ready("Unknown")
    world.sweep()
    world.run(10)
    assert world.claim() is None
    assert world.node_of() is None


def test_a_working_node_keeps_its_claim_whatever_the_cloud_says(world: World) -> None:
    del world.cloud.pools[CLAIM]
    world.sweep()
    world.sweep()
    assert not world.there().deleting


def test_a_stale_listing_costs_nobody_a_machine(world: World) -> None:
    world.allow(Budget(reconciles=4, requests=3 * 3))
    world.cloud.hidden.add(CLAIM)
    world.set_ready("Unknown")
    for _ in range(3):
        world.sweep()
    world.run(60)
    assert not world.there().deleting
    assert world.billing() == [CLAIM]


@pytest.mark.parametrize("verb", ["list", "get"])
def test_a_refused_read_ends_the_sweep_without_harm(world: World, verb: str) -> None:
    orphan(world)
    world.sweep()
    world.cloud.refuse = lambda asked: ConfigurationError("ResourceNotFound", "the cluster") if asked == verb else None
    world.sweep()
    world.cloud.refuse = lambda asked: LaunchFailed("x", "x", transient=True) if asked == verb else None
    world.sweep()
    assert world.billing() == [CLAIM]


def test_a_pool_that_may_not_be_deleted_holds_up_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on one pool must not let all that comes after it bill for ever."""
    others = ("ws00000000b", "ws00000000c")
    for name in others:
        world.ready_claim(name)
    delete = world.cloud.delete

    def locked(instance: Instance) -> None:
        if instance.name == CLAIM:
            raise NotAllowed("ScopeLocked", "the scope is locked")
        delete(instance)

    monkeypatch.setattr(world.cloud, "delete", locked)
    orphan(world)
    world.cluster.drop(resources.CLAIMS[world.node_api], others[0])
    world.cloud.pools.pop(others[1])
    world.set_ready("Unknown", others[1])
    for _ in range(3):
        world.sweep()
        world.clock.advance(120)
    assert world.billing() == [CLAIM]
    assert (claim := world.claim(others[1])) is None or claim.deleting


def test_a_claim_that_may_not_be_deleted_holds_up_no_other(world: World) -> None:
    other = "ws00000000b"
    world.ready_claim(other)
    for name in (CLAIM, other):
        world.cloud.pools.pop(name)
        world.set_ready("Unknown", name)
    touch = world.cluster.touch

    def refuse(what: str, after: bool) -> None:
        if not after and what == f"delete {world.node_api} {CLAIM}":
            raise Forbidden("a policy forbids it", status=403, reason="Forbidden")
        touch(what, after)

    world.cluster.touch = refuse
    world.sweep()
    assert not world.there(CLAIM).deleting
    assert (claim := world.claim(other)) is None or claim.deleting


def test_claims_that_cannot_be_listed_cost_nobody_a_pool(world: World) -> None:
    world.cluster.unserved.add(resources.CLAIMS[world.node_api].plural)
    for _ in range(3):
        world.sweep()
        world.clock.advance(120)
    assert world.billing() == [CLAIM]


def test_a_change_of_the_node_api_deletes_nothing(world: World) -> None:
    world.allow(SWEEPS)
    world.node_api = "NodeClaim" if world.node_api == "Machine" else "Machine"
    world.start()
    world.run(600, sweep=True)
    assert world.billing() == [CLAIM]


def test_a_node_whose_claim_and_pool_are_gone_loses_our_finalizer(world: World) -> None:
    del world.cloud.pools[CLAIM]
    orphan(world)
    world.sweep()
    assert world.node_of() is not None
    world.sweep()
    assert world.node_of() is None


def test_a_node_of_somebody_else_keeps_its_finalizer() -> None:
    world = World()
    node = world.cluster.put(
        resources.NODE,
        {
            "metadata": {"name": "n", "labels": {"agentpool": "x"}, "finalizers": ["karpenter.sh/termination"]},
            "spec": {},
        },
    )
    world.sweep()
    world.sweep()
    assert world.cluster.find(resources.NODE, "n") == node


def test_a_machine_that_bills_without_its_node_object_is_given_back(world: World) -> None:
    node = world.node_of()
    assert node is not None
    world.cluster.drop(resources.NODE, node["metadata"]["name"])
    world.sweep()
    world.clock.advance(599)
    world.sweep()
    assert not world.there().deleting
    world.clock.advance(2)
    world.sweep()
    assert world.there().deleting


def test_a_stale_cache_buys_nothing_for_a_claim_that_is_gone() -> None:
    world = World()
    world.ask()
    world.sync()
    world.cluster.drop(resources.MACHINE, CLAIM)
    world.reconcile(CLAIM, sync=False)
    assert world.cloud.created == []


def test_the_states_of_our_pools_are_counted(world: World) -> None:
    world.sweep()
    gauge = world.env.metrics.pools
    assert gauge.labels("Succeeded")._value.get() == 1
    assert gauge.labels("Failed")._value.get() == 0


def test_a_node_of_an_older_claim_goes_although_another_pool_has_its_name(world: World) -> None:
    world.allow(ORDER + looks(10))
    node = world.node_of()
    assert node is not None
    world.cluster.drop(resources.NODE, node["metadata"]["name"])
    del world.cloud.pools[CLAIM]
    orphan(world)
    world.ask()
    world.run(10)
    world.cluster.put(resources.NODE, node)
    world.sweep()
    world.sweep()
    assert world.node_of() is None
    assert world.billing() == [CLAIM]
