"""What a training reaches: in the status, and one Event for each thing that it reaches first."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.workspace.tuning.test_decide import running
from tests.unit.workspace.worlds import DIGEST

from kaito_hooks.workspace.tuning import milestones

Obj = dict[str, Any]
CURVE = "2.31 █▆▅▃▂ 0.42"


def said(**changes: Any) -> Obj:
    metrics = {"loss": 1.2, **changes.pop("metrics", {})}
    return {"phase": "Training", "currentStep": 40, "curve": CURVE, "metrics": metrics, **changes}


def followed(*answers: Obj) -> tuple[Obj, list[tuple[str, str]]]:
    """The status after these answers, and the Events."""
    status, events = milestones.of({}, "1"), []
    for answer in answers:
        status, notes = milestones.follow(status, answer)
        events += [(note.reason, note.message) for note in notes]
    return status, events


def test_the_curve_is_in_the_status() -> None:
    status, events = followed(said(), said(curve=f"{CURVE} "))
    assert status == {"revision": "1", "curve": f"{CURVE} "}
    assert events == []


def test_only_the_first_checkpoint_is_an_event() -> None:
    status, events = followed(said(checkpointStep=0), *[said(checkpointStep=step) for step in (50, 50, 100)])
    assert status["checkpointStep"] == 100
    assert [(reason, text.split(":")[0]) for reason, text in events] == [("CheckpointWritten", "step 50")]


def test_only_the_first_evaluation_is_an_event() -> None:
    base = said(metrics={"baseEvalLoss": 2.0})
    first = said(metrics={"baseEvalLoss": 2.0, "evalLoss": 1.5})
    status, events = followed(base, first, said(metrics={"baseEvalLoss": 2.0, "evalLoss": 1.25}))
    assert (status["evalLoss"], status["baseEvalLoss"]) == (1.25, 2.0)
    assert events == [("Evaluated", "the loss on the rows held out is 1.5, the base model's is 2")]


def test_a_controller_that_comes_later_says_nothing_again() -> None:
    reached = said(checkpointStep=50, metrics={"evalLoss": 1.5})
    status, _ = followed(reached)
    assert milestones.follow(milestones.of({"training": status}, "1"), reached)[1] == []


def test_a_new_revision_begins_anew() -> None:
    status, _ = followed(said(checkpointStep=50))
    assert milestones.of({"training": status}, "2") == {"revision": "2"}


@pytest.mark.parametrize(
    "odd", [{"curve": 3}, {"checkpointStep": "many"}, {"checkpointStep": True}, {"metrics": {"evalLoss": 1e999}}]
)
def test_an_answer_of_other_types_is_no_milestone(odd: Obj) -> None:
    status, events = followed({"phase": "Training", **odd})
    assert (status, events) == ({"revision": "1"}, [])


def test_what_a_running_pod_says_is_in_status_tuning_training() -> None:
    decided, _ = running("tune", tuning_progress=said(checkpointStep=50))
    assert decided.status is not None
    assert decided.status["tuning"]["training"] == {"revision": "1", "curve": CURVE, "checkpointStep": 50}
    assert "CheckpointWritten" in [note.reason for note in decided.deeds]


def test_the_lineage_and_the_curve_stay_when_the_adapter_is_pushed() -> None:
    lineage = {"base-model": "microsoft/phi-3", "data-digest": "sha256:" + "a" * 64, "seed": "42", "odd": 7}
    message = json.dumps({"digest": DIGEST, "metrics": {"loss": 0.5, "baseEvalLoss": 2.0}, "lineage": lineage})
    before = {"tuning": {"training": {"revision": "1", "curve": CURVE}}}
    decided, _ = running("push", state={"terminated": {"exitCode": 0, "message": message}}, before=before)
    assert decided.status is not None
    found = decided.status["tuning"]
    assert found["lineage"] == {key: lineage[key] for key in ("base-model", "data-digest", "seed")}
    assert found["metrics"] == {"loss": 0.5, "baseEvalLoss": 2.0}
    assert found["training"]["curve"] == CURVE


@pytest.mark.parametrize("push", [{"running": {}}, {"terminated": {"exitCode": 0, "message": DIGEST}}])
def test_a_training_that_nobody_asked_on_its_way_is_in_the_status_once_it_has_ended(push: Obj) -> None:
    last = json.dumps(said(checkpointStep=72, metrics={"evalLoss": 1.5}))
    decided, _ = running("push", state=push, trained=last)
    assert decided.status is not None
    assert decided.status["tuning"]["training"] == {
        "revision": "1",
        "curve": CURVE,
        "checkpointStep": 72,
        "evalLoss": 1.5,
    }
    assert {"CheckpointWritten", "Evaluated"} <= {note.reason for note in decided.deeds}


def test_a_lineage_that_is_no_map_is_left_out() -> None:
    message = json.dumps({"digest": DIGEST, "lineage": ["a"], "metrics": 3})
    decided, _ = running("push", state={"terminated": {"exitCode": 0, "message": message}})
    assert decided.status is not None
    assert decided.status["tuning"]["adapterDigest"] == DIGEST
    assert not {"lineage", "metrics"} & decided.status["tuning"].keys()
