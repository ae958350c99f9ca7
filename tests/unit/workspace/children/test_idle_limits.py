"""Where the pause of idle nodes begins and ends: also of what is made again, scaled, suspended, or not recorded."""

from __future__ import annotations

from typing import Any

import pytest
from tests.driven.budget import Budget
from tests.unit.workspace.children.test_idle import MANY, MINUTE, QUOTA, refused
from tests.unit.workspace.running import START, RunningWorld, one
from tests.unit.workspace.test_refused_writes import Refusal
from tests.unit.workspace.tuning.running_jobs import TuningWorld
from tests.unit.workspace.tuning.test_idle_nodes import PAUSE, bought, look, misconfigured
from tests.unit.workspace.worlds import TEMPLATE, tuning_object

from kaito_hooks.api.claim import Claim
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj, format_time, parse_time
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.children import idle
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.decision.actions import CreateChild
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.plan import plan


class WithEarlierDefinition(RunningWorld):
    """Its Workspaces are stored by a definition that does not know the field, and drops it."""

    def __init__(self, *objects: Obj, **changes: Any) -> None:
        super().__init__(*objects, **changes)
        update = self.cluster.update

        def pruning(resource: Any, obj: Obj, *, subresource: str | None = None) -> Obj:
            status = {k: v for k, v in (obj.get("status") or {}).items() if k != "idleSince"}
            return update(resource, {**obj, "status": status}, subresource=subresource)

        self.cluster.update = pruning  # type: ignore[method-assign]


def test_a_definition_of_before_neither_keeps_the_node_for_ever_nor_has_the_status_written_again_and_again() -> None:
    world = WithEarlierDefinition()
    world.no_pods = QUOTA
    world.apply(one())
    world.allow(MANY)
    world.run(20 * MINUTE)
    assert world.claims() == []
    assert len(world.purchases) == 1
    assert "no node is bought while Deployment/phi cannot create its Pods" in world.told("ResourceReady")[1]


def scale(world: RunningWorld, replicas: int) -> None:
    [deployment] = world.cluster.all(resources.DEPLOYMENT)
    deployment["spec"]["replicas"] = replicas
    if not replicas:
        deployment["status"].pop("conditions", None)
    world.cluster.put(resources.DEPLOYMENT, deployment)


def test_no_node_is_bought_for_a_refused_model_that_is_scaled_to_zero() -> None:
    world = refused()
    world.run(20 * MINUTE)
    assert world.claims() == []
    world.no_pods = ""
    scale(world, 0)
    world.run(30 * MINUTE)
    assert len(world.purchases) == 1
    assert "no node is bought while Deployment/phi is scaled to zero" in world.told("ResourceReady")[1]
    assert world.told("InferenceReady")[1] == "Deployment/phi is scaled to zero by hand"
    scale(world, 1)
    world.run(10 * MINUTE)
    assert len(world.purchases) == 2
    assert world.told()[0] == "True"


def test_a_moment_to_come_counts_as_this_one() -> None:
    """As one that another replica has written, whose clock goes ahead."""
    world = refused()
    found = world.workspace()
    ahead = format_time(parse_time("2030-01-01T00:00:00Z"))
    world.cluster.put(resources.WORKSPACE, {**found, "status": {**found["status"], "idleSince": ahead}})
    world.run(12 * MINUTE)
    assert world.claims() == []


PER_MINUTE = Budget(reconciles=8, requests=24)
"""A try every 30 seconds, twice a look to learn and to tell it."""


class RefusalOfOne(Refusal):
    """Not of what has a name that begins so: a check."""

    def __call__(self, what: str, after: bool) -> None:
        if what == self.what or not self.what:
            super().__call__(what, after)
        else:
            self.before(what, after)


def with_refused_children(kind: str) -> tuple[RunningWorld, Refusal]:
    """A node that has come for a workload, or a Job, that may not be made."""
    if kind == "Job":
        world: RunningWorld = TuningWorld(settings=Settings(release_namespace="kaito"))
        obj = tuning_object(metadata={"name": "phi", "uid": "uid-phi"})
        template: Any = {"metadata": {"name": "qlora-params-template", "namespace": "kaito"}, "data": TEMPLATE}
        world.cluster.put(resources.CONFIG_MAP, template)
    else:
        world, obj = RunningWorld(), one()
    refusal = RefusalOfOne(world, f"create {kind} phi")
    world.apply(obj)
    world.allow(4 * START + 10 * PER_MINUTE)
    world.run(8 * MINUTE)
    assert len(world.staying_claims()) == 1
    return world, refusal


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
class TestWhatMayNotBeMade:
    def test_its_node_is_given_back_and_bought_again_when_it_may(self, kind: str) -> None:
        world, refusal = with_refused_children(kind)
        world.allow(40 * PER_MINUTE)
        world.run(40 * MINUTE)
        assert world.claims() == []
        assert len(world.purchases) == 1
        assert f"no node is bought while {kind}/phi cannot be made" in world.told("ResourceReady")[1]
        assert world.told()[1].startswith(f"{kind}/phi could not be written")
        refusal.what = ""
        world.run(10 * MINUTE)
        assert len(world.purchases) == 2
        assert world.told()[0] == "True"

    def test_a_controller_that_restarts_buys_no_node_for_it_either(self, kind: str) -> None:
        world, refusal = with_refused_children(kind)
        world.allow(60 * PER_MINUTE)
        world.run(20 * MINUTE)
        assert world.claims() == []
        for _ in range(2):
            world.start()
            world.run(20 * MINUTE)
        assert len(world.purchases) == 1
        assert f"no node is bought while {kind}/phi cannot be made" in world.told("ResourceReady")[1]
        refusal.what = ""
        world.start()
        world.run(10 * MINUTE)
        assert len(world.purchases) == 2
        assert world.told()[0] == "True"
        assert "idleSince" not in world.workspace()["status"]

    def test_a_controller_that_restarts_while_the_node_goes_buys_none(self, kind: str) -> None:
        world, _ = with_refused_children(kind)
        world.allow(60 * PER_MINUTE)
        while world.staying_claims():
            world.run(5)
        assert world.claims() != []
        for _ in range(3):
            world.start()
            world.run(10)
        world.run(20 * MINUTE)
        assert world.claims() == []
        assert len(world.purchases) == 1

    def test_a_right_that_is_given_within_the_pause_buys_nothing_twice(self, kind: str) -> None:
        world, refusal = with_refused_children(kind)
        refusal.what = ""
        world.allow(2 * START)
        world.run(10 * MINUTE)
        assert len(world.purchases) == 1
        assert world.told()[0] == "True"

    def test_each_step_is_told_once(self, kind: str) -> None:
        world, _ = with_refused_children(kind)
        world.allow(40 * PER_MINUTE)
        world.run(40 * MINUTE)
        told = [message for *_, message in world.events]
        assert sorted(told) == sorted(set(told))


def test_a_job_that_was_made_a_moment_ago_keeps_its_node_though_its_controller_died_before_it_said_so() -> None:
    world = bought()
    assert world.workspace is not None
    before = world.workspace["tuning"]
    misconfigured(world)
    look(world, PAUSE - 20)
    assert len(world.claims) == 1
    world.workspace["tuning"] = before
    while "Job/phi" not in world.children:
        makes = [a for a in plan(world.snapshot()).actions if isinstance(a, CreateChild)]
        last = any(a.child["kind"] == "Job" and a.child["metadata"]["name"] == "phi" for a in makes)
        world.reconcile(crash_after=100 if last else None)
        world.run_workloads() if not last else None
    assert "idleSince" in world.status
    world.children["Job/phi"]["metadata"]["creationTimestamp"] = format_time(world.now)
    world.pass_time(30)
    world.reconcile()
    [claim] = world.claims.values()
    assert "deletionTimestamp" not in claim["metadata"]


def test_a_suspended_job_keeps_its_node_for_the_pause_only() -> None:
    world = bought()
    while "Job/phi" not in world.children:
        world.reconcile()
    world.children["Job/phi"]["spec"]["suspend"] = True
    world.pods = []
    look(world, PAUSE - 30)
    assert len(world.claims) == 1
    look(world, 90)
    assert world.claims == {}
    assert "no node is bought while Job/phi is suspended" in world.condition("ResourceReady")[2]
    look(world, PAUSE)
    assert world.bought == 1
    world.children["Job/phi"]["spec"]["suspend"] = False
    world.settle()
    assert (world.bought, world.jobs_made) == (2, 1)
    assert world.condition("WorkspaceReady")[0] == "True"


def beside_another() -> RunningWorld:
    """Another Workspace uses a node that nobody bought and that would do for both."""
    world = RunningWorld()
    world.bring_node("theirs")
    world.apply(one(name="other"))
    world.allow(START)
    world.run(1 * MINUTE)
    assert world.worker_nodes("other") == ["theirs"]
    return world


class TestBesideAnothersNode:
    def test_a_model_whose_pods_are_refused_does_not_buy_again_and_again(self) -> None:
        world = beside_another()
        world.no_pods = QUOTA
        world.apply(one())
        world.allow(3 * MANY)
        world.run(120 * MINUTE)
        assert len(world.purchases) == 1
        world.no_pods = ""
        world.run(10 * MINUTE)
        assert len(world.purchases) == 2
        assert world.told()[0] == "True"
        assert world.pods_on("theirs") == ["other"]

    def test_a_model_that_may_not_be_made_is_made_when_it_may(self) -> None:
        world = beside_another()
        refusal = Refusal(world, "create Deployment phi")
        world.apply(one())
        world.allow(40 * PER_MINUTE)
        world.run(40 * MINUTE)
        assert world.staying_claims() == []
        refusal.what = ""
        world.run(20 * MINUTE)
        assert len(world.purchases) == 2
        assert world.told()[0] == "True"


def test_a_stateful_set_of_which_an_event_of_before_tells_is_kept_with_its_nodes_at_zero_replicas() -> None:
    owner = {"uid": "uid-phi", "controller": True}
    metadata = {"name": "phi", "namespace": "models", "uid": "uid-set", "ownerReferences": [owner]}
    made: Obj = {"kind": "StatefulSet", "metadata": metadata, "spec": {"replicas": 0}}
    [claim] = refused().cluster.all(resources.MACHINE)
    snapshot = Snapshot(
        now=parse_time("2026-01-02T12:00:00Z"),
        settings=Settings(),
        workspace=Workspace.read(one()),
        claims=(Claim.read(claim),),
        children={"StatefulSet/phi": made},
        pod_refusals={"uid-set": "exceeded quota"},
    )
    assert idle.works(snapshot)
    made["spec"]["replicas"] = 2
    assert not idle.works(snapshot)


def test_where_nothing_is_bought_it_is_told_which_node_is_missing_and_nothing_of_a_pause() -> None:
    world = RunningWorld(settings=Settings(node_api="none"))
    world.bring_node("mine")
    world.no_pods = QUOTA
    world.apply(one())
    world.allow(MANY)
    world.run(1 * MINUTE)
    assert "exceeded quota" in world.told()[1]
    assert "idleSince" not in world.workspace()["status"]
    world.remove_node("mine")
    world.run(1 * MINUTE)
    assert "nothing is bought because nodeAPI is none" in world.told("ResourceReady")[1]
