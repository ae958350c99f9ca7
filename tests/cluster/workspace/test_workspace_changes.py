"""What users, other controllers and upgrades change around a running Workspace, on a real API server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.cluster.workspace.conftest import Controllers, submit, until, workspace
from tests.cluster.workspace.stand_ins.following import Obj
from tests.cluster.workspace.stand_ins.kubelet import Kubelet
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import Client, Informer, Invalid, NotFound, Resource
from kaito_hooks.workspace.resources import (
    CATALOG,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    NETWORK_POLICY,
    POD,
    SERVICE,
    STATEFUL_SET,
    WORKSPACE,
)

REVISION = "workspace.kaito.io/revision"
HASH = "workspace.kaito.io/hash"


def adapters(*names: str) -> Obj:
    return {
        "inference": {"adapters": [{"source": {"name": n, "image": f"r.io/x/{n}:1"}, "strength": "0.5"} for n in names]}
    }


def annotation(admin: Client, obj: Obj, key: str) -> str:
    found = admin.get(WORKSPACE, obj["metadata"]["name"], namespace=obj["metadata"]["namespace"])
    return str(found["metadata"]["annotations"].get(key))


def spread(name: str, namespace: str, *, count: int = 1) -> Obj:
    """A Workspace whose preset spans nodes, on so many."""
    image = {"image": "r.io/x/llama:1"}
    preset = {"name": "llama-2-13b", "accessMode": "private", "presetOptions": image}
    found = workspace(name, namespace, inference={"preset": preset})
    found["metadata"]["annotations"] = {"kaito.sh/runtime": "vllm"}
    found["resource"] |= {"instanceType": "Standard_NC48ads_A100_v4", "count": count}
    return found


def test_a_change_is_never_called_ready_before_it_is(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, workspace("waited", place))
    until(admin, ws, "WorkspaceReady")
    said: list[tuple[str, str]] = []

    def note(old: Obj | None, new: Obj | None) -> None:
        for c in ((new or {}).get("status") or {}).get("conditions") or ():
            if c["observedGeneration"] == 2 and c["type"] in ("InferenceReady", "WorkspaceReady"):
                said.append((c["type"], c["status"]))

    informer = Informer(admin, WORKSPACE, namespace=place)
    informer.subscribe(note)
    informer.start()
    assert informer.wait_synced(PATIENCE)
    try:
        admin.patch(WORKSPACE, "waited", adapters("one"), namespace=place)
        eventually(lambda: ("WorkspaceReady", "True") in said, what="the change is never ready")
    finally:
        informer.stop()
    for condition in ("InferenceReady", "WorkspaceReady"):
        assert next(status for kind, status in said if kind == condition) == "False"


def test_twelve_changes_leave_ten_revisions_and_old_content_keeps_its_number(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, workspace("history", place))
    until(admin, ws, "WorkspaceReady")

    def change_to(name: str, number: int) -> None:
        admin.patch(WORKSPACE, "history", adapters(name), namespace=place)
        eventually(lambda: annotation(admin, ws, REVISION) == str(number), what=f"{name} is not revision {number}")

    def numbers() -> list[int]:
        selector = "workspace.kaito.io/name=history"
        found = admin.list(CONTROLLER_REVISION, namespace=place, label_selector=selector).items
        for revision in found:
            digest = revision["metadata"]["annotations"][HASH]
            assert revision["metadata"]["name"] == f"history-{digest[:5]}"
            [owner] = revision["metadata"]["ownerReferences"]
            assert (owner["uid"], owner["controller"]) == (ws["metadata"]["uid"], True)
        return sorted(revision["revision"] for revision in found)

    for n in range(12):
        change_to(f"a{n}", n + 2)
    eventually(lambda: numbers() == list(range(4, 14)))
    change_to("a8", 10)
    assert numbers() == list(range(4, 14))
    eventually(lambda: admin.get(DEPLOYMENT, "history", namespace=place)["metadata"]["annotations"][REVISION] == "10")
    # What has fallen out of the history is new again.
    change_to("a0", 14)
    eventually(lambda: numbers() == list(range(5, 15)))


def test_a_preset_that_spans_nodes_is_kept_as_it_should_be(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, spread("wide", place, count=2))
    until(admin, ws, "WorkspaceReady")

    def get(resource: Resource, name: str = "wide") -> Obj:
        return admin.get(resource, name, namespace=place)

    def ranks() -> dict[str, str]:
        """The uid of each Pod by the number that it is given as its rank."""
        found = admin.list(POD, namespace=place).items
        return {pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"]: pod["metadata"]["uid"] for pod in found}

    pods = {"kaito.sh/workspace": "wide"}
    found = get(STATEFUL_SET)
    assert (found["spec"]["serviceName"], found["spec"]["podManagementPolicy"]) == ("wide-headless", "Parallel")
    [container] = found["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    args = container["args"]
    assert args[args.index("--master_addr") + 1] == f"wide-0.wide-headless.{place}.svc"
    first_pod = admin.get(POD, "wide-0", namespace=place)["spec"]
    assert (first_pod["hostname"], first_pod["subdomain"]) == ("wide-0", "wide-headless")
    before = ranks()
    assert sorted(before) == ["0", "1"]
    first = {**pods, "statefulset.kubernetes.io/pod-name": "wide-0"}
    assert get(SERVICE)["spec"]["selector"] == first
    headless = get(SERVICE, "wide-headless")["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"], headless["selector"]) == ("None", True, pods)

    admin.patch(STATEFUL_SET, "wide", {"spec": {"replicas": 0}}, namespace=place)
    admin.patch(SERVICE, "wide-headless", {"spec": {"publishNotReadyAddresses": False}}, namespace=place)
    admin.patch(NETWORK_POLICY, "wide", {"spec": {"ingress": []}}, namespace=place)
    eventually(lambda: get(STATEFUL_SET)["spec"]["replicas"] == 2)
    eventually(lambda: get(SERVICE, "wide-headless")["spec"].get("publishNotReadyAddresses"))
    eventually(lambda: get(NETWORK_POLICY)["spec"].get("ingress"))
    admin.patch(WORKSPACE, "wide", adapters("one"), namespace=place)
    eventually(lambda: len(get(STATEFUL_SET)["spec"]["template"]["spec"]["initContainers"]) == 2, despite=NotFound)
    until(admin, ws, "WorkspaceReady")
    # They started anew together, and not one by one.
    assert sorted(ranks()) == ["0", "1"]
    assert not set(ranks().values()) & set(before.values())


def test_another_engine_is_rolled_out_and_one_that_cannot_be_had_is_refused_or_told(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    obj = workspace("choice", place)
    obj["resource"]["instanceType"] = "Standard_NC24ads_A100_v4"
    ws = submit(admin, obj)
    until(admin, ws, "WorkspaceReady")

    def choose(runtime: str | None) -> None:
        admin.patch(WORKSPACE, "choice", {"metadata": {"annotations": {"kaito.sh/runtime": runtime}}}, namespace=place)

    def engine() -> str:
        [container] = admin.get(DEPLOYMENT, "choice", namespace=place)["spec"]["template"]["spec"]["containers"]
        return f"{container['args'][container['args'].index('--engine') + 1]} in {container['image'].split('-')[-1]}"

    assert engine() == "transformers in cu126"
    with pytest.raises(Invalid, match="is 'onnx'; use transformers or vllm"):
        choose("onnx")
    choose("vllm")
    eventually(lambda: engine() == "vllm in vllm", what=engine)
    until(admin, ws, "WorkspaceReady")
    choose(None)
    eventually(lambda: engine() == "transformers in cu126", what=engine)
    until(admin, ws, "WorkspaceReady")

    old = submit(admin, workspace("old", place))
    until(admin, old, "WorkspaceReady")
    admin.patch(WORKSPACE, "old", {"metadata": {"annotations": {"kaito.sh/runtime": "vllm"}}}, namespace=place)
    until(admin, old, "InferenceReady", status="False", words="the compute capability of its V100 is below 7.5")
    generation = admin.get(DEPLOYMENT, "old", namespace=place)["metadata"]["generation"]
    admin.patch(WORKSPACE, "old", {"metadata": {"annotations": {"kaito.sh/runtime": None}}}, namespace=place)
    until(admin, old, "WorkspaceReady")
    assert admin.get(DEPLOYMENT, "old", namespace=place)["metadata"]["generation"] == generation


def _policy(name: str) -> Obj:
    return {"metadata": {"name": name}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}


def _service(name: str) -> Obj:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 1}]}}


def _stateful_set(name: str) -> Obj:
    labels = {"app": "mine"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
    spec = {"replicas": 0, "serviceName": "x", "selector": {"matchLabels": labels}, "template": pod}
    return {"metadata": {"name": name}, "spec": spec}


IN_THE_WAY: dict[str, tuple[Resource, Callable[[str], Obj], str]] = {
    "service": (SERVICE, _service, ""),
    "headless": (SERVICE, _service, "-headless"),
    "policy": (NETWORK_POLICY, _policy, ""),
    "set": (STATEFUL_SET, _stateful_set, ""),
}


def test_objects_of_others_in_the_place_of_children_are_told_and_left_alone(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    theirs, made = {}, {}
    for name, (resource, make, suffix) in IN_THE_WAY.items():
        theirs[name] = admin.create(resource, make(name + suffix), namespace=place)
        ws = spread(name, place)
        ws["resource"]["labelSelector"]["matchLabels"]["apps"] = f"{place}-{name}"
        made[name] = submit(admin, ws)
    for name, (resource, _, suffix) in IN_THE_WAY.items():
        words = f"{resource.kind}/{name}{suffix} in namespace {place} exists already and does not belong to this Works"
        until(admin, made[name], "WorkspaceReady", status="False", words=words)
        now = admin.get(resource, name + suffix, namespace=place)
        assert (now["metadata"]["uid"], now["spec"]) == (theirs[name]["metadata"]["uid"], theirs[name]["spec"])
    # Once it is out of the way, all is well.
    admin.delete(SERVICE, "service", namespace=place)
    until(admin, made["service"], "WorkspaceReady")


def test_what_a_new_catalog_would_refuse_is_kept_up_and_goes(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, workspace("older", place))
    until(admin, ws, "WorkspaceReady")
    preset = "phi-3-mini-4k-instruct"
    before = admin.get(CATALOG, "kaito")["spec"]["presets"][preset]["totalGPUMemoryGiB"]

    def need(gib: int) -> None:
        admin.patch(CATALOG, "kaito", {"spec": {"presets": {preset: {"totalGPUMemoryGiB": gib}}}})

    def steps() -> list[Obj]:
        found = admin.get(DEPLOYMENT, "older", namespace=place)
        return list(found["spec"]["template"]["spec"]["initContainers"])

    def refused() -> bool:
        try:
            admin.create(WORKSPACE, workspace("newer", place))
        except Invalid as error:
            return "Insufficient total GPU memory" in error.message
        admin.delete(WORKSPACE, "newer", namespace=place)
        return False

    need(900)
    try:
        eventually(refused, every=0.3, what="the new Catalog is not in force")
        admin.delete(SERVICE, "older", namespace=place)
        admin.patch(WORKSPACE, "older", adapters("one"), namespace=place)
        eventually(lambda: len(steps()) == 2, what="the change is not rolled out")
        eventually(lambda: _is_there(admin, SERVICE, "older", place), what="the Service does not come again")
        until(admin, ws, "WorkspaceReady")
        admin.delete(WORKSPACE, "older", namespace=place)
        eventually(lambda: not _is_there(admin, WORKSPACE, "older", place))
    finally:
        need(before)
    eventually(lambda: not refused(), every=0.3, what="the old Catalog is not in force again")


def _is_there(admin: Client, resource: Resource, name: str, namespace: str) -> bool:
    try:
        admin.get(resource, name, namespace=namespace)
    except NotFound:
        return False
    return True
