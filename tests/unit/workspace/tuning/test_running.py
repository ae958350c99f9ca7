"""Tunings under the whole controller, over a cluster in memory: when a node is bought, and what that costs."""

from __future__ import annotations

import json
from typing import Any

from tests.driven.budget import Budget
from tests.unit.workspace.running import START
from tests.unit.workspace.tuning.running_jobs import TuningWorld
from tests.unit.workspace.worlds import REPORT, TEMPLATE, tuning_object

from kaito_hooks.runtime import Obj
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import Check, Settings, Tuning

CHECK = Budget(reconciles=10, requests=24)
"""Adoption, revision, ConfigMap, Service and NetworkPolicy, a Job, its report, its removal; at every look one or two
GETs of the ConfigMap."""
LOOK_AT_CONFIG = Budget(reconciles=1, requests=1)
"""A GET of the ConfigMap of a tuning that was refused; nothing is written."""
TRAIN = START + Budget(reconciles=8, requests=12)
"""The way of an inference Workspace, with a Job, its record and its GETs of the ConfigMap before."""


def tuning(**changes: Any) -> Obj:
    return tuning_object(metadata={"name": "phi", "uid": "uid-phi"}, **changes)


def world(**changes: Any) -> TuningWorld:
    found = TuningWorld(settings=Settings(release_namespace="kaito", **changes.pop("settings", {})), **changes)
    template = {"metadata": {"name": "qlora-params-template", "namespace": "kaito"}, "data": TEMPLATE}
    found.cluster.put(resources.CONFIG_MAP, template)
    found.apply(tuning())
    return found


def refused(found: TuningWorld) -> None:
    message = json.dumps({**REPORT, "reason": "DatasetInvalid", "problems": ["row 3 has no prompt"]})
    found.check_ends = {"exitCode": 2, "message": message}


def test_a_node_is_bought_as_soon_as_the_check_has_passed() -> None:
    w = world(job_seconds=20)
    begin = w.clock.monotonic()
    w.allow(CHECK + TRAIN)
    w.run(19)
    assert w.purchases == []
    assert w.workspace()["status"]["progress"] == "checking the data"
    w.run(600)
    [(when, _)] = w.purchases
    assert 20 <= when - begin <= 21
    assert w.told()[0] == "True"
    assert w.jobs() == ["phi"]
    assert sum("the data have been checked" in message for _, _, message in w.events) == 1


def test_what_is_refused_costs_one_look_in_ten_seconds_and_no_node() -> None:
    w = world(job_seconds=20)
    refused(w)
    w.allow(CHECK + 4 * LOOK_AT_CONFIG)
    w.run(60)
    assert w.told() == ("False", "step check: DatasetInvalid: row 3 has no prompt")
    assert w.purchases == []
    assert w.jobs() == []
    assert sum("row 3 has no prompt" in message for _, _, message in w.events) == 1


def test_a_corrected_configuration_is_checked_within_ten_seconds() -> None:
    w = world(job_seconds=20)
    refused(w)
    w.allow(CHECK + 2 * LOOK_AT_CONFIG)
    w.run(40)
    copied = w.cluster.find(resources.CONFIG_MAP, "qlora-params-template", "models")
    assert copied is not None
    text = TEMPLATE["training_config.yaml"].replace("r: 8", "r: 16")
    w.cluster.put(resources.CONFIG_MAP, {**copied, "data": {"training_config.yaml": text}})
    w.check_ends = {"exitCode": 0, "message": json.dumps(REPORT)}
    w.allow(CHECK + LOOK_AT_CONFIG)
    w.run(11)
    assert w.jobs() == ["phi-check-1"]
    w.run(21)
    assert len(w.purchases) == 1


def test_where_no_node_takes_it_the_claim_is_made_after_two_minutes() -> None:
    w = world(room=False)
    begin = w.clock.monotonic()
    w.allow(CHECK)
    w.run(119)
    assert w.purchases == []
    w.allow(TRAIN)
    w.run(2)
    assert [round(when - begin) for when, _ in w.purchases] == [120]
    assert w.workspace()["status"]["tuning"]["check"]["result"] == "Skipped"
    w.run(600)
    assert w.told()[0] == "True"


def test_a_controller_that_is_restarted_again_and_again_checks_once_and_buys_once() -> None:
    w = world(job_seconds=20)
    w.allow(20 * CHECK + TRAIN)
    made: set[str] = set()
    for _ in range(60):
        w.run(1)
        made |= {job["metadata"]["uid"] for job in w.cluster.all(resources.JOB)}
        w.start()
    w.run(600)
    assert len(w.purchases) == 1
    assert len(made) == 1
    assert w.told()[0] == "True"


def test_a_workspace_that_is_deleted_while_it_is_checked_is_gone_at_once() -> None:
    w = world(job_seconds=600)
    w.allow(CHECK)
    w.run(5)
    assert w.jobs() == ["phi-check-1"]
    w.delete()
    w.allow(Budget(reconciles=4, requests=6))
    w.run(5)
    assert w.cluster.find(resources.WORKSPACE, "phi", "models") is None
    assert (w.jobs(), w.purchases) == ([], [])


def test_a_pod_that_checks_is_none_of_the_pods_that_hold_or_take_a_node() -> None:
    w = world(job_seconds=20)
    w.allow(CHECK + TRAIN)
    w.run(800)
    served = w.worker_nodes()
    changed = tuning(tuning={"output": {"image": "r.io/team/adapter:0.2", "imagePushSecret": "push"}})
    w.job_seconds = 100
    w.apply(changed)
    w.allow(2 * CHECK)
    w.run(90)
    # The earlier result is served while the new data are looked at.
    assert sorted(w.jobs()) == ["phi", "phi-check-2"]
    assert (w.deployments(), w.worker_nodes()) == (["phi"], served)
    w.allow(CHECK + TRAIN)
    w.run(600)
    assert w.workspace()["status"]["tuning"]["adapterImage"] == "r.io/team/adapter:0.2"
    assert (w.told()[0], len(w.purchases)) == ("True", 1)


def test_a_change_that_is_taken_back_while_it_is_checked_leaves_everything_as_it_was() -> None:
    w = world(job_seconds=20)
    w.allow(CHECK + TRAIN)
    w.run(800)
    changed = tuning(tuning={"output": {"image": "r.io/team/adapter:0.2", "imagePushSecret": "push"}})
    w.job_seconds = 100
    w.apply(changed)
    w.allow(CHECK)
    w.run(30)
    assert sorted(w.jobs()) == ["phi", "phi-check-2"]
    w.apply(tuning())
    w.allow(CHECK)
    w.run(60)
    assert (w.jobs(), w.deployments(), w.told()[0]) == (["phi"], ["phi"], "True")


def test_without_checks_the_claim_is_made_at_once() -> None:
    w = world(settings={"tuning": Tuning(check=Check(enabled=False))})
    w.allow(TRAIN)
    w.run(1)
    assert len(w.purchases) == 1
    assert w.jobs() == []


def named(name: str, **metadata: Any) -> Obj:
    nodes = {"count": 1, "instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"apps": name}}}
    return tuning_object(metadata={"name": name, "uid": f"uid-{name}", **metadata}, resource=nodes)


def job_uid(w: TuningWorld, name: str) -> str:
    found = w.cluster.find(resources.JOB, name, "models")
    return "" if found is None else str(found["metadata"]["uid"])


def test_a_workspace_with_the_name_of_a_check_waits_for_its_end() -> None:
    w = world(job_seconds=60)
    w.allow(10 * (CHECK + TRAIN))
    w.run(5)
    uid = job_uid(w, "phi-check-1")
    assert uid
    w.apply(named("phi-check-1"))
    w.run(20)
    assert (
        "Job/phi-check-1 in namespace models exists already and belongs to Workspace phi;"
        in w.told("JobStarted", of="phi-check-1")[1]
    )
    assert job_uid(w, "phi-check-1") == uid
    w.run(900)
    assert (w.told()[0], w.told(of="phi-check-1")[0]) == ("True", "True")
    assert len(w.purchases) == 2


def test_a_check_with_the_name_of_a_workspaces_job_says_so_and_leaves_that_alone() -> None:
    w = TuningWorld(settings=Settings(release_namespace="kaito"), job_seconds=300)
    template = {"metadata": {"name": "qlora-params-template", "namespace": "kaito"}, "data": TEMPLATE}
    w.cluster.put(resources.CONFIG_MAP, template)
    w.apply(named("phi-check-1", annotations={"kaito.sh/tuning-check": "off"}))
    w.allow(50 * (CHECK + TRAIN))
    w.run(200)
    uid = job_uid(w, "phi-check-1")
    assert uid
    w.apply(named("phi"))
    w.run(60)
    assert "belongs to Workspace phi-check-1; give one of the two another name" in w.told("JobStarted")[1]
    assert job_uid(w, "phi-check-1") == uid
    w.delete()
    w.run(60)
    assert job_uid(w, "phi-check-1") == uid
    w.run(900)
    assert w.told(of="phi-check-1")[0] == "True"
    assert len(w.purchases) == 1


def test_a_job_whose_label_was_taken_away_is_told_and_followed_again_when_it_is_back() -> None:
    w = world(job_seconds=60)
    w.allow(50 * (CHECK + TRAIN))
    w.run(5)
    found = w.cluster.find(resources.JOB, "phi-check-1", "models")
    assert found is not None
    marks = found["metadata"].pop("labels")
    w.cluster.put(resources.JOB, found)
    w.run(40)
    assert "kubectl label --namespace models job phi-check-1 kaito.sh/workspace=phi" in w.told("JobStarted")[1]
    found = w.cluster.find(resources.JOB, "phi-check-1", "models")
    assert found is not None
    found["metadata"]["labels"] = marks
    w.cluster.put(resources.JOB, found)
    w.run(900)
    assert w.told()[0] == "True"
    assert len(w.purchases) == 1
