"""What was tuned before is served while a new tuning is checked, or was refused: on a node that is there, or comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.workspace.tuning.checked import REFUSAL, CheckedWorld
from tests.unit.workspace.worlds import DIGEST, job_pod, node_object, tuning_object

from kaito_hooks.api import labels
from kaito_hooks.runtime import format_time
from kaito_hooks.workspace import rollout
from kaito_hooks.workspace.decision.snapshot import Tenant

Obj = dict[str, Any]


def edit(world: CheckedWorld, **tuning: Any) -> None:
    assert world.workspace is not None
    world.workspace["tuning"] = {**world.workspace["tuning"], **tuning}


def with_other_data(world: CheckedWorld) -> None:
    edit(world, input={"urls": ["https://example.com/other.parquet"]})


def checked(world: CheckedWorld) -> None:
    """Its check goes on and on."""
    with_other_data(world)
    world.begin_check()
    world.put_pod("check", {"running": {}})
    world.reconcile()


def refused(world: CheckedWorld) -> None:
    with_other_data(world)
    world.check_ends = REFUSAL
    world.settle_refused()


def misconfigured(world: CheckedWorld) -> None:
    edit(world, config="nowhere")
    world.reconcile()
    assert "not found" in world.condition("JobStarted")[2]


BEFORE_THE_NODE = [checked, refused, misconfigured]


def server(world: CheckedWorld) -> Obj:
    return world.children["Deployment/phi"]


def adapter_step(world: CheckedWorld) -> Obj:
    steps = server(world)["spec"]["template"]["spec"]["initContainers"]
    return next(step for step in steps if step["name"] == "adapter-tuned")


def go_on(world: CheckedWorld, rounds: int = 6) -> None:
    for _ in range(rounds):
        world.reconcile()
        world.provision()
        world.run_workloads()
        world.pass_time(10)


@pytest.fixture
def world() -> CheckedWorld:
    found = CheckedWorld()
    found.settle()
    assert (found.bought, found.jobs_made) == (1, 1)
    return found


@pytest.mark.parametrize("begin", BEFORE_THE_NODE)
class TestWhatIsServed:
    def test_its_node_is_bought_again_when_it_dies(self, world: CheckedWorld, begin: Callable[..., None]) -> None:
        begin(world)
        world.nodes.clear()
        world.claims.clear()
        go_on(world)
        assert (world.bought, len(world.nodes), world.jobs_made) == (2, 1, 1)
        assert world.condition("ResourceReady")[0] == "True"
        assert world.condition("InferenceReady")[0] == "True"
        assert world.condition("WorkspaceReady")[0] == "False"

    def test_its_workload_is_made_again_as_it_was(self, world: CheckedWorld, begin: Callable[..., None]) -> None:
        before = server(world)["spec"]
        begin(world)
        del world.children["Deployment/phi"]
        go_on(world)
        assert server(world)["spec"] == before
        assert f"r.io/team/adapter@{DIGEST}" in adapter_step(world)["args"]
        assert world.condition("InferenceReady")[0] == "True"

    def test_its_adapter_is_fetched_with_the_secret_of_its_own_revision(
        self, world: CheckedWorld, begin: Callable[..., None]
    ) -> None:
        edit(world, output={"image": "elsewhere.io/team/adapter:2", "imagePushSecret": "elsewhere"})
        begin(world)
        del world.children["Deployment/phi"]
        go_on(world)
        volumes = server(world)["spec"]["template"]["spec"]["volumes"]
        assert [v["secret"]["secretName"] for v in volumes if "secret" in v] == ["push"]
        assert f"r.io/team/adapter@{DIGEST}" in adapter_step(world)["args"]

    def test_it_is_not_touched_while_its_node_is_there(self, world: CheckedWorld, begin: Callable[..., None]) -> None:
        uid, before = server(world)["metadata"]["uid"], server(world)["metadata"]["generation"]
        begin(world)
        go_on(world)
        assert (server(world)["metadata"]["uid"], server(world)["metadata"]["generation"]) == (uid, before)
        assert world.condition("InferenceReady")[0] == "True"
        assert world.bought == 1

    def test_a_revision_that_somebody_wrote_upon_it_is_put_right(
        self, world: CheckedWorld, begin: Callable[..., None]
    ) -> None:
        begin(world)
        server(world)["metadata"]["annotations"][labels.REVISION] = "mine"
        go_on(world)
        assert server(world)["metadata"]["annotations"][labels.REVISION] == "1"
        assert world.condition("InferenceReady")[0] == "True"

    def test_settings_that_would_change_it_are_told_and_a_roll_takes_them(
        self, world: CheckedWorld, begin: Callable[..., None]
    ) -> None:
        begin(world)
        assert world.workspace is not None
        images = {variant: f"{image}-next" for variant, image in world.settings.images.serving.items()}
        world.settings = replace(world.settings, images=replace(world.settings.images, serving=images))
        go_on(world)
        status, reason, message = world.condition("WorkloadUpToDate")
        assert (status, reason) == ("False", "PlatformChanged")
        assert "-next" in message
        world.workspace["metadata"].setdefault("annotations", {})[labels.AUTOMATIC_ROLL] = format_time(world.now)
        assert rollout.look_at(world.workspace, [server(world)], last=None).rolling
        go_on(world)
        assert world.condition("WorkloadUpToDate")[1] == "UpToDate"
        assert not rollout.look_at(world.workspace, [server(world)], last=None).rolling
        image = server(world)["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image.endswith("-next")


@pytest.mark.parametrize("begin", BEFORE_THE_NODE)
def test_a_server_that_lost_its_node_to_an_older_workspace_is_withdrawn(begin: Callable[..., None]) -> None:
    world = CheckedWorld(tuning_object())
    world.settings = replace(world.settings, node_api="none")
    world.nodes["mine"] = node_object("mine")
    world.settle()
    begin(world)
    older = {"mine": (Tenant("2025-01-01T00:00:00Z", "models", "older"),)}
    look = world.snapshot
    world.snapshot = lambda: replace(look(), tenants=older)  # type: ignore[method-assign]
    go_on(world)
    assert "Deployment/phi" not in world.children
    assert world.condition("InferenceReady")[0] == "False"
    assert "used by Workspace models/older" in world.condition("InferenceReady")[2]
    world.nodes["other"] = node_object("other")
    go_on(world)
    assert "Deployment/phi" in world.children
    assert world.condition("InferenceReady")[0] == "True"
    assert world.jobs_made == 1


@pytest.mark.parametrize("begin", BEFORE_THE_NODE)
def test_a_server_that_is_wanted_no_longer_is_withdrawn_too(begin: Callable[..., None]) -> None:
    world = CheckedWorld(tuning_object())
    world.settings = replace(world.settings, node_api="none")
    world.nodes["mine"] = node_object("mine")
    world.settle()
    edit(world, serveResult=False)
    begin(world)
    assert "Deployment/phi" in world.children
    older = {"mine": (Tenant("2025-01-01T00:00:00Z", "models", "older"),)}
    look = world.snapshot
    world.snapshot = lambda: replace(look(), tenants=older)  # type: ignore[method-assign]
    go_on(world)
    assert "Deployment/phi" not in world.children


def begins_without_a_node(world: CheckedWorld, begin: Callable[..., None]) -> None:
    """What an edit begins buys no node."""
    begin(world)
    go_on(world)
    assert (world.bought, world.claims) == (1, {})


@pytest.mark.parametrize("begin", BEFORE_THE_NODE)
def test_a_result_that_was_never_served_buys_no_node(begin: Callable[..., None]) -> None:
    world = CheckedWorld(tuning_object(tuning={"serveResult": False}))
    world.settle()
    assert world.claims == {}
    edit(world, serveResult=True)
    begins_without_a_node(world, begin)


@pytest.mark.parametrize("begin", BEFORE_THE_NODE)
def test_a_result_that_the_gate_held_back_buys_no_node_when_an_edit_opens_it(begin: Callable[..., None]) -> None:
    world = CheckedWorld()
    metrics = {"evalLoss": 2.5, "baseEvalLoss": 1.75}
    world.job_ends = {"exitCode": 0, "message": json.dumps({"digest": DIGEST, "metrics": metrics})}
    world.settle()
    assert world.workspace is not None
    assert world.condition("InferenceReady")[0] == "False"
    assert world.claims == {}
    world.workspace["metadata"]["annotations"][labels.TUNING_GATE] = labels.OFF
    begins_without_a_node(world, begin)


@pytest.mark.parametrize("begin", BEFORE_THE_NODE)
def test_a_result_whose_serving_was_ended_buys_no_node_when_an_edit_asks_for_it_again(
    world: CheckedWorld, begin: Callable[..., None]
) -> None:
    edit(world, serveResult=False)
    world.settle()
    assert world.claims == {}
    edit(world, serveResult=True)
    begins_without_a_node(world, begin)


@pytest.mark.parametrize("begin", BEFORE_THE_NODE)
def test_what_was_served_is_known_to_a_controller_that_finds_neither_node_nor_server(
    world: CheckedWorld, begin: Callable[..., None]
) -> None:
    begin(world)
    world.nodes.clear()
    world.claims.clear()
    del world.children["Deployment/phi"]
    world.reconcile()
    assert world.condition("InferenceReady")[0] == "False"
    world.memory = type(world.memory)()
    go_on(world)
    assert (world.bought, len(world.nodes)) == (2, 1)
    assert world.condition("InferenceReady")[0] == "True"


def test_a_server_that_is_wanted_no_longer_cannot_be_rolled_and_holds_up_no_other_roll(world: CheckedWorld) -> None:
    images = {variant: f"{image}-next" for variant, image in world.settings.images.serving.items()}
    world.settings = replace(world.settings, images=replace(world.settings.images, serving=images))
    world.reconcile()
    assert world.condition("WorkloadUpToDate")[1] == "PlatformChanged"
    edit(world, serveResult=False)
    refused(world)
    assert world.condition("WorkloadUpToDate")[1] == "CannotRoll"
    assert world.workspace is not None
    world.workspace["metadata"].setdefault("annotations", {})[labels.AUTOMATIC_ROLL] = format_time(world.now)
    assert not rollout.look_at(world.workspace, [server(world)], last=None).chosen


def prefer_nodes(world: CheckedWorld, *names: str) -> None:
    assert world.workspace is not None
    world.workspace["resource"] = {**world.workspace["resource"], "preferredNodes": list(names)}


def test_a_refused_edit_that_is_reverted_after_the_nodes_were_edited_trains_nothing_again(world: CheckedWorld) -> None:
    assert world.workspace is not None
    before = world.workspace["tuning"]
    refused(world)
    prefer_nodes(world, "mine")
    go_on(world)
    world.workspace["tuning"] = before
    world.settle()
    assert (world.jobs_made, world.checks_made, world.bought) == (1, 2, 1)
    assert world.condition("WorkspaceReady")[0] == "True"
    assert world.status["tuning"]["adapterDigest"] == DIGEST


def test_a_result_is_found_again_after_more_edits_than_the_history_keeps(world: CheckedWorld) -> None:
    assert world.workspace is not None
    before = world.workspace["tuning"]
    refused(world)
    for number in range(12):
        prefer_nodes(world, f"node-{number}")
        edit(world, input={"urls": [f"https://example.com/{number}.parquet"]})
        world.settle_refused()
    assert len([name for name in world.children if name.startswith("ControllerRevision/")]) == 10
    world.workspace["tuning"] = before
    world.settle()
    assert world.jobs_made == 1
    assert world.condition("WorkspaceReady")[0] == "True"


def begin_job(world: CheckedWorld) -> Obj:
    """The tuning Job, whose Pod trains and trains."""
    while "Job/phi" not in world.children:
        world.run_workloads()
        world.reconcile()
        world.provision()
    job = world.children["Job/phi"]
    world.pods = [job_pod(job, "tune", {"running": {}}, phase="Running")]
    world.reconcile()
    return job


def end_job(world: CheckedWorld, condition: str) -> None:
    job = world.children["Job/phi"]
    failed = 21 if condition == "Failed" else 0
    if failed:
        world.ending_step, world.job_ends = "tune", {"exitCode": 1, "message": "DiskFull: no space left"}
    job["status"] = {"conditions": [{"type": condition, "status": "True", "message": "limit"}], "failed": failed}
    world.pods = [job_pod(job, world.ending_step, {"terminated": world.job_ends})]


def test_a_failed_tuning_that_an_edit_comes_back_to_buys_no_node() -> None:
    world = CheckedWorld()
    begin_job(world)
    end_job(world, "Failed")
    world.settle()
    assert world.workspace is not None
    before = world.workspace["tuning"]
    assert (world.claims, world.bought) == ({}, 1)
    refused(world)
    world.workspace["tuning"] = before
    world.settle()
    assert "has failed 21 pods" in world.condition("WorkspaceReady")[2]
    assert (world.claims, world.bought, world.jobs_made) == ({}, 1, 1)


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_no_node_is_kept_for_a_job_that_has_ended_and_what_was_refused_instead(end: str) -> None:
    world = CheckedWorld()
    begin_job(world)
    assert world.workspace is not None
    before = world.workspace["tuning"]
    with_other_data(world)
    world.begin_check()
    world.put_pod("check", {"terminated": REFUSAL})
    world.pods.append(job_pod(world.children["Job/phi"], "tune", {"running": {}}, phase="Running"))
    world.until(lambda: world.check.get("result") == "Refused")
    go_on(world)
    assert len(world.claims) == 1
    end_job(world, end)
    go_on(world)
    assert (world.claims, world.bought) == ({}, 1)
    world.workspace["tuning"] = before
    world.settle()
    assert world.jobs_made == 1
    assert world.condition("WorkspaceReady")[0] == ("True" if end == "Complete" else "False")
    assert (len(world.claims), world.bought) == ((1, 2) if end == "Complete" else (0, 1))
