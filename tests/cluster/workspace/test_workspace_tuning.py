"""The way of a tuning Workspace on a real API server with real Job and Deployment controllers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.answering import answering
from tests.cluster.workspace.conftest import Controllers, Told, conditions, submit, until, workspace
from tests.cluster.workspace.stand_ins.following import Obj
from tests.cluster.workspace.stand_ins.kubelet import REPORT, Kubelet, at_step, checking
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.eventually import PATIENCE, eventually, never

from kaito_hooks.runtime import Client, NotFound, Resource, format_time, parse_time
from kaito_hooks.workspace.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    JOB,
    MACHINE,
    NETWORK_POLICY,
    NODE,
    POD,
    SERVICE,
    WORKSPACE,
)

DIGEST = "sha256:" + "d" * 64
RUNNING: Obj = {"running": {}}
LINEAGE = {"base-model": "phi-3-mini-4k-instruct", "data-digest": "sha256:" + "a" * 64, "seed": "42"}
PUSHED: Obj = {
    "terminated": {
        "exitCode": 0,
        "reason": "Completed",
        "message": json.dumps(
            {
                "image": "r.io/a:1",
                "digest": DIGEST,
                "metrics": {"loss": 0.25, "evalLoss": 0.5, "baseEvalLoss": 0.75},
                "lineage": LINEAGE,
            }
        ),
    }
}
CURVE = "2.31 █▆▅▃▂▁ 1.23"
SAID = {
    "phase": "Training",
    "progressPercentage": 42,
    "epoch": 0.4,
    "epochs": 3.0,
    "estimatedRemainingSeconds": 720,
    "metrics": {"loss": 1.234, "evalLoss": 1.5, "baseEvalLoss": 2.0},
    "curve": CURVE,
    "checkpointStep": 50,
}
REFUSED: Obj = {
    "terminated": {
        "exitCode": 2,
        "reason": "Error",
        "message": json.dumps({**REPORT, "reason": "DatasetInvalid", "problems": ["row 3 has no prompt"]}),
    }
}
REFUSAL = "step check: DatasetInvalid: row 3 has no prompt"


pytestmark = pytest.mark.usefixtures("templates", "node_without_gpu")


@pytest.fixture
def trainer() -> Iterator[str]:
    """An address at whose port 5000 a training tells how far it is."""

    with answering(SAID) as found:
        yield found.address


def tuning(name: str, namespace: str, **changes: Any) -> Obj:
    spec: Obj = {
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/train.parquet"]},
        "output": {"image": "r.io/team/adapter:0.1", "imagePushSecret": "push"},
        **changes,
    }
    found = workspace(name, namespace, tuning=spec)
    del found["inference"]
    return found


def find(admin: Client, resource: Resource, name: str, namespace: str) -> Obj | None:
    try:
        return admin.get(resource, name, namespace=namespace)
    except NotFound:
        return None


def status_of(admin: Client, obj: Obj) -> Obj:
    found = admin.get(WORKSPACE, obj["metadata"]["name"], namespace=obj["metadata"]["namespace"])
    return dict(found.get("status") or {})


def claims_of(admin: Client, obj: Obj) -> list[Obj]:
    selector = f"kaito.sh/workspacenamespace={obj['metadata']['namespace']}"
    return admin.list(MACHINE, label_selector=selector).items


def events_of(admin: Client, obj: Obj) -> list[str]:
    """Reasons and messages of the Workspace's Events."""
    found = admin.list(EVENT, namespace=obj["metadata"]["namespace"]).items
    ours = [event for event in found if event["involvedObject"].get("kind") == "Workspace"]
    return [text for event in ours for text in (event["reason"], event["message"])]


def test_a_preset_is_tuned_and_then_served_on_the_same_node(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet, trainer: str
) -> None:
    kubelet.report(place, checking("data", RUNNING))
    ws = submit(admin, tuning("tune", place))
    until(admin, ws, "JobStarted", status="False", words="tune-check-1")
    until(admin, ws, "JobStarted", status="False", words="fetching the data")
    assert status_of(admin, ws)["progress"] == "checking the data"
    assert claims_of(admin, ws) == []
    kubelet.report(place, at_step("data", RUNNING, ip=trainer))
    eventually(lambda: claims_of(admin, ws), what="no node is bought after the check")
    found = eventually(lambda: status_of(admin, ws).get("tuning", {}).get("check"), what="the check is not recorded")
    assert found.pop("inputs")
    assert found == {"revision": "1", "result": "Passed", **{k: v for k, v in REPORT.items() if v not in ([], "")}}
    eventually(lambda: find(admin, JOB, "tune-check-1", place) is None, what="the check's Job stays")
    until(admin, ws, "JobStarted", status="False", words="fetching the data")
    assert find(admin, CONFIG_MAP, "qlora-params-template", place)
    [claim] = claims_of(admin, ws)
    assert claim["spec"]["resources"]["requests"] == {"storage": "0"}
    job = admin.get(JOB, "tune", namespace=place)
    assert find(admin, SERVICE, "tune", place)
    [rule] = admin.get(NETWORK_POLICY, "tune", namespace=place)["spec"]["ingress"]
    assert rule["from"]

    kubelet.report(place, at_step("tune", RUNNING, ip=trainer))
    assert until(admin, ws, "JobStarted")["message"] == "Tuning job has started"
    eventually(lambda: status_of(admin, ws).get("progress") == "epoch 1/3, 42 %, loss 1.23, 12 min left")
    training = {"revision": "1", "curve": CURVE, "checkpointStep": 50, "evalLoss": 1.5, "baseEvalLoss": 2.0}
    assert status_of(admin, ws)["tuning"]["training"] == training
    until(admin, ws, "WorkspaceReady", status="False", words="workspace has not completed, tuning job has 1 active pod")

    kubelet.report(place, at_step("push", PUSHED, ip=trainer))
    until(admin, ws, "WorkspaceReady")
    found = status_of(admin, ws)
    assert {k: v for k, v in found["tuning"].items() if k not in ("check", "training")} == {
        "adapterImage": "r.io/team/adapter:0.1",
        "adapterDigest": DIGEST,
        "revision": "1",
        "metrics": {"loss": 0.25, "evalLoss": 0.5, "baseEvalLoss": 0.75},
        "lineage": LINEAGE,
        "served": True,
    }
    assert found["tuning"]["check"]["result"] == "Passed"
    assert found["tuning"]["training"] == training
    for words in ("1,200 rows to train", "the first checkpoint is written", "the loss on the rows held out is 1.5"):
        eventually(lambda words=words: sum(words in text for text in events_of(admin, ws)) == 1, what=words)
    reasons = {"TuningChecked", "CheckpointWritten", "Evaluated", "AdapterPushed"}
    eventually(lambda: reasons <= set(events_of(admin, ws)), what=lambda: f"only {events_of(admin, ws)}")
    columns = ("ResourceReady", "InferenceReady", "JobStarted", "WorkspaceReady", "WorkspaceSucceeded")
    assert {c["type"]: c["status"] for c in found["conditions"] if c["type"] in columns} == dict.fromkeys(
        columns, "True"
    )
    spec = admin.get(DEPLOYMENT, "tune", namespace=place)["spec"]["template"]["spec"]
    [adapter] = [c for c in spec["initContainers"] if c["name"].startswith("adapter-")]
    assert f"r.io/team/adapter@{DIGEST}" in adapter["args"]
    assert [c["metadata"]["name"] for c in claims_of(admin, ws)] == [claim["metadata"]["name"]]

    admin.patch(WORKSPACE, "tune", {"resource": {"preferredNodes": ["n1"]}}, namespace=place)
    eventually(lambda: status_of(admin, ws)["conditions"][0]["observedGeneration"] == 2)
    assert admin.get(JOB, "tune", namespace=place)["metadata"]["uid"] == job["metadata"]["uid"]

    kubelet.report(place, at_step("tune", RUNNING, ip=trainer))
    output = {"tuning": {"output": {"image": "r.io/team/adapter:0.2"}}}
    admin.patch(WORKSPACE, "tune", output, namespace=place)
    eventually(
        lambda: (found := find(admin, JOB, "tune", place)) and found["metadata"]["uid"] != job["metadata"]["uid"],
        what="the Job of the new revision does not come",
    )
    assert find(admin, DEPLOYMENT, "tune", place) is None
    until(admin, ws, "JobStarted")
    until(admin, ws, "WorkspaceReady", status="False")
    kubelet.report(place, at_step("push", PUSHED, ip=trainer))
    until(admin, ws, "WorkspaceReady")
    assert status_of(admin, ws)["tuning"]["adapterImage"] == "r.io/team/adapter:0.2"
    assert len(claims_of(admin, ws)) == 1


def test_what_can_never_succeed_is_kept_through_a_restart_of_the_controller(
    admin: Client, place: str, controllers: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ended = {"terminated": {"exitCode": 2, "reason": "Error", "message": "DatasetInvalid: row 3 has no prompt"}}
    kubelet.report(place, at_step("tune", ended))
    first = controllers.start()
    ws = submit(admin, tuning("never", place))
    sentence = "step tune: DatasetInvalid: row 3 has no prompt"
    until(admin, ws, "JobStarted", status="False", words=sentence)
    eventually(lambda: find(admin, JOB, "never", place) is None, what="the Job stays")
    eventually(lambda: claims_of(admin, ws) == [], what="the claim stays")
    until(admin, ws, "ResourceReady", status="False", words="no node is kept for a tuning that has failed for good")
    first.terminate()
    first.wait(PATIENCE)
    controllers.start()
    admin.patch(WORKSPACE, "never", {"resource": {"preferredNodes": ["n1"]}}, namespace=place)
    eventually(lambda: conditions(admin, ws)["JobStarted"]["observedGeneration"] == 2)
    assert conditions(admin, ws)["JobStarted"]["message"] == sentence
    assert conditions(admin, ws)["WorkspaceReady"]["message"] == sentence
    never(lambda: find(admin, JOB, "never", place) or claims_of(admin, ws), within=1, every=0.2)
    kubelet.report(place, at_step("tune", RUNNING))
    better = {"tuning": {"input": {"urls": ["https://example.com/better.parquet"]}}}
    admin.patch(WORKSPACE, "never", better, namespace=place)
    until(admin, ws, "JobStarted")
    assert len(claims_of(admin, ws)) == 1


def test_a_configuration_is_asked_for_before_a_node_is_bought(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, tuning("config", place, config="mine"))
    until(admin, ws, "JobStarted", status="False", words="ConfigMap 'mine' specified in 'config' not found")
    assert claims_of(admin, ws) == []
    kubelet.report(place, at_step("weights", RUNNING))
    text = admin.get(CONFIG_MAP, "qlora-params-template", namespace="kaito")["data"]["training_config.yaml"]
    data = {"training_config.yaml": text.replace("output_dir: /mnt/results", "output_dir: mine")}
    admin.create(CONFIG_MAP, {"metadata": {"name": "mine", "namespace": place}, "data": data})
    until(admin, ws, "JobStarted", status="False", words="fetching the weights")
    spec = admin.get(JOB, "config", namespace=place)["spec"]["template"]["spec"]
    assert "/mnt/mine" in spec["containers"][0]["args"]


def test_a_pod_that_goes_on_after_its_push_goes_before_the_server_comes(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    def with_a_proxy(pod: Obj) -> Obj:
        # What a service mesh puts into a Pod does not end.
        return {**at_step("push", PUSHED)(pod), "phase": "Running"}

    kubelet.report(place, with_a_proxy)
    ws = submit(admin, tuning("meshed", place))
    until(admin, ws, "WorkspaceReady")
    assert find(admin, JOB, "meshed", place) is None
    [pod] = eventually(lambda: found if len(found := admin.list(POD, namespace=place).items) == 1 else [])
    assert [owner["kind"] for owner in pod["metadata"]["ownerReferences"]] == ["ReplicaSet"]
    assert status_of(admin, ws)["tuning"]["adapterDigest"] == DIGEST


def test_without_serving_the_node_is_given_back(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    kubelet.report(place, at_step("push", PUSHED))
    ws = submit(admin, tuning("once", place, serveResult=False))
    until(admin, ws, "WorkspaceReady")
    eventually(lambda: claims_of(admin, ws) == [], what="the claim stays")
    never(lambda: claims_of(admin, ws), within=1, every=0.2)
    assert find(admin, DEPLOYMENT, "once", place) is None
    eventually(lambda: status_of(admin, ws).get("workerNodes", []) == [])
    admin.delete(WORKSPACE, "once", namespace=place)
    eventually(lambda: find(admin, WORKSPACE, "once", place) is None)


def test_what_the_check_refuses_buys_nothing_until_its_configuration_is_right(
    admin: Client, place: str, controllers: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    text = admin.get(CONFIG_MAP, "qlora-params-template", namespace="kaito")["data"]["training_config.yaml"]
    data = {"training_config.yaml": text}
    admin.create(CONFIG_MAP, {"metadata": {"name": "mine", "namespace": place}, "data": data})
    kubelet.report(place, checking("check", REFUSED))
    first = controllers.start()
    ws = submit(admin, tuning("refused", place, config="mine"))
    until(admin, ws, "JobStarted", status="False", words=REFUSAL)
    assert conditions(admin, ws)["WorkspaceReady"]["message"] == REFUSAL
    eventually(lambda: find(admin, JOB, "refused-check-1", place) is None, what="the check's Job stays")
    assert status_of(admin, ws)["tuning"]["check"]["problems"] == ["row 3 has no prompt"]
    first.terminate()
    first.wait(PATIENCE)
    controllers.start()
    never(lambda: find(admin, JOB, "refused-check-1", place) or claims_of(admin, ws), within=2, every=0.2)
    assert events_of(admin, ws).count(REFUSAL) == 1

    kubelet.report(place, at_step("tune", RUNNING))
    data = {"training_config.yaml": text.replace("lora_alpha: 8", "lora_alpha: 16")}
    admin.patch(CONFIG_MAP, "mine", {"data": data}, namespace=place)
    until(admin, ws, "JobStarted")
    assert len(claims_of(admin, ws)) == 1
    assert status_of(admin, ws)["tuning"]["check"]["result"] == "Passed"


def test_an_earlier_result_is_served_on_a_new_node_while_the_next_tuning_is_refused(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    kubelet.report(place, at_step("push", PUSHED))
    ws = submit(admin, tuning("kept", place))
    until(admin, ws, "WorkspaceReady")
    [before] = claims_of(admin, ws)
    kubelet.report(place, checking("check", REFUSED))
    worse = {"tuning": {"input": {"urls": ["https://example.com/worse.parquet"]}}}
    admin.patch(WORKSPACE, "kept", worse, namespace=place)
    until(admin, ws, "JobStarted", status="False", words=REFUSAL)
    admin.delete(MACHINE, before["metadata"]["name"])
    eventually(
        lambda: [c for c in claims_of(admin, ws) if c["metadata"]["uid"] != before["metadata"]["uid"]],
        what="no node is bought again",
    )
    until(admin, ws, "ResourceReady")
    until(admin, ws, "InferenceReady")
    admin.delete(DEPLOYMENT, "kept", namespace=place)
    eventually(lambda: find(admin, DEPLOYMENT, "kept", place), what="the server does not come again")
    assert conditions(admin, ws)["JobStarted"]["message"] == REFUSAL


def test_a_check_that_never_ends_is_ended_and_buys_nothing(
    admin: Client, place: str, controllers: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    begun: Obj = {"running": {"startedAt": format_time(datetime.now(UTC))}}
    kubelet.report(place, checking("check", begun))
    controllers.start(values={"tuning": {"check": {"deadline": "30s"}}})
    ws = submit(admin, tuning("hung", place))
    eventually(lambda: find(admin, JOB, "hung-check-1", place), what="there is no check")
    until(admin, ws, "JobStarted", status="False", words="step check has not ended within 30s")
    eventually(lambda: find(admin, JOB, "hung-check-1", place) is None, what="the check's Job stays")
    assert status_of(admin, ws)["tuning"]["check"]["result"] == "Refused"
    assert claims_of(admin, ws) == []


def test_data_that_were_put_right_behind_their_url_are_checked_when_it_is_asked_for(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    missing: Obj = {"terminated": {"exitCode": 2, "reason": "Error", "message": "https://example.com answers 404"}}
    kubelet.report(place, checking("data", missing))
    ws = submit(admin, tuning("again", place))
    until(admin, ws, "JobStarted", status="False", words="step data: https://example.com answers 404")
    assert claims_of(admin, ws) == []
    kubelet.report(place, at_step("tune", RUNNING))
    asked = {"metadata": {"annotations": {"kaito.sh/tuning-check": "again"}}}
    admin.patch(WORKSPACE, "again", asked, namespace=place)
    until(admin, ws, "JobStarted")


def test_a_push_secret_that_is_missing_is_named_and_its_coming_goes_on_by_itself(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    kubelet.report(place, checking("push-right", {"waiting": {"reason": "PodInitializing"}}))
    ws = submit(admin, tuning("late", place))
    [pod] = eventually(lambda: admin.list(POD, namespace=place).items, what="the check has no Pod")
    missing = 'MountVolume.SetUp failed for volume "registry-1" : secret "push" not found'
    involved = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
    event = {
        "metadata": {"name": "late.1", "namespace": place},
        "involvedObject": {"kind": "Pod", **involved},
        "type": "Warning",
        "reason": "FailedMount",
        "message": missing,
    }
    admin.create(EVENT, event)
    until(admin, ws, "JobStarted", status="False", words='secret "push" not found')
    never(lambda: claims_of(admin, ws), within=1, every=0.2)
    kubelet.report(place, at_step("tune", RUNNING))
    until(admin, ws, "JobStarted")


def test_where_no_node_takes_the_check_it_is_skipped_and_the_node_is_bought(
    admin: Client,
    place: str,
    controllers: Controllers,
    provisioner: Provisioner,
    kubelet: Kubelet,
    node_without_gpu: str,
) -> None:
    kubelet.report(place, at_step("tune", RUNNING))
    controllers.start(values={"tuning": {"check": {"timeout": "3s"}}})
    admin.patch(NODE, node_without_gpu, {"spec": {"unschedulable": True}})
    try:
        with Told(admin, place) as told:
            ws = submit(admin, tuning("homeless", place))
            told.until("JobStarted", words="cannot be scheduled")
        until(admin, ws, "JobStarted")
        [claim] = claims_of(admin, ws)
        asked, bought = (parse_time(obj["metadata"]["creationTimestamp"]) for obj in (ws, claim))
        assert (bought - asked).total_seconds() >= 3
    finally:
        admin.patch(NODE, node_without_gpu, {"spec": {"unschedulable": None}})
    found = status_of(admin, ws)["tuning"]["check"]
    assert (found["result"], found["revision"]) == ("Skipped", "1")
    assert "no node took its Pod within 3s" in found["message"]
    eventually(lambda: "TuningCheckSkipped" in events_of(admin, ws))


def test_an_adapter_that_is_worse_than_its_base_is_not_served_until_the_gate_is_opened(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    message = json.dumps({"digest": DIGEST, "metrics": {"evalLoss": 2.5, "baseEvalLoss": 1.75}})
    kubelet.report(place, at_step("push", {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}))
    ws = submit(admin, tuning("worse", place))
    words = "on the rows held out its loss is 2.5, the base model's 1.75"
    until(admin, ws, "InferenceReady", status="False", words=words)
    until(admin, ws, "WorkspaceReady", status="False", words=words)
    eventually(lambda: claims_of(admin, ws) == [], what="the claim stays")
    admin.patch(WORKSPACE, "worse", {"metadata": {"annotations": {"kaito.sh/tuning-gate": "off"}}}, namespace=place)
    until(admin, ws, "WorkspaceReady")
    assert len(claims_of(admin, ws)) == 1


def test_a_workspace_that_is_deleted_while_it_is_checked_leaves_nothing(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    kubelet.report(place, checking("data", RUNNING))
    ws = submit(admin, tuning("gone", place))
    until(admin, ws, "JobStarted", status="False", words="fetching the data")
    admin.delete(WORKSPACE, "gone", namespace=place)
    eventually(lambda: find(admin, WORKSPACE, "gone", place) is None)
    eventually(lambda: admin.list(JOB, namespace=place).items == [], what="the check's Job stays")
    eventually(lambda: admin.list(POD, namespace=place).items == [], what="the check's Pod stays")
    assert claims_of(admin, ws) == []
