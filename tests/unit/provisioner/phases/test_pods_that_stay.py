"""Pods that may not leave a Node hold it alone, are named with the reason, and not for ever: the machine bills."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import DRAIN, END, LAUNCH
from tests.unit.provisioner.world import World

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.cloud import State
from kaito_hooks.runtime import (
    ApiError,
    BadRequest,
    ConnectionFailed,
    Forbidden,
    InternalError,
    Invalid,
    Obj,
    ObjectList,
    Resource,
    TooManyRequests,
)

CLAIM = "ws000000001"
NODE = f"aks-{CLAIM}-12345678-vmss000000"
PROTECTED = {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}
REFUSALS = {
    "budget": TooManyRequests("it would violate the budget", status=429),
    "broken budget": InternalError("two budgets match it", status=500),
    "namespace that ends": Forbidden("the namespace is being terminated", status=403, reason="Forbidden"),
    "admission policy": Forbidden("policy: keep it", status=403, reason="Forbidden"),
    "bad request": BadRequest("name in URL does not match", status=400),
    "invalid": Invalid("spec: Forbidden", status=422),
}


def drain(seconds: float) -> Budget:
    """A Pod that goes, and others that are asked again every ten seconds, and at first after 1, 2, 4 and 8."""
    return DRAIN + Budget(reconciles=int(seconds / 10) + 15, requests=0)


@pytest.fixture(params=get_args(NodeAPI))
def world(request: pytest.FixtureRequest) -> World:
    return held(World(node_api=request.param))


def held(world: World) -> World:
    """A Node with two Pods, stubborn and willing; the kubelet ends those who must go."""
    world.ready_claim()
    for name in ("stubborn", "willing"):
        world.add_pod(name, node_name(world))
    return world


def node_name(world: World) -> str:
    node = world.node_of()
    assert node is not None
    return str(node["metadata"]["name"])


def refuse(world: World, errors: Mapping[str, ApiError], *, deletions: bool = False) -> None:
    """Evictions of these Pods, and if asked for deletions, too, are answered so."""
    create: Callable[..., Obj] = world.cluster.create
    delete: Callable[..., Obj | None] = world.cluster.delete

    def evict(resource: Resource, obj: Obj, **options: Any) -> Obj:
        if options.get("subresource") == "eviction" and options["name"] in errors:
            raise errors[options["name"]]
        return create(resource, obj, **options)

    def remove(resource: Resource, name: str, **options: Any) -> Obj | None:
        if deletions and resource.kind == "Pod" and name in errors:
            raise errors[name]
        return delete(resource, name, **options)

    world.cluster.create = evict  # type: ignore[method-assign]
    world.cluster.delete = remove  # type: ignore[method-assign]


def pod(world: World, name: str) -> Obj | None:
    return world.cluster.find(resources.POD, name, "default")


def told(world: World, name: str) -> list[str]:
    """FailedDraining of that object."""
    return [message for about, _, reason, message in world.heard.events if (about, reason) == (name, "FailedDraining")]


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refused_eviction_stops_nobody_elses_and_is_told_on_claim_node_and_pod(world: World, kind: str) -> None:
    world.allow(drain(60))
    refuse(world, {"stubborn": REFUSALS[kind]})
    world.give_back()
    world.run(60)
    assert pod(world, "willing") is None
    assert pod(world, "stubborn") is not None
    for name in (CLAIM, node_name(world), "stubborn"):
        said = told(world, name)
        assert any(f"default/stubborn cannot be evicted from Node {node_name(world)}" in text for text in said)
        assert any(REFUSALS[kind].message in text for text in said)
    ending = world.there().ending()
    assert f"default/stubborn: {REFUSALS[kind].message}" in ending
    assert "willing" not in ending


def test_an_api_server_that_does_not_answer_is_no_refusal_of_a_pod(world: World) -> None:
    world.allow(drain(30))
    refuse(world, {"stubborn": ConnectionFailed("no answer")})
    world.give_back()
    world.run(30)
    assert told(world, "stubborn") == []


def test_a_pod_that_must_not_be_disrupted_is_named_with_the_reason(world: World) -> None:
    world.allow(drain(60))
    world.add_pod("protected", node_name(world), metadata=PROTECTED)
    world.give_back()
    world.run(60)
    assert world.billing() == [CLAIM]
    for name in (CLAIM, node_name(world), "protected"):
        assert any("karpenter.sh/do-not-disrupt" in text for text in told(world, name))
    assert "default/protected: its annotation karpenter.sh/do-not-disrupt" in world.there().ending()


def test_a_refused_deletion_at_the_deadline_stops_nobody_elses(world: World) -> None:
    world.allow(drain(3600) + END)
    errors = {name: Forbidden("keep it", status=403) for name in ("stubborn", "a-second")}
    world.add_pod("a-second", node_name(world))
    refuse(world, errors, deletions=True)
    world.give_back()
    world.run(3600 - 20)
    assert pod(world, "willing") is None
    assert "default/a-second: keep it" in world.there().ending()
    assert "default/stubborn: keep it" in world.there().ending()
    world.run(200)
    assert world.claim() is None, "after the deadline nobody holds the machine"


def test_pods_of_a_machine_that_is_gone_release_its_node_whatever_is_refused(world: World) -> None:
    world.allow(END)
    refuse(world, {"stubborn": Forbidden("keep it", status=403)}, deletions=True)
    del world.cloud.pools[CLAIM]
    world.set_ready("Unknown")
    world.give_back()
    world.run(10)
    assert world.claim() is None
    assert world.node_of() is None
    assert any("keep it" in text for text in told(world, "stubborn"))


@pytest.mark.parametrize("metadata", [{}, PROTECTED], ids=["budget", "do-not-disrupt"])
def test_after_an_hour_whoever_is_left_is_deleted(world: World, metadata: Obj) -> None:
    world.allow(drain(3600) + END)
    world.add_pod("last", node_name(world), metadata=metadata)
    world.cluster.protected_pods.add("last")
    world.give_back()
    world.run(3500)
    assert world.billing() == [CLAIM]
    assert "is deleted" in world.there().ending()
    world.run(300)
    assert world.claim() is None
    assert world.cloud.pools == {}


def test_the_claims_own_deadline_wins() -> None:
    world = World(node_api="NodeClaim", termination_grace_period=60.0)
    world.allow(LAUNCH + drain(600) + END)
    claim = world.ask()
    claim["spec"]["terminationGracePeriod"] = "10m"
    world.cluster.put(resources.NODE_CLAIM, claim)
    world.run(200)
    world.add_pod("last", node_name(world))
    world.cluster.protected_pods.add("last")
    world.give_back()
    world.run(500)
    assert world.billing() == [CLAIM]
    world.run(300)
    assert world.claim() is None


def test_the_deadline_does_not_move_with_a_restart(world: World) -> None:
    world.allow(drain(3600) + END)
    world.cluster.protected_pods.add("stubborn")
    world.give_back()
    world.run(3000)
    world.start()
    world.run(900)
    assert world.claim() is None


def test_while_a_budget_holds_the_node_is_searched_when_the_next_eviction_is_due(world: World) -> None:
    world.allow(drain(600))
    world.cluster.protected_pods.add("stubborn")
    world.give_back()
    asked: list[float] = []
    every = world.cluster.list

    def listed(resource: Resource, **options: Any) -> ObjectList:
        if resource.kind == "Pod":
            asked.append(world.clock.monotonic())
        return every(resource, **options)

    world.cluster.list = listed  # type: ignore[method-assign]
    world.run(600)
    # Once the willing one has left: every ten seconds, and at first 1, 2, 4, 8.
    assert len(asked) <= 600 / 10 + 15


def attach(world: World, name: str, volume: str) -> None:
    spec = {"nodeName": node_name(world), "attacher": "disk", "source": {"persistentVolumeName": volume}}
    world.cluster.put(resources.VOLUME_ATTACHMENT, {"metadata": {"name": name}, "spec": spec})


def bind(world: World, claim: str, volume: str) -> None:
    metadata = {"name": claim, "namespace": "default"}
    world.cluster.put(resources.PERSISTENT_VOLUME_CLAIM, {"metadata": metadata, "spec": {"volumeName": volume}})


STAYS = {"tolerations": [{"operator": "Exists"}]}


@pytest.mark.parametrize(
    "volumes",
    [
        [{"name": "data", "persistentVolumeClaim": {"claimName": "agent-data"}}],
        [{"name": "data", "ephemeral": {"volumeClaimTemplate": {}}}],
    ],
    ids=["claim", "ephemeral"],
)
def test_a_volume_of_a_pod_that_stays_does_not_hold_the_machine(world: World, volumes: list[Obj]) -> None:
    world.allow(drain(30) + END)
    world.add_pod("agent", node_name(world), volumes=volumes, **STAYS)
    bind(world, "agent-data", "pv-1")
    attach(world, "of-the-agent", "pv-1")
    world.give_back()
    world.run(90)
    assert world.claim() is None or world.cloud.pools[CLAIM].state is State.DELETING


@pytest.mark.parametrize("volume", ["pv-2", ""], ids=["of another", "inline"])
def test_any_other_volume_does(world: World, volume: str) -> None:
    world.allow(drain(30) + Budget(reconciles=18, requests=0) + END)
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "gone"}}]
    world.add_pod("agent", node_name(world), volumes=volumes, **STAYS)
    attach(world, "of-another", volume)
    world.give_back()
    world.run(90)
    assert world.billing() == [CLAIM]
    assert "volumes that are still attached" in world.there().ending()
    world.cluster.drop(resources.VOLUME_ATTACHMENT, "of-another")
    world.run(90)
    assert world.claim() is None


def blocked(world: World) -> float | None:
    """What the metric says of the Node that is drained."""
    return world.registry.get_sample_value("kaito_provisioner_drain_blocked_seconds", {"node": NODE})


def test_how_long_a_node_is_held_is_told_until_nobody_refuses_any_more(world: World) -> None:
    world.allow(drain(1200))
    refused: dict[str, ApiError] = {"stubborn": REFUSALS["budget"]}
    refuse(world, refused)
    assert node_name(world) == NODE
    world.give_back()
    world.run(600)
    assert 580 <= (blocked(world) or 0) <= 600
    refused.clear()
    stubborn = pod(world, "stubborn")
    assert stubborn is not None
    stubborn["spec"]["terminationGracePeriodSeconds"] = 300
    world.cluster.put(resources.POD, stubborn)
    world.run(30)
    assert pod(world, "stubborn") is not None, "it is on its way, which takes it minutes"
    assert blocked(world) is None


def test_a_node_that_somebody_took_away_is_not_told_as_held(world: World) -> None:
    world.allow(drain(900) + END)
    refuse(world, {"stubborn": REFUSALS["budget"]})
    world.give_back()
    world.run(600)
    assert blocked(world)
    world.cluster.drop(resources.NODE, NODE)
    world.run(240)
    assert world.claim() is None
    assert blocked(world) is None
