"""Conditions tell how things are, also those that the phase of a Workspace has nothing to do with any more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.workspace.running import START, RunningWorld, one
from tests.unit.workspace.tuning.checked import REFUSAL, SETTINGS, CheckedWorld
from tests.unit.workspace.worlds import SmallWorld, job_pod, node_object, tuning_object, workspace_object

from kaito_hooks.api.claim import Claim
from kaito_hooks.workspace import resources

Obj = dict[str, Any]
CONDITIONS = {"Machine": "MachineReady", "NodeClaim": "NodeClaimReady"}
BROKEN = [{"source": {"name": "a", "image": "r.io/x:1"}, "strength": "7"}]


def tuned(kind: Any, **tuning: Any) -> CheckedWorld:
    world = CheckedWorld(tuning_object(tuning=tuning))
    world.settings = replace(SETTINGS, node_api=kind)
    return world


def failed(kind: str) -> CheckedWorld:
    world = tuned(kind)
    world.ending_step, world.job_ends = "tune", {"exitCode": 2, "message": "OutOfMemory: a longer row than fits"}
    world.settle()
    return world


def done(kind: str) -> CheckedWorld:
    world = tuned(kind, serveResult=False)
    world.settle()
    return world


def refused(kind: str) -> CheckedWorld:
    """An edit of a job that trained is refused, and then that job ends."""
    world = tuned(kind)
    while "Job/phi" not in world.children:
        world.reconcile()
        world.provision()
        world.run_workloads()
    job = world.children["Job/phi"]
    world.pods = [job_pod(job, "tune", {"running": {}}, phase="Running")]
    world.reconcile()
    assert world.condition(CONDITIONS[kind])[0] == "True"
    assert world.workspace is not None
    world.workspace["tuning"] = {**world.workspace["tuning"], "input": {"urls": ["https://example.com/other.parquet"]}}
    world.check_ends = REFUSAL
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "message": "limit"}], "failed": 21}
    world.settle_refused()
    world.provision()
    world.reconcile()
    return world


def given_back_idle(kind: str) -> CheckedWorld:
    world = tuned(kind)
    world.until(lambda: world.nodes)
    assert world.workspace is not None
    world.workspace["tuning"] = {**world.workspace["tuning"], "config": "nowhere"}
    for _ in range(3):
        world.reconcile()
        world.provision()
        world.pass_time(700)
    return world


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("end", [failed, done, refused, given_back_idle])
def test_claims_that_are_gone_are_not_ready(end: Any, kind: str) -> None:
    world = end(kind)
    assert world.claims == {}
    status, reason, message = world.condition(CONDITIONS[kind])
    assert (status, reason) == ("False", f"No{kind}")
    assert message == f"there is no {kind}, and none is asked for at the moment"


def test_a_claim_that_is_given_back_is_not_ready_while_it_goes() -> None:
    world = tuned("Machine", serveResult=False)
    world.until(lambda: world.status.get("progress", "").startswith("completed"))
    while not any("deletionTimestamp" in claim["metadata"] for claim in world.claims.values()):
        world.reconcile()
    [claim] = world.claims
    world.reconcile()
    status, reason, message = world.condition("MachineReady")
    assert (status, reason) == ("False", "NoMachine")
    assert message == f"{claim} is being given back, and none is asked for at the moment"


def test_claims_of_a_kind_that_is_bought_no_longer_are_told_of_as_they_are() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    world.settings = replace(world.settings, node_api="none")
    world.claims.clear()
    world.nodes.clear()
    world.nodes["mine"] = node_object("mine")
    world.settle()
    assert world.workspace is not None
    told = {c["type"]: (c["status"], c["reason"]) for c in world.workspace["status"]["conditions"]}
    assert told["MachineReady"] == ("False", "NoMachine")
    assert told["ResourceReady"][0] == "True"


def test_a_claim_that_is_bought_again_is_pending_again() -> None:
    world = done("Machine")
    assert world.workspace is not None
    world.workspace["tuning"]["serveResult"] = True
    world.reconcile()
    world.reconcile()
    assert world.condition("MachineReady")[:2] == ("Unknown", "CreateMachinePending")


def test_resource_ready_says_that_a_tuning_that_is_done_needs_no_node() -> None:
    status, _, message = done("Machine").condition("ResourceReady")
    assert status == "True"
    assert message == "no node is needed any more: the tuning is done, and nothing is served"


class TestBrokenRules:
    def served(self) -> RunningWorld:
        world = RunningWorld(one())
        world.allow(3 * START)
        world.run(600)
        assert world.told("InferenceReady")[0] == "True"
        return world

    def break_a_rule(self, world: RunningWorld) -> None:
        world.apply(one(inference={**one()["inference"], "adapters": BROKEN}))

    def test_a_server_that_somebody_deletes_meanwhile_does_not_answer(self) -> None:
        world = self.served()
        world.cluster.drop(resources.CATALOG, "kaito")
        world.run(5)
        assert world.told("InferenceReady")[0] == "True"
        world.cluster.drop(resources.DEPLOYMENT, "phi", "models")
        for pod in world.cluster.all(resources.POD):
            world.cluster.drop(resources.POD, pod["metadata"]["name"], "models")
        world.run(5)
        assert world.deployments() == []
        assert world.told("InferenceReady")[0] == "False"

    def test_a_claim_that_goes_meanwhile_is_not_ready(self) -> None:
        world = RunningWorld(one())
        world.allow(3 * START)
        world.run(185)
        assert [Claim.read(c).ready for c in world.cluster.all(resources.MACHINE)] == [True]
        world.cluster.drop(resources.DEPLOYMENT, "phi", "models")
        for pod in world.cluster.all(resources.POD):
            world.cluster.drop(resources.POD, pod["metadata"]["name"], "models")
        self.break_a_rule(world)
        world.run(5)
        assert world.told("InferenceReady")[0] == "False"
        assert world.told("MachineReady")[0] == "True"
        [name] = world.claims()
        world.cluster.drop(resources.NODE, f"node-{name}")
        world.cluster.drop(resources.MACHINE, name)
        world.run(5)
        assert world.told("MachineReady") == ("False", "there is no Machine, and none is asked for at the moment")

    def test_an_earlier_result_of_a_tuning_that_answers_is_told_to_and_the_job_says_what_is_wrong(self) -> None:
        world = CheckedWorld()
        world.settle()
        assert world.workspace is not None
        output = {"image": "No Image", "imagePushSecret": "push"}
        world.workspace["tuning"] = {**world.workspace["tuning"], "output": output}
        world.reconcile()
        assert "Deployment/phi" in world.children
        assert world.condition("InferenceReady")[0] == "True"
        status, reason, message = world.condition("JobStarted")
        assert (status, reason) == ("False", "WorkspaceTuningJobStatusFailed")
        assert "Invalid image format" in message
        assert world.condition("WorkspaceReady") == ("False", "workspaceFailed", message)

    def test_nodes_that_are_gone_are_not_in_use(self) -> None:
        world = RunningWorld(one())
        world.allow(3 * START)
        world.run(185)
        [node] = world.worker_nodes()
        world.cluster.drop(resources.DEPLOYMENT, "phi", "models")
        for pod in world.cluster.all(resources.POD):
            world.cluster.drop(resources.POD, pod["metadata"]["name"], "models")
        self.break_a_rule(world)
        world.run(5)
        assert world.worker_nodes() == [node]
        world.remove_node(node)
        world.run(5)
        assert world.worker_nodes() == []
