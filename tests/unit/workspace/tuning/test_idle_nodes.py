"""Nodes that were bought, on which nothing of a tuning Workspace runs any more: kept for a pause, then given back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.unit.workspace.tuning.checked import REFUSAL, CheckedWorld
from tests.unit.workspace.worlds import CATALOG, job_pod, tuning_object

from kaito_hooks.runtime import format_time

PAUSE = 600
"""Seconds: what the chart says where nobody says otherwise."""


def with_other_data(world: CheckedWorld) -> None:
    assert world.workspace is not None
    world.workspace["tuning"] = {
        **world.workspace["tuning"],
        "input": {"urls": ["https://example.com/other.parquet"]},
    }


def checking(world: CheckedWorld) -> None:
    with_other_data(world)
    world.begin_check()
    world.put_pod("check", {"running": {}})


def misconfigured(world: CheckedWorld) -> None:
    assert world.workspace is not None
    world.workspace["tuning"] = {**world.workspace["tuning"], "config": "nowhere"}


def occupied(world: CheckedWorld) -> None:
    with_other_data(world)
    theirs = {"kind": "Job", "metadata": {"name": "phi", "namespace": "models", "uid": "theirs"}}
    world.children["Job/phi"] = theirs


def look(world: CheckedWorld, seconds: float) -> None:
    """Controller and provisioner go on for so long; the check has no end, and no Pod changes."""
    end = world.now + timedelta(seconds=seconds)
    while world.now < end:
        world.reconcile()
        world.provision()
        world.pass_time(min(10, (end - world.now).total_seconds()))
    world.reconcile()
    world.provision()


def bought() -> CheckedWorld:
    """A node that has just come, for a Job that is not made yet."""
    world = CheckedWorld()
    world.until(lambda: world.nodes)
    assert "Job/phi" not in world.children
    return world


@pytest.mark.parametrize("begin", [checking, misconfigured, occupied])
class TestAnEditBeforeTheJob:
    def test_its_node_is_given_back_after_the_pause(self, begin: Callable[[CheckedWorld], None]) -> None:
        world = bought()
        begin(world)
        look(world, PAUSE - 30)
        assert len(world.claims) == 1
        look(world, 60)
        assert (world.claims, world.nodes) == ({}, {})
        look(world, 60)
        assert world.bought == 1
        [event] = [message for reason, message in world.events if reason == "DeletedMachine"]
        assert "nothing has run on its node for 10m" in event

    def test_resource_ready_says_why_and_until_when_it_is_kept(self, begin: Callable[[CheckedWorld], None]) -> None:
        world = bought()
        [claim] = world.claims
        begin(world)
        world.reconcile()
        since = world.now
        look(world, 120)
        _, _, message = world.condition("ResourceReady")
        assert f"Machine {claim} is given back at {format_time(since + timedelta(seconds=PAUSE))}" in message
        assert "no node is bought" in message
        look(world, PAUSE)
        status, _, message = world.condition("ResourceReady")
        assert status == "False"
        assert "given back at" not in message

    def test_it_is_given_back_by_a_controller_that_has_just_started(
        self, begin: Callable[[CheckedWorld], None]
    ) -> None:
        world = bought()
        begin(world)
        for _ in range(7):
            look(world, 100)
            world.memory = type(world.memory)()
        assert world.claims == {}


def test_an_edit_that_is_corrected_within_the_pause_buys_nothing_twice() -> None:
    world = bought()
    assert world.workspace is not None
    before = world.workspace["tuning"]
    misconfigured(world)
    look(world, PAUSE - 60)
    world.workspace["tuning"] = before
    world.settle()
    assert (world.bought, world.jobs_made) == (1, 1)
    assert world.condition("WorkspaceReady")[0] == "True"
    assert "idleSince" not in world.status


def test_a_node_is_bought_again_when_work_goes_on() -> None:
    world = bought()
    assert world.workspace is not None
    before = world.workspace["tuning"]
    misconfigured(world)
    look(world, PAUSE + 60)
    assert world.claims == {}
    world.workspace["tuning"] = before
    world.settle()
    assert (world.bought, world.jobs_made) == (2, 1)
    assert world.condition("WorkspaceReady")[0] == "True"


def test_a_claim_whose_node_is_still_on_its_way_is_given_back_too() -> None:
    world = CheckedWorld()
    while not world.claims:
        world.reconcile()
        world.run_workloads()
    misconfigured(world)
    for _ in range(70):
        world.reconcile()
        world.pass_time(10)
    [claim] = world.claims.values()
    assert "deletionTimestamp" in claim["metadata"]


def test_a_job_of_before_that_still_trains_keeps_its_node_and_the_pause_begins_with_its_end() -> None:
    world = bought()
    while "Job/phi" not in world.children:
        world.reconcile()
    job = world.children["Job/phi"]
    world.pods = [job_pod(job, "tune", {"running": {}}, phase="Running")]
    misconfigured(world)
    look(world, 3 * PAUSE)
    assert len(world.claims) == 1
    assert "idleSince" not in world.status
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "message": "limit"}], "failed": 21}
    world.pods = []
    look(world, PAUSE - 30)
    assert len(world.claims) == 1
    look(world, 60)
    assert world.claims == {}


def test_an_earlier_result_that_is_served_keeps_its_node() -> None:
    world = CheckedWorld()
    world.settle()
    checking(world)
    look(world, 2 * PAUSE)
    assert len(world.claims) == 1
    assert world.condition("InferenceReady")[0] == "True"


def test_the_pause_is_a_setting() -> None:
    world = bought()
    world.settings = replace(world.settings, timeouts=replace(world.settings.timeouts, node_idle=60))
    misconfigured(world)
    look(world, 50)
    assert len(world.claims) == 1
    look(world, 30)
    assert world.claims == {}


def test_no_node_is_kept_for_a_tuned_model_that_does_not_fit() -> None:
    world = CheckedWorld(tuning_object())
    phi = replace(CATALOG.presets["phi-3-mini-4k-instruct"], total_gpu_memory_gib=40)
    world.catalog = replace(CATALOG, presets={**CATALOG.presets, phi.name: phi})
    world.until(lambda: "adapterImage" in world.status.get("tuning", {}))
    world.children["Job/phi"]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    look(world, PAUSE + 60)
    assert world.claims == {}
    assert "needs more than one Standard_NC6s_v3 to run" in world.condition("InferenceReady")[2]
    look(world, PAUSE)
    assert world.bought == 1
    world.catalog = CATALOG
    world.settle()
    assert world.condition("WorkspaceReady")[0] == "True"


def test_the_node_of_a_job_whose_pods_are_refused_is_given_back_until_there_is_a_pod() -> None:
    world = bought()
    while "Job/phi" not in world.children:
        world.reconcile()
    job = world.children["Job/phi"]
    world.refused_pods = {job["metadata"]["uid"]: "Error creating: pods is forbidden: exceeded quota: small"}
    look(world, PAUSE + 60)
    assert world.claims == {}
    assert "exceeded quota" in world.condition("JobStarted")[2]
    assert "no node is bought while Job/phi cannot create its Pods" in world.condition("ResourceReady")[2]
    # An Event gets old before its controller has tried again.
    world.refused_pods = {}
    look(world, PAUSE)
    assert world.bought == 1
    world.settle()
    assert (world.bought, world.jobs_made) == (2, 1)
    assert world.condition("WorkspaceReady")[0] == "True"


@pytest.mark.parametrize("release", ["idle", "done", "refused"])
def test_no_job_is_made_on_a_node_that_has_been_given_back_and_is_not_gone_yet(release: str) -> None:
    world = CheckedWorld(tuning_object(tuning={"serveResult": release != "done"}))
    world.until(lambda: world.nodes)
    assert world.workspace is not None
    before = world.workspace["tuning"]
    if release == "done":
        world.until(lambda: world.status.get("progress", "").startswith("completed"))
        world.reconcile()
    elif release == "refused":
        with_other_data(world)
        world.begin_check()
        world.put_pod("check", {"terminated": REFUSAL})
        for _ in range(4):
            world.reconcile()
    else:
        misconfigured(world)
        world.reconcile()
        world.pass_time(PAUSE + 1)
        world.reconcile()
    [claim] = world.claims.values()
    assert "deletionTimestamp" in claim["metadata"]
    world.reconcile()
    assert world.status["workerNodes"] == []
    made = world.jobs_made
    world.workspace["tuning"] = {**before, "output": {"image": "r.io/team/adapter:9", "imagePushSecret": "push"}}
    for _ in range(12):
        world.reconcile()
        world.run_workloads()
    assert world.check["result"] == "Passed"
    assert (world.jobs_made, world.bought) == (made, 1)
    world.settle()
    assert (world.jobs_made, world.bought) == (made + 1, 2)


def test_a_job_that_was_made_just_before_the_pause_was_over_keeps_its_node() -> None:
    world = bought()
    assert world.workspace is not None
    before = world.workspace["tuning"]
    misconfigured(world)
    world.reconcile()
    world.pass_time(PAUSE - 1)
    world.workspace["tuning"] = before
    status = {}
    for _ in range(12):
        if "Job/phi" in world.children:
            break
        status = dict(world.status)
        world.reconcile()
        world.run_workloads()
    # The Job was made, and the status could not be written.
    world.pods = []
    world.workspace["status"] = {**status, "idleSince": format_time(world.now - timedelta(seconds=PAUSE - 1))}
    world.children["Job/phi"]["metadata"]["creationTimestamp"] = format_time(world.now)
    assert "idleSince" in world.status
    world.pass_time(2)
    world.reconcile()
    assert not any("deletionTimestamp" in claim["metadata"] for claim in world.claims.values())
    assert "idleSince" not in world.status
