"""What a model server says of itself, as the user reads it in InferenceReady."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.unit.workspace.worlds import START, SmallWorld, conditions, snapshot, tuning_object, workspace_object

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.decision.actions import Outcome, Plan
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.status.server_state import describe, pods_to_ask

Obj = dict[str, Any]
LOADING = {"state": "loading", "progress": 0.42, "message": "loading weights"}
LOADED = Outcome("waiting", "loading weights, 42 %")


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (LOADING, LOADED),
        ({"state": "loading", "progress": None, "message": "starting Ray"}, Outcome("waiting", "starting Ray")),
        ({"state": "loading", "progress": 0.29}, Outcome("waiting", "loading the model, 29 %")),
        ({"state": "loading", "progress": 0, "message": ""}, Outcome("waiting", "loading the model, 0 %")),
        ({"state": "loading", "progress": 42, "message": "x"}, Outcome("waiting", "x")),
        ({"state": "loading", "progress": float("nan"), "message": "x"}, Outcome("waiting", "x")),
        ({"state": "loading", "progress": True, "message": "x"}, Outcome("waiting", "x")),
        ({"state": "loading", "progress": "half", "message": "x\n\ny"}, Outcome("waiting", "x y")),
        (
            {"state": "restarting", "progress": None, "message": "the engine died of a CUDA error"},
            Outcome("waiting", "restarting: the engine died of a CUDA error"),
        ),
        ({"state": "restarting", "message": None}, Outcome("waiting", "restarting")),
        (
            {"state": "restarting", "progress": 0.5, "message": "loading weights"},
            Outcome("waiting", "restarting: loading weights, 50 %"),
        ),
        ({"state": "draining"}, Outcome("waiting", "draining")),
        (
            {"state": "failed", "progress": None, "message": "the weights hold no config.json"},
            Outcome("failed", "the weights hold no config.json"),
        ),
        ({"state": "failed"}, Outcome("failed", "the server has failed; its log says why")),
        ({"state": "ready", "progress": 1.0, "message": "ready"}, None),
        ({"state": "dreaming", "message": "x"}, None),
        ({"state": ["loading"]}, None),
        ({"phase": "Training"}, None),
        ({}, None),
    ],
)
def test_the_state_is_told_in_a_few_words(said: Obj, outcome: Outcome | None) -> None:
    assert describe(said) == outcome


def test_a_long_message_is_cut() -> None:
    found = describe({"state": "failed", "message": "x" * 5000})
    assert found is not None
    assert len(found.message) == 600


def pod(
    name: str = "phi-1", *, ip: str = "10.0.0.7", state: Obj | None = None, ready: bool = False, **more: Any
) -> Obj:
    """A Pod whose server runs, if nothing else is said."""
    server = {"name": "phi", "image": "x", "state": state or {"running": {}}, "ready": ready, **more}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "initContainerStatuses": [{"name": "weights", "state": {"terminated": {"exitCode": 0}}}],
            "containerStatuses": [server],
        },
    }


def of_a_job(found: Obj) -> Obj:
    return {**found, "metadata": {**found["metadata"], "ownerReferences": [{"kind": "Job", "uid": "j"}]}}


def leaving(found: Obj) -> Obj:
    return {**found, "metadata": {**found["metadata"], "deletionTimestamp": "2026-01-02T12:00:00Z"}}


@pytest.mark.parametrize(
    ("pods", "names"),
    [
        ([pod()], ["phi-1"]),
        ([pod(ready=True)], []),
        ([pod(ip="")], []),
        ([pod(state={"waiting": {"reason": "CrashLoopBackOff"}})], []),
        ([pod(state={"terminated": {"exitCode": 1}})], []),
        ([leaving(pod())], []),
        ([of_a_job(pod())], []),
        ([pod("c"), pod("b"), pod("a", ready=True), pod("d")], ["b", "c"]),
    ],
    ids=["runs", "ready", "no address", "crashed", "ended", "leaving", "of a Job", "two at most"],
)
def test_servers_are_asked_that_run_and_are_not_ready(pods: list[Obj], names: list[str]) -> None:
    found = pods_to_ask(Workspace.read(workspace_object()), pods)
    assert [one["metadata"]["name"] for one in found] == names


def test_a_template_of_the_users_own_is_not_asked() -> None:
    ws = Workspace.read(workspace_object(inference={"template": {"spec": {"containers": []}}}))
    assert pods_to_ask(ws, [pod()]) == []


def decided(*pods: Obj, obj: Obj | None = None, count: int = 1, **said: Obj | None) -> Plan:
    """The plan for a Deployment with these Pods; ``said``: by the Pod's name, with _ for -."""
    world = SmallWorld(obj or workspace_object(resource=workspace_object()["resource"] | {"count": count}))
    world.settle()
    world.children["Deployment/phi"]["status"] |= {"readyReplicas": 0}
    world.pods = list(pods)
    answers = {f"uid-{name.replace('_', '-')}": answer for name, answer in said.items() if answer is not None}
    found = world.snapshot()
    return plan(
        snapshot(
            world.workspace,
            now=START + timedelta(seconds=1),
            nodes=found.nodes,
            claims=list(world.claims.values()),
            children=found.children,
            revisions=found.revisions,
            pods=pods,
            servers=answers,
        )
    )


def message(found: Plan, condition: str = "InferenceReady") -> tuple[str, str, str]:
    return conditions(found)[condition]


PENDING = "WorkspaceInferenceStatusPending"
FAILED = "WorkspaceInferenceStatusFailed"


def test_inference_ready_says_what_the_server_says() -> None:
    found = decided(pod(), phi_1=LOADING)
    assert message(found) == ("False", PENDING, "Pod phi-1: loading weights, 42 %")
    assert message(found, "WorkspaceReady")[2] == "Pod phi-1: loading weights, 42 %"
    # Whoever asks the server tells when it says something else.
    assert found.look_again is None


def test_a_server_that_has_failed_says_why() -> None:
    found = decided(pod(), phi_1={"state": "failed", "message": "the weights hold no config.json"})
    assert message(found) == ("False", FAILED, "Pod phi-1: the weights hold no config.json")


def test_of_several_replicas_one_that_has_failed_goes_first() -> None:
    found = decided(pod("phi-1"), pod("phi-2"), count=2, phi_1=LOADING, phi_2={"state": "failed", "message": "no GPU"})
    assert message(found) == ("False", FAILED, "Pod phi-2: no GPU")
    found = decided(pod("phi-1"), pod("phi-2"), count=2, phi_1=LOADING, phi_2=LOADING)
    assert message(found) == ("False", PENDING, "0/2 replicas ready; Pod phi-1: loading weights, 42 %")


@pytest.mark.parametrize("said", [None, {"state": "ready"}, {"phase": "Training"}])
def test_where_the_server_says_nothing_the_pod_speaks(said: Obj | None) -> None:
    found = decided(pod(), phi_1=said)
    assert message(found) == ("False", PENDING, "Pod phi-1: loading the model")


def test_what_a_crashed_server_left_goes_before_what_the_next_one_says() -> None:
    last = {"lastState": {"terminated": {"exitCode": 1, "message": "CUDA out of memory"}}}
    found = decided(pod(**last), phi_1=LOADING)
    assert message(found) == ("False", FAILED, "Pod phi-1: container phi: CUDA out of memory")


def test_the_server_of_a_tuned_model_speaks_too() -> None:
    found = decided(pod(), obj=tuning_object(), phi_1=LOADING)
    assert message(found) == ("False", PENDING, "Pod phi-1: loading weights, 42 %")
