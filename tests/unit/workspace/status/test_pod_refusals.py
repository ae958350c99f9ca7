"""A Pod that the API server refuses: its own words in InferenceReady and JobStarted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.workspace.worlds import (
    START,
    SmallWorld,
    conditions,
    spread_object,
    tuning_object,
    unchecked,
    workspace_object,
)

from kaito_hooks.runtime import format_time
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.status import pod_refusals

Obj = dict[str, Any]
QUOTA = "exceeded quota: small, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=0, limited: 0"
SECURITY = 'violates PodSecurity "restricted:latest": seccompProfile (pod or container "phi" must set it)'
WEBHOOK = 'admission webhook "images.example.com" denied the request: only images of r.example.com'


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (f'Error creating: pods "phi-x2v7k" is forbidden: {QUOTA}', QUOTA),
        (f'(combined from similar events): Error creating: pods "phi-9hc4d" is forbidden: {QUOTA}', QUOTA),
        (f'create Pod phi-0 in StatefulSet phi failed error: pods "phi-0" is forbidden: {SECURITY}', SECURITY),
        (f'pods "phi-6d4cf56db6-abcde" is forbidden: {QUOTA}', QUOTA),
        (f"Error creating: {WEBHOOK}", WEBHOOK),
        ('Error creating: Pod "phi-x2v7k" is invalid: spec.x: Invalid value', "spec.x: Invalid value"),
    ],
    ids=["job", "job again", "stateful set", "replica set", "webhook", "invalid"],
)
def test_the_cause_is_told_without_a_name_that_each_attempt_invents(message: str, cause: str) -> None:
    told = pod_refusals.outcome("Job/phi", message)
    assert (told.state, told.message) == ("failed", f"Job/phi cannot create its Pods: {cause}")


def event(message: str, *, ago: float) -> Obj:
    return {"message": message, "lastTimestamp": format_time(START - timedelta(seconds=ago))}


def test_the_newest_event_counts_until_its_controller_must_have_tried_again() -> None:
    events = [event("first", ago=60), event("second", ago=1)]
    assert pod_refusals.newest(events, now=START) == "second"
    assert pod_refusals.newest(events, now=START + timedelta(seconds=990)) == "second"
    assert pod_refusals.newest(events, now=START + timedelta(seconds=1010)) == ""
    assert pod_refusals.newest([{"message": "at no time"}], now=START) == ""
    assert pod_refusals.newest([], now=START) == ""


def child_of(obj: Obj, kind: str) -> tuple[SmallWorld, Obj]:
    """A world in which the nodes are there and that child was just made."""
    world = SmallWorld(obj)
    for _ in range(20):
        if f"{kind}/phi" in world.children:
            return world, world.children[f"{kind}/phi"]
        world.reconcile()
        world.provision()
    raise AssertionError(f"no {kind} comes: {world.children.keys()}")


@pytest.mark.parametrize(
    ("obj", "kind", "condition"),
    [(unchecked(tuning_object()), "Job", "JobStarted"), (spread_object(), "StatefulSet", "InferenceReady")],
    ids=["job", "stateful set"],
)
def test_a_refused_pod_is_a_failure_until_there_is_one(obj: Obj, kind: str, condition: str) -> None:
    world, child = child_of(obj, kind)
    world.reconcile()
    refused = replace(world.snapshot(), pod_refusals={child["metadata"]["uid"]: f"Error creating: {WEBHOOK}"})
    status, reason, message = conditions(plan(refused))[condition]
    assert (status, message) == ("False", f"{kind}/phi cannot create its Pods: {WEBHOOK}")
    assert reason.endswith("Failed")
    assert conditions(plan(refused))["WorkspaceReady"][1:] == ("workspaceFailed", message)
    owner = {"kind": kind, "uid": child["metadata"]["uid"], "controller": True}
    count = child["spec"].get("replicas", 1)
    pods = [{"metadata": {"name": f"phi-{n}", "uid": f"p{n}", "ownerReferences": [owner]}} for n in range(count)]
    assert world.workspace is not None
    world.workspace["status"] = plan(refused).status
    again = replace(refused, workspace=world.snapshot().workspace, pods=tuple(pods))
    assert conditions(plan(again))[condition][2].endswith("waiting for the Pod")


def test_a_deployment_says_itself_that_its_pods_are_refused_also_after_its_deadline() -> None:
    world, child = child_of(workspace_object(), "Deployment")
    message = f'pods "phi-6d4cf56db6-abcde" is forbidden: {QUOTA}'
    child["status"] = {
        "conditions": [
            {
                "type": "Progressing",
                "status": "False",
                "message": 'ReplicaSet "phi-6d4cf56db6" has timed out progressing.',
            },
            {"type": "ReplicaFailure", "status": "True", "message": message},
        ]
    }
    told = conditions(plan(world.snapshot()))["InferenceReady"]
    assert told == ("False", "WorkspaceInferenceStatusFailed", f"Deployment/phi cannot create its Pods: {QUOTA}")
