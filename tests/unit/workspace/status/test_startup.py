"""The first start of a Workspace, told by phases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.workspace.running import START as BUDGET
from tests.unit.workspace.running import RunningWorld, one
from tests.unit.workspace.worlds import (
    START,
    Obj,
    SmallWorld,
    claim_object,
    is_check,
    snapshot,
    tuning_object,
    unchecked,
    workspace_object,
)

from kaito_hooks.workspace.decision.actions import Outcome
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.status import conditions, startup
from kaito_hooks.workspace.status.startup import Moments, add, follow, sentence, tell

CRD = Path(__file__).parents[4] / "charts" / "kaito" / "crds" / "kaito.sh_workspaces.yaml"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def stamp(seconds: int) -> str:
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, status: str, since: int) -> Obj:
    return {"type": kind, "status": status, "reason": "R", "message": "m", "lastTransitionTime": stamp(since)}


def step(name: str, began: int, ended: int, **more: Any) -> Obj:
    ran = {"exitCode": 0, "startedAt": stamp(began), "finishedAt": stamp(ended)}
    return {"name": name, "state": {"terminated": ran}, **more}


def server(began: int, **more: Any) -> Obj:
    return {"name": "phi", "state": {"running": {"startedAt": stamp(began)}}, **more}


def pod(name: str, *, steps: list[Obj], runs: list[Obj], ready: int | None) -> Obj:
    found = [condition("Ready", "True", ready)] if ready is not None else []
    return {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "status": {
            "phase": "Running",
            "conditions": found,
            "initContainerStatuses": steps,
            "containerStatuses": runs,
        },
    }


# Bought after 1 s, a node after 241 s, the image of the step after 246 s, the weights until 274 s, the image of the
# server until 300 s, loaded and answering probes after 312 s.
FIRST = pod("first", steps=[step("weights", 246, 274)], runs=[server(300)], ready=312)
BOUGHT = claim_object("ws1", creationTimestamp=stamp(1), conditions=[{"type": "Ready", "status": "True"}], node="n")
STARTED = {"phases": [{"name": "Bought", "seconds": 1}]}


def told(
    pods: list[Obj],
    *,
    now: float,
    before: Obj | None = None,
    node_since: int = 241,
    claims: list[Obj] | None = None,
    ready: bool = True,
) -> tuple[Any, list[str]]:
    """What is recorded ``now`` seconds after the apply, and the Events of readiness; the Workspace is ready, or not."""
    recorded: Obj = {
        "conditions": [condition("WorkspaceReady", "False", 0), condition("ResourceReady", "True", node_since)],
        "startup": before or STARTED,
    }
    s = snapshot(
        workspace_object(status=recorded),
        now=at(now),
        claims=[BOUGHT] if claims is None else claims,
        pods=tuple(pods),
    )
    outcome = Outcome("ready" if ready else "waiting")
    verdicts = [conditions.resource_ready(Outcome("ready")), *conditions.summary([outcome])]
    record = follow(s, verdicts)
    notes = add(s, record, conditions.notes(s.workspace, verdicts))
    return record, [note.message for note in notes if note.reason == "workspaceReady"]


def seconds(record: Mapping[str, Any]) -> dict[str, int]:
    return {phase["name"]: phase["seconds"] for phase in record["phases"]}


def test_a_start_is_told_by_phases_that_add_up_to_the_age_at_ready() -> None:
    record, _ = told([FIRST], now=313.7)
    assert list(seconds(record).items()) == [
        ("Bought", 1),
        ("NodeReady", 240),
        ("ImagePulled", 5 + 26),
        ("WeightsFetched", 28),
        ("ModelLoaded", 12),
        ("Answering", 1),
    ]
    assert record["totalSeconds"] == 313


def test_the_event_of_readiness_tells_the_start_in_a_sentence() -> None:
    _, notes = told([FIRST], now=313.7)
    expected = "313 s: claim 1 s, node 240 s, image 31 s, weights 28 s, load 12 s, answer 1 s"
    assert notes == [f"workspace is ready after {expected}"]


def test_a_phase_appears_as_soon_as_it_is_over() -> None:
    record, _ = told([], now=250, ready=False)
    assert record == {"phases": [{"name": "Bought", "seconds": 1}, {"name": "NodeReady", "seconds": 240}]}
    loading = pod("first", steps=[step("weights", 246, 274)], runs=[server(300)], ready=None)
    record, _ = told([loading], now=305, ready=False)
    assert seconds(record) == {"Bought": 1, "NodeReady": 240, "ImagePulled": 31, "WeightsFetched": 28}
    assert "totalSeconds" not in record


def test_the_first_status_begins_the_record() -> None:
    decided = plan(snapshot())
    assert decided.status is not None
    assert decided.status["startup"] == {"phases": []}


def test_a_record_that_is_complete_never_changes() -> None:
    complete = {"phases": [{"name": "NodeReady", "seconds": 7}], "totalSeconds": 7}
    record, notes = told([FIRST], now=5000, before=complete)
    assert record == complete
    assert notes == ["workspace is ready"]


def test_a_workspace_of_before_the_records_gets_none() -> None:
    status = {"conditions": [condition("WorkspaceReady", "False", 0)]}
    s = snapshot(workspace_object(status=status), now=at(10))
    assert follow(s, []) is None


def test_a_status_is_never_written_for_the_record_alone() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    assert world.workspace is not None
    status = world.workspace["status"]
    assert status["startup"]["totalSeconds"] == 0
    world.workspace["status"] = {**status, "startup": {"phases": []}}
    assert world.reconcile().status is None


def test_a_start_on_a_node_that_was_there_bought_nothing() -> None:
    quick = pod("first", steps=[step("weights", 2, 5)], runs=[server(6)], ready=9)
    record, notes = told([quick], now=10, node_since=0, claims=[], before={"phases": []})
    assert seconds(record) == {
        "NodeReady": 0,
        "ImagePulled": 3,
        "WeightsFetched": 3,
        "ModelLoaded": 3,
        "Answering": 1,
    }
    assert notes == ["workspace is ready after 10 s: image 3 s, weights 3 s, load 3 s, answer 1 s"]


def test_a_start_without_steps_fetches_nothing() -> None:
    record, _ = told([pod("first", steps=[], runs=[server(300)], ready=312)], now=313)
    assert seconds(record) == {"Bought": 1, "NodeReady": 240, "ImagePulled": 59, "ModelLoaded": 12, "Answering": 1}


def test_of_several_claims_and_pods_the_last_counts() -> None:
    late = claim_object("ws2", creationTimestamp=stamp(61), conditions=[{"type": "Ready", "status": "True"}], node="n")
    slow = pod("slow", steps=[step("weights", 250, 290)], runs=[server(310)], ready=330)
    record, _ = told([slow, FIRST], now=331, claims=[BOUGHT, late])
    assert seconds(record) == {
        "Bought": 61,
        "NodeReady": 180,
        "ImagePulled": 9 + 20,
        "WeightsFetched": 40,
        "ModelLoaded": 20,
        "Answering": 1,
    }


def test_a_server_that_was_started_again_loads_since_its_first_start() -> None:
    died = {"terminated": {"exitCode": 137, "startedAt": stamp(300), "finishedAt": stamp(350)}}
    again = pod("first", steps=[step("weights", 246, 274)], runs=[server(360, lastState=died)], ready=390)
    record, _ = told([again], now=390)
    assert seconds(record)["ModelLoaded"] == 90
    assert seconds(record)["ImagePulled"] == 31


def test_pods_that_go_or_have_failed_are_not_of_the_start() -> None:
    going = pod("going", steps=[], runs=[server(380)], ready=390)
    going["metadata"]["deletionTimestamp"] = stamp(391)
    failed = pod("failed", steps=[], runs=[server(380)], ready=390)
    failed["status"]["phase"] = "Failed"
    assert told([going, failed, FIRST], now=400)[0] == told([FIRST], now=400)[0]


def test_a_moment_that_no_cache_has_yet_falls_together_with_the_next() -> None:
    loading = pod("first", steps=[step("weights", 246, 274)], runs=[server(300)], ready=None)
    record, _ = told([loading], now=313)
    assert (seconds(record)["ModelLoaded"], seconds(record)["Answering"]) == (13, 0)


def test_a_start_of_a_tuning_ends_where_the_training_begins() -> None:
    world = SmallWorld(unchecked(tuning_object()))
    for _ in range(3):
        world.reconcile()
        world.provision()
    [job] = [c for name, c in world.children.items() if name.startswith("Job/") and not is_check(c)]
    owner = {"kind": "Job", "name": "phi", "uid": job["metadata"]["uid"], "controller": True}
    steps = [step("push-right", 20, 22), step("weights", 22, 50), step("data", 50, 55)]
    tune = {"name": "tune", "state": {"running": {"startedAt": stamp(71)}}}
    trains = pod("phi-abcde", steps=[*steps, tune], runs=[{"name": "push", "state": {"waiting": {}}}], ready=None)
    trains["metadata"]["ownerReferences"] = [owner]
    world.pods.append(trains)
    world.pass_time(72)
    decided = world.reconcile()
    assert world.workspace is not None
    assert seconds(world.workspace["status"]["startup"]) == {
        "Bought": 0,
        "NodeReady": 0,
        "ImagePulled": 20 + 16,
        "WeightsFetched": 35,
        "Training": 1,
    }
    assert world.workspace["status"]["startup"]["totalSeconds"] == 72
    assert "Tuning job has started after 72 s: image 36 s, weights 35 s, training 1 s" in [
        note.message for note in decided.notes
    ]


def test_a_start_that_has_failed_stays_what_it_was_when_its_node_goes() -> None:
    world = SmallWorld(unchecked(tuning_object()))
    while "Job/phi" not in world.children:
        world.reconcile()
        world.provision()
        world.pass_time(30)
    assert world.workspace is not None
    world.reconcile()
    before = world.workspace["status"]["startup"]
    assert seconds(before).keys() == {"Bought", "NodeReady"}
    world.ending_step, world.job_ends = "data", {"exitCode": 2, "message": "DatasetInvalid: no rows"}
    world.settle()
    assert world.claims == {}
    assert world.workspace["status"]["startup"] == before
    world.pass_time(3600)
    world.workspace["status"]["progress"] = "something else to write"
    world.settle()
    assert world.workspace["status"]["startup"] == before


def test_a_pod_that_is_replaced_in_the_middle_takes_no_phase_back() -> None:
    fetching = pod("first", steps=[step("weights", 246, 274)], runs=[server(300)], ready=None)
    record, _ = told([fetching], now=305, ready=False)
    assert "WeightsFetched" in seconds(record)
    again, _ = told([pod("second", steps=[], runs=[], ready=None)], now=320, before=record, ready=False)
    assert again == record
    later = pod("second", steps=[step("weights", 330, 340)], runs=[server(350)], ready=360)
    ended, _ = told([later], now=361, before=again)
    assert seconds(ended)["WeightsFetched"] == 10
    assert ended["totalSeconds"] == 361


def test_a_controller_that_restarts_in_the_middle_tells_the_same() -> None:
    records = []
    for restarts in ((), (30, 100, 179)):
        world = RunningWorld(one())
        world.allow((4 + len(restarts)) * BUDGET)
        passed = 0
        for moment in (*restarts, 600):
            world.run(moment - passed)
            world.start()
            passed = moment
        records.append(world.workspace()["status"]["startup"])
    assert records[0] == records[1]
    assert seconds(records[0])["NodeReady"] == 180


def test_what_took_no_second_is_not_in_the_sentence() -> None:
    assert sentence({"phases": [{"name": "NodeReady", "seconds": 0}], "totalSeconds": 0}) == "0 s"


ANY_MOMENT = st.none() | st.floats(-100, 5000).map(at)
ANY_START = st.builds(
    Moments, **{f.name: ANY_MOMENT for f in fields(Moments) if f.name != "start"}, start=st.just(START)
)


@given(found=ANY_START, now=st.floats(-100, 5000).map(at), tuning=st.booleans())
def test_phases_are_never_negative_and_add_up_whatever_clocks_say(found: Moments, now: datetime, tuning: bool) -> None:
    record = tell(found, now=now, tuning=tuning)
    names = [phase["name"] for phase in record["phases"]]
    assert names == [name for name in startup.WORDS if name in names]
    assert all(phase["seconds"] >= 0 for phase in record["phases"])
    assert ("totalSeconds" in record) == (found.end is not None)
    if found.end is not None:
        age = max(0, int((found.end.replace(microsecond=0) - START).total_seconds()))
        assert record["totalSeconds"] == sum(phase["seconds"] for phase in record["phases"]) == age


def test_every_phase_is_in_the_schema() -> None:
    [version] = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    found = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["startup"]["properties"]
    assert found.keys() == {"phases", "totalSeconds"}
    assert found["phases"]["items"]["properties"]["name"]["enum"] == list(startup.WORDS)
