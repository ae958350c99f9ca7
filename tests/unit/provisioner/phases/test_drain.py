"""Who is asked to leave a Node, when, and what is done at the deadline (S12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import DRAIN, END, LAUNCH
from tests.unit.provisioner.world import World

from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.cloud import State
from kaito_hooks.provisioner.phases import drain
from kaito_hooks.runtime import Obj, ObjectList, Resource, format_time

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def pod(name: str, *, owner: str = "ReplicaSet", priority: str = "", deleted: float | None = None, **spec: Any) -> Obj:
    metadata: Obj = {"name": name, "namespace": "default", "uid": name, "ownerReferences": [{"kind": owner}]}
    metadata |= spec.pop("metadata", {})
    if deleted is not None:
        metadata["deletionTimestamp"] = format_time(NOW + timedelta(seconds=deleted))
    status = spec.pop("status", {"phase": "Running"})
    return {"metadata": metadata, "spec": {"priorityClassName": priority, **spec}, "status": status}


def names(pods: tuple[Obj, ...]) -> list[str]:
    return [p["metadata"]["name"] for p in pods]


def test_pods_leave_in_four_waves() -> None:
    everybody = [
        pod("critical-daemon", owner="DaemonSet", priority="system-node-critical"),
        pod("critical", priority="system-cluster-critical"),
        pod("daemon", owner="DaemonSet"),
        pod("server"),
    ]
    order = []
    while everybody:
        first = names(drain.plan(everybody, now=NOW, deadline=None).evict)
        order.append(first)
        everybody = [p for p in everybody if p["metadata"]["name"] not in first]
    assert order == [["server"], ["daemon"], ["critical"], ["critical-daemon"]]


def test_a_wave_waits_until_the_one_before_has_left() -> None:
    step = drain.plan([pod("server", deleted=20), pod("daemon", owner="DaemonSet")], now=NOW, deadline=None)
    assert step.evict == ()
    assert names(step.remaining) == ["server", "daemon"]


@pytest.mark.parametrize(
    "staying",
    [
        pod("static", owner="Node"),
        pod("mirror", metadata={"annotations": {"kubernetes.io/config.mirror": "x"}}),
        pod("tolerant", tolerations=[{"key": "karpenter.sh/disrupted", "operator": "Exists"}]),
        pod("tolerates anything", tolerations=[{"operator": "Exists"}]),
        pod("stuck", deleted=-61),
        pod("over", status={"phase": "Succeeded"}),
        pod("failed", status={"phase": "Failed"}),
    ],
    ids=lambda p: p["metadata"]["name"],
)
def test_the_node_does_not_wait_for_these(staying: Obj) -> None:
    assert drain.plan([staying], now=NOW, deadline=None).done


@pytest.mark.parametrize(
    "leaving",
    [
        pod("ending", deleted=-59),
        pod("tolerates no-execute only", tolerations=[{"operator": "Exists", "effect": "NoExecute"}]),
        pod("tolerates another value", tolerations=[{"key": "karpenter.sh/disrupted", "value": "x"}]),
        pod("tolerates another key", tolerations=[{"key": "sku", "operator": "Exists"}]),
    ],
    ids=lambda p: p["metadata"]["name"],
)
def test_the_node_waits_for_these(leaving: Obj) -> None:
    assert not drain.plan([leaving], now=NOW, deadline=None).done


def test_a_pod_is_deleted_when_only_its_grace_period_is_left() -> None:
    slow = pod("slow", terminationGracePeriodSeconds=120)
    quick = pod("quick", terminationGracePeriodSeconds=10)
    deadline = NOW + timedelta(seconds=60)
    step = drain.plan([slow, quick], now=NOW, deadline=deadline)
    assert [(r.pod["metadata"]["name"], r.grace_seconds) for r in step.delete] == [("slow", 60)]
    assert names(step.evict) == ["quick"]
    step = drain.plan([quick], now=NOW + timedelta(seconds=51), deadline=deadline)
    assert [(r.pod["metadata"]["name"], r.grace_seconds) for r in step.delete] == [("quick", 9)]


def test_a_pod_that_ends_too_slowly_is_hurried_before_the_deadline() -> None:
    deadline = NOW + timedelta(seconds=30)
    step = drain.plan([pod("slow", deleted=600)], now=NOW, deadline=deadline)
    assert [r.grace_seconds for r in step.delete] == [30]
    assert drain.plan([pod("in time", deleted=29)], now=NOW, deadline=deadline).delete == ()


def test_without_a_deadline_nobody_is_deleted() -> None:
    assert drain.plan([pod("slow", terminationGracePeriodSeconds=600)], now=NOW, deadline=None).delete == ()


def test_a_pod_that_must_not_be_disrupted_is_waited_for() -> None:
    step = drain.plan(
        [pod("x", metadata={"annotations": {"karpenter.sh/do-not-disrupt": "true"}})], now=NOW, deadline=None
    )
    assert step.evict == ()
    assert not step.done


def test_refused_evictions_are_asked_again_after_one_to_ten_seconds() -> None:
    drains = drain.Drains()
    waits = []
    now = 0.0
    for _ in range(6):
        assert drains.due("p", now)
        drains.refused("p", now, "a budget")
        wait = next(s for s in range(1, 20) if drains.due("p", now + s))
        waits.append(wait)
        now += wait
    assert waits == [1, 2, 4, 8, 10, 10]


def drained_world(**changes: Any) -> World:
    world = World(**changes)
    world.ready_claim()
    node = world.node_of()
    assert node is not None
    world.add_pod("server", node["metadata"]["name"])
    return world


def test_the_machine_goes_only_after_its_pods() -> None:
    world = drained_world()
    world.allow(DRAIN + END)
    world.give_back()
    world.run(25)
    assert world.billing() == ["ws000000001"]
    node = world.node_of()
    assert node is not None
    assert {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"} in node["spec"]["taints"]
    assert node["metadata"]["labels"]["node.kubernetes.io/exclude-from-external-load-balancers"] == "karpenter"
    world.run(80)
    assert world.claim() is None
    assert "Evicted" in world.heard.reasons()


def test_a_budget_holds_the_node_for_as_long_as_it_takes() -> None:
    world = drained_world(termination_grace_period=0.0)
    world.allow(Budget(reconciles=3600, requests=0) + DRAIN + END)
    world.cluster.protected_pods.add("server")
    world.give_back()
    world.run(3600)
    assert world.billing() == ["ws000000001"]
    assert "FailedDraining" in world.heard.reasons()
    world.cluster.protected_pods.clear()
    world.run(120)
    assert world.claim() is None


def test_a_budget_does_not_hold_the_node_beyond_the_grace_period() -> None:
    world = World(node_api="NodeClaim")
    world.allow(LAUNCH + Budget(reconciles=300, requests=0) + END)
    claim = world.ask()
    claim["spec"]["terminationGracePeriod"] = "5m"
    world.cluster.put(resources.NODE_CLAIM, claim)
    world.run(200)
    node = world.node_of()
    assert node is not None
    world.add_pod("server", node["metadata"]["name"])
    world.cluster.protected_pods.add("server")
    world.give_back()
    world.run(260)
    assert world.billing() == ["ws000000001"]
    world.run(120)
    assert world.claim() is None
    assert "TerminationGracePeriodExpiring" in world.heard.reasons()


def test_the_machine_waits_for_its_volumes() -> None:
    world = World()
    world.allow(Budget(reconciles=12, requests=0) + END)
    world.ready_claim()
    node = world.node_of()
    assert node is not None
    world.cluster.put(
        resources.VOLUME_ATTACHMENT,
        {"metadata": {"name": "va"}, "spec": {"nodeName": node["metadata"]["name"], "source": {}}},
    )
    world.give_back()
    world.run(60)
    assert world.billing() == ["ws000000001"]
    world.cluster.drop(resources.VOLUME_ATTACHMENT, "va")
    world.run(80)
    assert world.claim() is None


def test_while_the_machine_goes_its_node_is_not_searched_for_pods_and_volumes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = drained_world()
    world.allow(DRAIN + END)
    world.give_back()
    world.run(60)
    (pool,) = world.cloud.pools.values()
    assert pool.state is State.DELETING
    looked: list[str] = []
    every = world.cluster.list

    def listed(resource: Resource, **options: Any) -> ObjectList:
        looked.append(resource.kind)
        return every(resource, **options)

    monkeypatch.setattr(world.cluster, "list", listed)
    world.run(10)
    assert looked == []
    world.start()
    world.run(10)
    assert looked == ["Pod", "VolumeAttachment"], "a new process looks once"
    world.run(60)
    assert world.claim() is None


def test_a_node_whose_machine_is_gone_is_not_drained() -> None:
    world = drained_world()
    world.allow(END)
    world.cluster.protected_pods.add("server")
    del world.cloud.pools["ws000000001"]
    world.set_ready("Unknown")
    world.give_back()
    world.run(10)
    assert world.claim() is None
    assert world.node_of() is None
    assert world.cluster.all(resources.POD) == []


def test_the_conditions_tell_how_far_the_end_of_a_node_claim_is() -> None:
    world = World(node_api="NodeClaim")
    world.allow(DRAIN + END)
    world.ready_claim()
    node = world.node_of()
    assert node is not None
    world.add_pod("server", node["metadata"]["name"])
    world.give_back()
    world.run(5)
    drained = next(c for c in world.there().conditions if c["type"] == "Drained")
    assert (drained["status"], drained["reason"]) == ("Unknown", "Draining")
    world.run(40)
    states = {c["type"]: c["status"] for c in world.there().conditions}
    assert states.items() >= {"Drained": "True", "VolumesDetached": "True", "InstanceTerminating": "True"}.items()


def test_a_machine_says_why_it_is_still_there() -> None:
    world = drained_world()
    world.allow(DRAIN)
    world.give_back()
    world.run(5)
    ready = next(c for c in world.there().conditions if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InstanceTerminating")
    assert "Pods that have not left" in ready["message"]
