"""The way of a tuning Workspace on a real API server with real Job and Deployment controllers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.answering import answering
from tests.cluster.workspace.conftest import Controllers, conditions, submit, until, workspace
from tests.cluster.workspace.stand_ins.following import Obj
from tests.cluster.workspace.stand_ins.kubelet import Kubelet, at_step
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.eventually import PATIENCE, eventually, never

from kaito_hooks.runtime import Client, NotFound, Resource
from kaito_hooks.workspace.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    JOB,
    MACHINE,
    NETWORK_POLICY,
    POD,
    SERVICE,
    WORKSPACE,
)

DIGEST = "sha256:" + "d" * 64
RUNNING: Obj = {"running": {}}
PUSHED: Obj = {
    "terminated": {
        "exitCode": 0,
        "reason": "Completed",
        "message": json.dumps({"image": "r.io/a:1", "digest": DIGEST, "metrics": {"loss": 0.25, "evalLoss": 0.5}}),
    }
}
SAID = {
    "phase": "Training",
    "progressPercentage": 42,
    "epoch": 0.4,
    "epochs": 3.0,
    "estimatedRemainingSeconds": 720,
    "metrics": {"loss": 1.234},
}


pytestmark = pytest.mark.usefixtures("templates")


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


def test_a_preset_is_tuned_and_then_served_on_the_same_node(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet, trainer: str
) -> None:
    kubelet.report(place, at_step("data", RUNNING, ip=trainer))
    ws = submit(admin, tuning("tune", place))
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
    until(admin, ws, "WorkspaceReady", status="False", words="workspace has not completed, tuning job has 1 active pod")

    kubelet.report(place, at_step("push", PUSHED, ip=trainer))
    until(admin, ws, "WorkspaceReady")
    found = status_of(admin, ws)
    assert found["tuning"] == {
        "adapterImage": "r.io/team/adapter:0.1",
        "adapterDigest": DIGEST,
        "revision": "1",
        "metrics": {"loss": 0.25, "evalLoss": 0.5},
    }
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
    first.terminate()
    first.wait(PATIENCE)
    controllers.start()
    admin.patch(WORKSPACE, "never", {"resource": {"preferredNodes": ["n1"]}}, namespace=place)
    eventually(lambda: conditions(admin, ws)["JobStarted"]["observedGeneration"] == 2)
    assert conditions(admin, ws)["JobStarted"]["message"] == sentence
    assert conditions(admin, ws)["WorkspaceReady"]["message"] == sentence
    never(lambda: find(admin, JOB, "never", place), within=1, every=0.2)


def test_a_configuration_is_asked_for_before_a_node_is_bought(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, tuning("config", place, config="mine"))
    until(admin, ws, "JobStarted", status="False", words="ConfigMap 'mine' specified in 'config' not found")
    assert claims_of(admin, ws) == []
    kubelet.report(place, at_step("check", RUNNING))
    text = admin.get(CONFIG_MAP, "qlora-params-template", namespace="kaito")["data"]["training_config.yaml"]
    data = {"training_config.yaml": text.replace("output_dir: /mnt/results", "output_dir: mine")}
    admin.create(CONFIG_MAP, {"metadata": {"name": "mine", "namespace": place}, "data": data})
    until(admin, ws, "JobStarted", status="False", words="checking that the adapter may be pushed")
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
    [pod] = admin.list(POD, namespace=place).items
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
    assert status_of(admin, ws).get("workerNodes", []) == []
    admin.delete(WORKSPACE, "once", namespace=place)
    eventually(lambda: find(admin, WORKSPACE, "once", place) is None)
