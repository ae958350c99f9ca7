"""An adapter that is worse than its base is pushed and not served, and its node is given back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.workspace.tuning.test_check import SETTINGS, CheckedWorld
from tests.unit.workspace.worlds import DIGEST, tuning_object

Obj = dict[str, Any]


def tuned(*, tuning: Obj | None = None, **metrics: float) -> CheckedWorld:
    """A Workspace whose training ended with these metrics."""
    world = CheckedWorld(tuning_object(tuning=tuning), settings=SETTINGS)
    world.job_ends = {"exitCode": 0, "message": json.dumps({"digest": DIGEST, "metrics": metrics})}
    world.settle()
    return world


def annotate(world: CheckedWorld, value: str | None) -> None:
    assert world.workspace is not None
    annotations = world.workspace["metadata"]["annotations"]
    annotations.pop("kaito.sh/tuning-gate", None)
    if value is not None:
        annotations["kaito.sh/tuning-gate"] = value
    world.settle()


def test_a_worse_adapter_is_pushed_not_served_and_the_user_is_told_once() -> None:
    world = tuned(loss=0.1, evalLoss=2.5, baseEvalLoss=1.75)
    status, reason, message = world.condition("InferenceReady")
    assert (status, reason) == ("False", "WorkspaceInferenceStatusFailed")
    assert "its loss is 2.5, the base model's 1.75" in message
    assert "kaito.sh/tuning-gate=off" in message
    assert world.condition("WorkspaceReady") == ("False", "workspaceFailed", message)
    assert world.condition("JobStarted")[0] == "True"
    assert [text for _, text in world.events if text == message] == [message]
    assert world.status["tuning"]["adapterDigest"] == DIGEST
    assert world.status["tuning"]["metrics"] == {"loss": 0.1, "evalLoss": 2.5, "baseEvalLoss": 1.75}
    assert "Deployment/phi" not in world.children


def test_a_node_that_serves_nobody_is_given_back_and_not_bought_again() -> None:
    world = tuned(evalLoss=2.5, baseEvalLoss=1.75)
    assert (world.claims, world.bought) == ({}, 1)
    assert world.status["workerNodes"] == []
    world.pass_time(3600)
    world.settle()
    assert (world.bought, world.jobs_made) == (1, 1)


@pytest.mark.parametrize("off", ["off", "Off"])
def test_who_opens_the_gate_is_served_without_another_training(off: str) -> None:
    world = tuned(evalLoss=2.5, baseEvalLoss=1.75)
    annotate(world, off)
    assert world.condition("WorkspaceReady")[0] == "True"
    assert (world.jobs_made, world.checks_made, world.bought) == (1, 1, 2)
    annotate(world, None)
    assert world.condition("InferenceReady")[0] == "False"
    assert world.claims == {}


@pytest.mark.parametrize(
    "metrics",
    [
        {"evalLoss": 1.5, "baseEvalLoss": 1.75},
        {"evalLoss": 1.75, "baseEvalLoss": 1.75},
        {"evalLoss": 2.5},
        {"loss": 0.5},
    ],
    ids=["better", "as good", "no base", "nothing held out"],
)
def test_what_is_not_worse_or_was_not_measured_is_served(metrics: dict[str, float]) -> None:
    world = tuned(**metrics)
    assert world.condition("WorkspaceReady")[0] == "True"
    assert "Deployment/phi" in world.children


def test_where_nothing_is_to_be_served_there_is_no_gate() -> None:
    world = tuned(tuning={"serveResult": False}, evalLoss=2.5, baseEvalLoss=1.75)
    assert world.condition("WorkspaceReady")[0] == "True"
    assert world.claims == {}


def test_an_other_value_of_the_annotation_leaves_the_gate_shut() -> None:
    world = tuned(evalLoss=2.5, baseEvalLoss=1.75)
    annotate(world, "on")
    assert world.condition("InferenceReady")[0] == "False"
    assert world.bought == 1
