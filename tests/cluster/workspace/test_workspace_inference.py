"""The way of an inference Workspace on a real API server."""

from __future__ import annotations

import json
import re
import time

from tests.answering import answering
from tests.cluster.workspace.conftest import Controllers, conditions, submit, until, until_quiet, workspace
from tests.cluster.workspace.stand_ins.following import Obj
from tests.cluster.workspace.stand_ins.kubelet import Kubelet, State, running, starting
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.eventually import eventually

from kaito_hooks.runtime import Client, NotFound, parse_time
from kaito_hooks.workspace.resources import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    MACHINE,
    NETWORK_POLICY,
    NODE,
    POD,
    SERVICE,
    WORKSPACE,
)
from kaito_hooks.workspace.status.progress import PERIOD
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.commands.demo import PHASES

REFUSED = {
    "phase": "Failed",
    "reason": "UnexpectedAdmissionError",
    "message": "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate nvidia.com/gpu",
    "conditions": [{"type": "Ready", "status": "False"}],
}
"""What a kubelet says of a Pod that it had, when it starts before the device plugin."""


def claims_of(admin: Client, obj: Obj) -> list[Obj]:
    metadata = obj["metadata"]
    selector = f"kaito.sh/workspace={metadata['name']},kaito.sh/workspacenamespace={metadata['namespace']}"
    return admin.list(MACHINE, label_selector=selector).items


def gone(admin: Client, obj: Obj) -> bool:
    try:
        admin.get(WORKSPACE, obj["metadata"]["name"], namespace=obj["metadata"]["namespace"])
    except NotFound:
        return True
    return False


def test_a_preset_is_served_and_its_node_given_back(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, workspace("phi", place))
    until(admin, ws, "WorkspaceReady")
    found = conditions(admin, ws)
    expected = {
        "MachineReady": ("True", "installNodePluginsSuccess", "machines plugins have been installed successfully"),
        "ResourceReady": ("True", "workspaceResourceStatusSuccess", "workspace resource is ready"),
        "InferenceReady": ("True", "WorkspaceInferenceStatusSuccess", "Inference has been deployed successfully"),
        "WorkloadUpToDate": ("True", "UpToDate", "the workload is what its Workspace and the settings say"),
        "WorkspaceReady": ("True", "workspaceReady", "workspace is ready"),
        "WorkspaceSucceeded": ("True", "workspaceSucceeded", "workspace succeeds"),
    }
    assert {k: (c["status"], c["reason"], c["message"]) for k, c in found.items()} == expected
    [claim] = claims_of(admin, ws)
    node = admin.get(NODE, claim["status"]["nodeName"])
    assert node["metadata"]["labels"]["accelerator"] == "nvidia"
    now = admin.get(WORKSPACE, "phi", namespace=place)
    assert now["status"]["workerNodes"] == [node["metadata"]["name"]]
    assert now["metadata"]["finalizers"] == ["workspace.finalizer.kaito.sh"]
    start, ready = now["status"]["startup"], found["WorkspaceReady"]["lastTransitionTime"]
    age = parse_time(ready) - parse_time(now["metadata"]["creationTimestamp"])
    assert sum(phase["seconds"] for phase in start["phases"]) == start["totalSeconds"] == age.total_seconds()
    assert {"Bought", "NodeReady"} <= {phase["name"] for phase in start["phases"]}
    for resource in (DEPLOYMENT, SERVICE, NETWORK_POLICY):
        assert (
            admin.get(resource, "phi", namespace=place)["metadata"]["ownerReferences"][0]["uid"]
            == ws["metadata"]["uid"]
        )

    admin.delete(WORKSPACE, "phi", namespace=place)
    eventually(lambda: gone(admin, ws))
    assert claims_of(admin, ws) == []


def test_the_wide_columns_tell_the_preset_the_nodes_and_how_long_the_start_took(
    admin: Client,
    place: str,
    plane: ControlPlane,
    controller: Controllers,
    provisioner: Provisioner,
    kubelet: Kubelet,
) -> None:
    ws = submit(admin, workspace("columns", place))
    until(admin, ws, "WorkspaceReady")
    header, row = plane.kubectl("get", "workspace", "columns", "-n", place, "-o", "wide").splitlines()
    at = [found.start() for found in re.finditer(r"\S+", header)]
    told = {header[a:b].strip(): row[a:b].strip() for a, b in zip(at, [*at[1:], None], strict=True)}
    assert list(told) == [
        *("NAME", "INSTANCE", "RESOURCEREADY", "INFERENCEREADY", "WORKSPACEREADY", "AGE"),
        *("PRESET", "JOBSTARTED", "UPTODATE", "PROGRESS", "NODES", "STARTUPSECONDS", "MESSAGE"),
    ]
    status = admin.get(WORKSPACE, "columns", namespace=place)["status"]
    assert told["PRESET"] == "phi-3-mini-4k-instruct"
    assert told["NODES"] == json.dumps(status["workerNodes"])
    assert told["STARTUPSECONDS"] == str(status["startup"]["totalSeconds"])
    assert told["MESSAGE"] == "workspace is ready"
    lines = plane.kubectl("get", "workspace", "columns", "-n", place, "-o", f"jsonpath={PHASES}").splitlines()
    assert lines == [f"{phase['name']}: {phase['seconds']} s" for phase in status["startup"]["phases"]]


def test_a_server_that_is_not_ready_says_why_in_the_workspace(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    said = {"state": "loading", "progress": 0.42, "message": "loading weights"}
    with answering(said) as server:
        kubelet.report(place, starting(server.address))
        ws = submit(admin, workspace("slow", place))
        until(admin, ws, "InferenceReady", status="False", words=": loading weights, 42 %")
        server.said = {"state": "restarting", "progress": None, "message": "the engine has died"}
        until(admin, ws, "WorkspaceReady", status="False", words=": restarting: the engine has died")
        server.said = {"state": "failed", "progress": None, "message": "the weights hold no config.json"}
        found = until(admin, ws, "InferenceReady", status="False", words=": the weights hold no config.json")
        assert found["reason"] == "WorkspaceInferenceStatusFailed"
        assert set(server.asked) == {"/progress"}
        kubelet.report(place, running)
        until(admin, ws, "WorkspaceReady")

        def left_alone() -> bool:
            asked = len(server.asked)
            time.sleep(1.2 * PERIOD)
            return len(server.asked) == asked

        # Who is ready is not asked any more, after a question that was on its way.
        eventually(left_alone)


def test_a_pod_that_a_restarted_kubelet_refuses_is_followed_by_one_that_serves(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, workspace("rebooted", place))
    until(admin, ws, "WorkspaceReady")
    [first] = admin.list(POD, namespace=place).items

    def unless_refused(others: State) -> State:
        mine = first["metadata"]["uid"]
        return lambda pod: REFUSED if pod["metadata"]["uid"] == mine else others(pod)

    with answering({"state": "loading", "progress": 0.42, "message": "loading weights"}) as server:
        kubelet.report(place, unless_refused(starting(server.address)))
        until(admin, ws, "InferenceReady", status="False", words=": loading weights, 42 %")
        kubelet.report(place, unless_refused(running))
        until(admin, ws, "WorkspaceReady")
    assert "Failed" in [pod["status"]["phase"] for pod in admin.list(POD, namespace=place).items]


def test_an_unchanged_workspace_is_never_written_again(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, workspace("quiet", place))
    until(admin, ws, "WorkspaceReady")
    version = until_quiet(admin, ws, seconds=1)
    deployment = admin.get(DEPLOYMENT, "quiet", namespace=place)["metadata"]["generation"]
    [claim] = claims_of(admin, ws)
    admin.patch(NODE, claim["status"]["nodeName"], {"metadata": {"annotations": {"a": "b"}}})
    other = submit(admin, workspace("second", place))
    until(admin, other, "WorkspaceReady")
    assert admin.get(WORKSPACE, "quiet", namespace=place)["metadata"]["resourceVersion"] == version
    assert admin.get(DEPLOYMENT, "quiet", namespace=place)["metadata"]["generation"] == deployment


def test_a_users_template_runs_as_written_and_is_not_rewritten(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    container = {
        "name": "mine",
        "image": "nginx:1.27",
        "ports": [{"containerPort": 8080}],
        "env": [{"name": "EMPTY", "value": ""}, {"name": "SET", "value": "1"}],
        "resources": {
            "requests": {"cpu": "0.5", "memory": "1024Mi"},
            "limits": {"nvidia.com/gpu": 1, "memory": "2048Mi"},
        },
    }
    template = {"metadata": {"labels": {"team": "a"}}, "spec": {"containers": [container]}}
    ws = submit(admin, workspace("custom", place, inference={"template": template}))
    until(admin, ws, "WorkspaceReady")
    before = admin.get(DEPLOYMENT, "custom", namespace=place)
    [found] = before["spec"]["template"]["spec"]["containers"]
    assert (found["name"], found["image"]) == ("mine", "nginx:1.27")
    assert before["spec"]["template"]["metadata"]["labels"] == {"team": "a", "kaito.sh/workspace": "custom"}
    ports = admin.get(SERVICE, "custom", namespace=place)["spec"]["ports"]
    assert {p["name"]: (p["port"], p["targetPort"]) for p in ports}["http"] == (80, 8080)
    version = until_quiet(admin, ws, seconds=1)
    other = submit(admin, workspace("after", place))
    until(admin, other, "WorkspaceReady")
    after = admin.get(DEPLOYMENT, "custom", namespace=place)
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert [e["operation"] for e in after["metadata"]["managedFields"] if e["manager"] == "kaito"] == []
    assert admin.get(WORKSPACE, "custom", namespace=place)["metadata"]["resourceVersion"] == version


def test_a_load_balancer_is_asked_for_by_annotation(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = workspace("public", place)
    ws["metadata"]["annotations"] = {"kaito.sh/enablelb": "True"}
    submit(admin, ws)
    until(admin, ws, "WorkspaceReady")
    assert admin.get(SERVICE, "public", namespace=place)["spec"]["type"] == "LoadBalancer"
    admin.patch(WORKSPACE, "public", {"metadata": {"annotations": {"kaito.sh/enablelb": None}}}, namespace=place)
    eventually(lambda: admin.get(SERVICE, "public", namespace=place)["spec"]["type"] == "ClusterIP")
    admin.patch(WORKSPACE, "public", {"metadata": {"annotations": {"kaito.sh/enablelb": "True"}}}, namespace=place)
    eventually(lambda: admin.get(SERVICE, "public", namespace=place)["spec"]["type"] == "LoadBalancer")
    ports = {
        p["name"]: (p["port"], p["targetPort"]) for p in admin.get(SERVICE, "public", namespace=place)["spec"]["ports"]
    }
    assert ports == {"http": (80, 5000), "torch": (29500, 29500)}


def test_two_nodes_serve_two_replicas_and_the_history_is_kept(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = workspace("pair", place)
    ws["resource"]["count"] = 2
    submit(admin, ws)
    until(admin, ws, "WorkspaceReady")
    assert len(claims_of(admin, ws)) == 2
    found = admin.get(WORKSPACE, "pair", namespace=place)
    assert len(found["status"]["workerNodes"]) == 2
    assert found["status"]["workerNodes"] == sorted(found["status"]["workerNodes"])
    digest = found["metadata"]["annotations"]["workspace.kaito.io/hash"]
    revision = admin.get(CONTROLLER_REVISION, f"pair-{digest[:5]}", namespace=place)
    assert revision["revision"] == 1
    assert revision["data"]["inference"]["preset"]["name"] == "phi-3-mini-4k-instruct"
