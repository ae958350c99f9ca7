"""Upgrades, rolls, scaling and children that are wanted no longer, on a real API server with its real controllers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.cluster.workspace.conftest import Controllers, submit, until, workspace
from tests.cluster.workspace.stand_ins.following import Obj
from tests.cluster.workspace.stand_ins.kubelet import Kubelet, running
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.eventually import PATIENCE, eventually, never

from kaito_hooks.api.version import VERSION
from kaito_hooks.runtime import Client, Informer, NotFound, Resource
from kaito_hooks.workspace.children.workload import is_available
from kaito_hooks.workspace.resources import (
    CATALOG,
    DEPLOYMENT,
    MACHINE,
    NETWORK_POLICY,
    POD,
    SERVICE,
    STATEFUL_SET,
    WORKSPACE,
)
from kaito_local.cluster.controlplane import ControlPlane

AUTOSCALER = Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", True)
PRESET = "phi-3-mini-4k-instruct"
LIVE = 20
UPGRADED: Mapping[str, Any] = {
    "image": {"tag": "9.0.0"},
    "registries": {"plainHTTP": ["10.0.0.1:5000"]},
    "serving": {"extraEnv": [{"name": "SEEN", "value": "today"}]},
    "proxy": {"httpsProxy": "http://proxy.example.com:3128"},
}


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(PATIENCE)


def deployments(admin: Client, place: str) -> dict[str, Obj]:
    return {d["metadata"]["name"]: d for d in admin.list(DEPLOYMENT, namespace=place).items}


def templates(admin: Client, place: str) -> dict[str, tuple[int, Obj]]:
    """Generation and Pod template of each Deployment."""
    found = deployments(admin, place)
    return {name: (d["metadata"]["generation"], d["spec"]["template"]) for name, d in found.items()}


def pods(admin: Client, place: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in admin.list(POD, namespace=place).items}


def images(deployment: Obj) -> set[str]:
    pod = deployment["spec"]["template"]["spec"]
    return {c["image"].rpartition(":")[2].split("-")[0] for c in (*pod["initContainers"], *pod["containers"])}


def condition(workspace: Obj, kind: str) -> Obj:
    found = (workspace.get("status") or {}).get("conditions") or ()
    return next((c for c in found if c["type"] == kind), {})


def reasons(admin: Client, place: str) -> dict[str, str]:
    found = admin.list(WORKSPACE, namespace=place).items
    return {w["metadata"]["name"]: condition(w, "WorkloadUpToDate").get("reason", "") for w in found}


def annotate(admin: Client, place: str, name: str, **values: str) -> None:
    annotations = {f"kaito.sh/{key}": value for key, value in values.items()}
    admin.patch(WORKSPACE, name, {"metadata": {"annotations": annotations}}, namespace=place)


@contextmanager
def preset(admin: Client, **fields: Any) -> Iterator[None]:
    """The Catalog with these fields of the preset."""
    before = admin.get(CATALOG, "kaito")["spec"]["presets"][PRESET]
    admin.patch(CATALOG, "kaito", {"spec": {"presets": {PRESET: fields}}})
    try:
        yield
    finally:
        undo = {key: before.get(key) for key in fields}
        admin.patch(CATALOG, "kaito", {"spec": {"presets": {PRESET: undo}}})


def test_twenty_models_outlive_an_upgrade_and_are_rolled_by_hand_and_two_at_a_time(
    admin: Client, place: str, controllers: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    process = controllers.start()
    names = [f"m{n:02}" for n in range(LIVE)]
    live = [submit(admin, workspace(name, place)) for name in names]
    for ws in live:
        until(admin, ws, "WorkspaceReady", timeout=2 * PATIENCE)
    before, running_pods = templates(admin, place), pods(admin, place)
    assert set(reasons(admin, place).values()) == {"UpToDate"}

    # An upgrade of the chart: all of it at once, and a field of the preset.
    stop(process)
    with preset(admin, readinessTimeout="47m"):
        process = controllers.start(values=UPGRADED)
        eventually(
            lambda: set(reasons(admin, place).values()) == {"PlatformChanged"}, what=lambda: str(reasons(admin, place))
        )
        message = until(admin, live[3], "WorkloadUpToDate", status="False")["message"]
        assert f"kaito-hooks:{VERSION} and would be ghcr.io/kaito-python/kaito-hooks:9.0.0" in message
        assert "kaito.sh/roll" in message
        assert (templates(admin, place), pods(admin, place)) == (before, running_pods)

        # By hand: one, and only that one.
        annotate(admin, place, "m07", roll="now")
        eventually(lambda: images(deployments(admin, place)["m07"]) == {"9.0.0"})
        until(admin, live[7], "WorkloadUpToDate")
        until(admin, live[7], "WorkspaceReady")
        rolled = deployments(admin, place)["m07"]
        assert rolled["metadata"]["generation"] == before["m07"][0] + 1
        [server] = rolled["spec"]["template"]["spec"]["containers"]
        assert {"name": "SEEN", "value": "today"} in server["env"]
        # 36 answers, each within a 36th of 47 minutes.
        assert server["startupProbe"]["httpGet"]["path"] == "/health?wait=79"
        rest = {name: found for name, found in templates(admin, place).items() if name != "m07"}
        assert rest == {name: found for name, found in before.items() if name != "m07"}

        # By themselves: two at a time, and whoever does not become ready holds up the others.
        stop(process)
        _roll_the_rest(admin, place, controllers, kubelet=kubelet, before=before)
    for ws in live:
        until(admin, ws, "WorkspaceReady")


def _roll_the_rest(
    admin: Client, place: str, controllers: Controllers, *, kubelet: Kubelet, before: Mapping[str, tuple[int, Obj]]
) -> None:
    ready: set[str] = set()
    most = 0
    informer = Informer(admin, DEPLOYMENT, namespace=place)

    def state(pod: Obj) -> Obj:
        """Pods of today's image are ready when the test says so."""
        name = pod["metadata"]["labels"]["kaito.sh/workspace"]
        if name in ready or name == "m07" or ":9.0.0" not in pod["spec"]["initContainers"][0]["image"]:
            return running(pod)
        return {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}

    def rolled() -> set[str]:
        return {name for name, found in deployments(admin, place).items() if images(found) == {"9.0.0"}} - {"m07"}

    def count(old: Obj | None, new: Obj | None) -> None:
        nonlocal most
        found = informer.list()
        down = [
            d for d in found if d["metadata"]["generation"] > before[d["metadata"]["name"]][0] and not is_available(d)
        ]
        most = max(most, len(down))

    kubelet.report(place, state)
    informer.subscribe(count)
    informer.start()
    assert informer.wait_synced(PATIENCE)
    try:
        values = {**UPGRADED, "workloads": {"upgrade": "rolling", "maxUnavailable": 2}}
        process = controllers.start(values=values)
        eventually(lambda: len(rolled()) == 2, what=lambda: f"{rolled()} {controllers.logs()[-2000:]}")
        first = rolled()
        never(lambda: rolled() != first, within=6.0)
        # A controller that dies in the middle goes on with the same two.
        stop(process)
        controllers.start(values=values)
        never(lambda: rolled() != first, within=8.0)
        while len(ready) < LIVE - 1:
            nxt = sorted(rolled() - ready)[0]
            ready.add(nxt)
            kubelet.report(place, state)
            due = min(len(ready) + 2, LIVE - 1)
            eventually(lambda due=due: len(rolled()) == due, what=lambda: f"{sorted(rolled())} {sorted(ready)}")  # type: ignore[misc]
        eventually(lambda: set(reasons(admin, place).values()) == {"UpToDate"}, what=lambda: str(reasons(admin, place)))
        assert most == 2
    finally:
        informer.stop()
    generations = {name: found[0] for name, found in templates(admin, place).items()}
    assert generations == {name: found[0] + 1 for name, found in before.items()}


def test_a_workload_of_the_controller_before_is_taken_over_without_a_restart(
    plane: ControlPlane, admin: Client, place: str, controllers: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    process = controllers.start(values={"serving": {"extraEnv": [{"name": "GONE", "value": "1"}]}})
    ws = submit(admin, workspace("older", place))
    until(admin, ws, "WorkspaceReady")
    stop(process)
    key = "workspace.kaito.io/workload-hash"
    admin.patch(DEPLOYMENT, "older", {"metadata": {"labels": {key: None}}}, namespace=place)
    before, running_pods = templates(admin, place), pods(admin, place)

    controllers.start(values={"image": {"tag": "9.0.0"}})
    eventually(lambda: key in deployments(admin, place)["older"]["metadata"]["labels"])
    until(admin, ws, "WorkloadUpToDate", status="False", words="GONE of container older")
    [columns, row] = plane.kubectl("get", "workspaces", "--namespace", place, "--output", "wide").splitlines()
    assert row[columns.index("UPTODATE") :].split()[0] == "False"
    # Not even its generation is another: it was ready all the time.
    assert (templates(admin, place), pods(admin, place)) == (before, running_pods)
    # Another revision that asks for the same Pods.
    admin.patch(WORKSPACE, "older", {"resource": {"preferredNodes": ["wish"]}}, namespace=place)
    revision = "workspace.kaito.io/revision"
    eventually(lambda: deployments(admin, place)["older"]["metadata"]["annotations"][revision] == "2")
    assert templates(admin, place)["older"][1] == before["older"][1]
    assert pods(admin, place) == running_pods

    annotate(admin, place, "older", roll="now")
    until(admin, ws, "WorkloadUpToDate")
    until(admin, ws, "WorkspaceReady")
    [server] = deployments(admin, place)["older"]["spec"]["template"]["spec"]["containers"]
    assert "GONE" not in [e["name"] for e in server["env"]]
    assert images(deployments(admin, place)["older"]) == {"9.0.0"}


def test_replicas_are_left_to_who_scales(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, workspace("scaled", place))
    until(admin, ws, "WorkspaceReady")
    claims = {"label_selector": f"kaito.sh/workspacenamespace={place}"}

    def replicas() -> int:
        return int(deployments(admin, place)["scaled"]["spec"]["replicas"])

    def scale(number: int) -> None:
        admin.patch(DEPLOYMENT, "scaled", {"spec": {"replicas": number}}, namespace=place, subresource="scale")

    def change(adapter: str) -> None:
        adapters = [{"source": {"name": adapter, "image": "r.io/x/a:1"}, "strength": "0.5"}]
        admin.patch(WORKSPACE, "scaled", {"inference": {"adapters": adapters}}, namespace=place)

        def steps() -> list[str]:
            pod = deployments(admin, place)["scaled"]["spec"]["template"]["spec"]
            return [step["name"] for step in pod["initContainers"]]

        eventually(lambda: f"adapter-{adapter}" in steps(), what=lambda: str(steps()))

    scale(0)
    until(admin, ws, "InferenceReady", status="False", words="is scaled to zero by hand")
    change("one")
    never(lambda: replicas() != 0, within=3.0)
    assert len(admin.list(MACHINE, **claims).items) == 1
    scale(1)
    until(admin, ws, "WorkspaceReady")
    # An autoscaler that wants two at least gets them, and keeps them.
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled"}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 3}
    admin.create(AUTOSCALER, {"metadata": {"name": "scaled"}, "spec": spec}, namespace=place)
    eventually(lambda: replicas() == 2, timeout=2 * PATIENCE)
    change("two")
    never(lambda: replicas() != 2, within=3.0)


def test_children_that_are_wanted_no_longer_go_and_those_of_others_stay(
    admin: Client, place: str, controllers: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    process = controllers.start()
    ws = submit(admin, workspace("smaller", place))
    until(admin, ws, "WorkspaceReady")
    stop(process)
    labels = {"kaito.sh/workspace": "smaller"}
    theirs = {"metadata": {"name": "theirs", "labels": labels}, "spec": {"podSelector": {}}}
    kept = admin.create(NETWORK_POLICY, theirs, namespace=place)["metadata"]["uid"]
    before = templates(admin, place)
    controllers.start(values={"networkPolicy": {"enabled": False}})
    eventually(lambda: [p["metadata"]["uid"] for p in admin.list(NETWORK_POLICY, namespace=place).items] == [kept])
    admin.get(SERVICE, "smaller", namespace=place)
    assert templates(admin, place) == before
    until(admin, ws, "WorkspaceReady")


def test_a_preset_that_changes_its_kind_has_one_workload_at_a_time(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    obj = workspace("flip", place)
    obj["resource"]["instanceType"] = "Standard_NC24ads_A100_v4"
    obj["metadata"]["annotations"] = {"kaito.sh/runtime": "vllm"}
    ws = submit(admin, obj)
    until(admin, ws, "WorkspaceReady")
    overlaps: list[str] = []

    def note(old: Obj | None, new: Obj | None) -> None:
        if old is None and new is not None and _is_there(admin, DEPLOYMENT, "flip", place):
            overlaps.append(new["metadata"]["name"])

    informer = Informer(admin, STATEFUL_SET, namespace=place)
    informer.subscribe(note)
    informer.start()
    assert informer.wait_synced(PATIENCE)
    try:
        with preset(admin, distributed=True, engines=["vllm"]):
            until(admin, ws, "WorkloadUpToDate", status="False", words="a StatefulSet would take the place")
            assert _is_there(admin, DEPLOYMENT, "flip", place)
            annotate(admin, place, "flip", roll="now")
            until(admin, ws, "WorkloadUpToDate")
            eventually(lambda: _is_there(admin, STATEFUL_SET, "flip", place))
            until(admin, ws, "WorkspaceReady")
            assert not _is_there(admin, DEPLOYMENT, "flip", place)
            assert _is_there(admin, SERVICE, "flip-headless", place)
    finally:
        informer.stop()
    assert overlaps == []


def _is_there(admin: Client, resource: Resource, name: str, namespace: str) -> bool:
    try:
        admin.get(resource, name, namespace=namespace)
    except NotFound:
        return False
    return True
