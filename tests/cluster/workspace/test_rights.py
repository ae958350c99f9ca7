"""The rights that the chart gives are those that the controller uses, told from the API server's audit log."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.cluster import audit
from tests.cluster.workspace.bare import SERVICE_ACCOUNT, SYSTEM_NAMESPACE, BareCluster, tuning_workspace, workspace
from tests.cluster.workspace.stand_ins.following import Later, Obj
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.cluster.workspace.stand_ins.workloads import Deployments, Jobs
from tests.eventually import PATIENCE, eventually

from kaito_hooks.api.conditions import find, is_true
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Client, NotFound, Resource
from kaito_hooks.workspace.children.workload import owner_reference
from kaito_hooks.workspace.decision.revision import revise
from kaito_hooks.workspace.purchases.claims import claim_name
from kaito_hooks.workspace.resources import (
    CLAIM_RESOURCES,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    JOB,
    NETWORK_POLICY,
    SERVICE,
    STATEFUL_SET,
    WORKSPACE,
)

PLACE = "rights"
# Asked by the API server itself, when a child gets an owner with blockOwnerDeletion; no request shows it.
ON_BEHALF = {("kaito.sh", "workspaces/finalizers", "update")}


@pytest.fixture
def audited(programs: Mapping[str, Path], tmp_path: Path) -> Iterator[BareCluster]:
    """A bare cluster that writes down what accounts of the release's namespace ask for."""
    arguments = audit.arguments(tmp_path, SYSTEM_NAMESPACE)
    with BareCluster.start(tmp_path, programs=programs, api_server_arguments=arguments) as cluster:
        cluster.create_namespace(PLACE)
        cluster.admin.create(SERVICE_ACCOUNT, {"metadata": {"name": "default", "namespace": PLACE}})
        yield cluster


def test_every_right_of_the_chart_is_used_and_none_is_missing(audited: BareCluster, tmp_path: Path) -> None:
    """Lives with everything in them: served, spread, tuned, met by others' objects, disturbed, changed and deleted."""
    admin = audited.admin
    with Later() as later, Provisioner(admin, later), Deployments(admin, later, delay=0), Jobs(admin, later, delay=0):
        for node_api in ("Machine", "NodeClaim"):
            audited.values(nodeAPI=node_api)
            _live(audited, node_api)
    asked, refused = audit.read(tmp_path)
    assert refused == set()
    rights = audit.rights(audited.roles())
    assert {right for right in asked if right[0] != "authorization.k8s.io"} - rights == set()
    assert rights - asked - ON_BEHALF == set()


def _live(cluster: BareCluster, node_api: str) -> None:
    admin, kind = cluster.admin, node_api.lower()
    served, met, spread, tuned, taken = (f"{name}-{kind}" for name in ("served", "met", "spread", "tuned", "taken"))
    _met(admin, workspace(met, PLACE), node_api)
    admin.create(JOB, _foreign_job(taken))
    process = cluster.start_controller(lead=True)
    for obj in (
        workspace(served, PLACE),
        _spread(spread),
        tuning_workspace(tuned, PLACE),
        tuning_workspace(taken, PLACE),
    ):
        admin.create(WORKSPACE, obj)
    for name in (served, met, tuned):
        _until_ready(admin, name)
    _disturb(admin, served, spread)
    _leave_behind(admin, served)
    admin.create(CLAIM_RESOURCES[node_api], _orphan(admin, met, node_api))
    eventually(lambda: _gone(admin, CLAIM_RESOURCES[node_api], f"orphan-{kind}", None), every=0.2)
    output = {"image": "r.io/team/adapter:0.2", "imagePushSecret": "push"}
    admin.patch(WORKSPACE, tuned, {"tuning": {"output": output}}, namespace=PLACE)
    eventually(lambda: _tuning(admin, tuned).get("adapterImage") == output["image"], every=0.2)
    _until_told(admin, taken, f"Job/{taken} in namespace {PLACE} exists already")
    for name in (served, met, spread, tuned, taken):
        admin.delete(WORKSPACE, name, namespace=PLACE)
    for name in (served, met, tuned, taken):
        eventually(lambda name=name: _gone(admin, WORKSPACE, name, PLACE), every=0.2, what=f"{name} stays")
    process.terminate()
    process.wait(PATIENCE)


def _met(admin: Client, obj: Obj, node_api: str) -> None:
    """A Workspace with ten revisions and, where its first claim and its revision are to come, objects not seen yet."""
    made = admin.create(WORKSPACE, obj)
    ws = Workspace.read(made)
    wanted = revise(ws, (), owner_reference(ws)).create
    assert wanted is not None
    for number in range(1, 11):
        earlier = copy.deepcopy(wanted)
        earlier["metadata"]["name"] = f"{ws.name}-{number}"
        admin.create(CONTROLLER_REVISION, {**earlier, "revision": number})
    unlabelled = copy.deepcopy(wanted)
    del unlabelled["metadata"]["labels"]
    admin.create(CONTROLLER_REVISION, {**unlabelled, "revision": 11})
    claim = _orphan(admin, ws.name, node_api)
    claim["metadata"] = {"name": claim_name(ws, 0), "labels": {"kaito.sh/workspace": "x", "test/provisioner": "deaf"}}
    admin.create(CLAIM_RESOURCES[node_api], claim)


def _orphan(admin: Client, name: str, node_api: str) -> Obj:
    """A claim of a Workspace that does not exist."""
    marks = {"kaito.sh/workspace": "nobody", "kaito.sh/workspacenamespace": PLACE, "test/provisioner": "deaf"}
    spec: Obj = {"requirements": []}
    if node_api == "NodeClaim":
        spec |= {"nodeClassRef": {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"}}
    else:
        spec |= {"machineTemplateRef": {"name": "x"}}
    return {"metadata": {"name": f"orphan-{node_api.lower()}", "labels": marks}, "spec": spec}


def _foreign_job(name: str) -> Obj:
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "nginx"}]}
    metadata = {"name": name, "namespace": PLACE, "finalizers": []}
    return {"metadata": metadata, "spec": {"suspend": True, "template": {"spec": pod}}}


def _spread(name: str) -> Obj:
    found = workspace(name, PLACE)
    found["metadata"]["annotations"] = {"kaito.sh/runtime": "vllm"}
    found["resource"] |= {"count": 2, "instanceType": "Standard_NC24ads_A100_v4"}
    options = {"image": "r.io/x/llama:1"}
    found["inference"] = {"preset": {"name": "llama-2-13b", "accessMode": "private", "presetOptions": options}}
    return found


def _disturb(admin: Client, served: str, spread: str) -> None:
    """Somebody changes children, and deletes one again and again: each is put right, until an Event is counted."""
    changes: list[tuple[Resource, str, Obj]] = [
        (DEPLOYMENT, served, {"spec": {"minReadySeconds": 5, "progressDeadlineSeconds": 7}}),
        (SERVICE, served, {"spec": {"selector": {"kaito.sh/workspace": "other"}}}),
        (NETWORK_POLICY, served, {"spec": {"policyTypes": ["Egress"]}}),
        (STATEFUL_SET, spread, {"spec": {"replicas": 5}}),
    ]
    for resource, name, change in changes:
        eventually(lambda r=resource, n=name: not _gone(admin, r, n, PLACE), every=0.2)
        version = admin.patch(resource, name, change, namespace=PLACE)["metadata"]["resourceVersion"]
        eventually(
            lambda r=resource, n=name, v=version: admin.get(r, n, namespace=PLACE)["metadata"]["resourceVersion"] != v,
            every=0.2,
            what=f"{resource.kind} {name} is not put right",
        )
    # What else happens to the Workspace within the same seconds is told in the same Event, which is then another one.
    for _ in range(8):
        told = sum(_counts(admin, served))
        uid = admin.get(SERVICE, served, namespace=PLACE)["metadata"]["uid"]
        admin.delete(SERVICE, served, namespace=PLACE)
        eventually(
            lambda uid=uid: (
                not _gone(admin, SERVICE, served, PLACE)
                and admin.get(SERVICE, served, namespace=PLACE)["metadata"]["uid"] != uid
            ),
            every=0.2,
        )
        # What was told within some seconds is one Event; the next one is told for itself.
        eventually(lambda told=told: sum(_counts(admin, served)) > told, every=0.2, what="no Event tells of it")
        if max(_counts(admin, served)) > 1:
            return
    raise AssertionError(f"no Event is counted: {admin.list(EVENT, namespace=PLACE).items}")


def _counts(admin: Client, served: str) -> list[int]:
    """How often each Event was that tells of this Service."""
    found = admin.list(EVENT, namespace=PLACE).items
    return [event.get("count", 1) for event in found if f"Service/{served}" in event["message"]]


def _leave_behind(admin: Client, name: str) -> None:
    """A Service that an earlier controller wanted, and a policy where a template's Workspace wants none."""
    ws = Workspace.read(admin.get(WORKSPACE, name, namespace=PLACE))
    marks = {"namespace": PLACE, "labels": {"kaito.sh/workspace": name}, "ownerReferences": [owner_reference(ws)]}
    headless = f"{name}-headless"
    admin.create(SERVICE, {"metadata": {"name": headless, **marks}, "spec": {"ports": [{"port": 80}]}})
    eventually(lambda: _gone(admin, SERVICE, headless, PLACE), every=0.2, what=f"{headless} stays")
    own = f"own-{name}"
    obj = workspace(own, PLACE)
    obj["inference"] = {"template": {"spec": {"containers": [{"name": "c", "image": "nginx"}]}}}
    made = Workspace.read(admin.create(WORKSPACE, obj))
    marks |= {"labels": {"kaito.sh/workspace": own}, "ownerReferences": [owner_reference(made)]}
    admin.create(NETWORK_POLICY, {"metadata": {"name": own, **marks}, "spec": {"podSelector": {}}})
    eventually(lambda: _gone(admin, NETWORK_POLICY, own, PLACE), every=0.2, what="the policy stays")


def _until_ready(admin: Client, name: str) -> None:
    def look() -> bool:
        status = admin.get(WORKSPACE, name, namespace=PLACE).get("status") or {}
        return is_true(status.get("conditions"), "WorkspaceReady")

    eventually(look, every=0.2, what=lambda: f"{name} is not ready: {admin.get(WORKSPACE, name, namespace=PLACE)}")


def _until_told(admin: Client, name: str, words: str) -> None:
    def look() -> bool:
        status = admin.get(WORKSPACE, name, namespace=PLACE).get("status") or {}
        return words in (find(status.get("conditions"), "WorkspaceReady") or {}).get("message", "")

    eventually(look, every=0.2, what=f"{name} does not say {words!r}")


def _tuning(admin: Client, name: str) -> Obj:
    return (admin.get(WORKSPACE, name, namespace=PLACE).get("status") or {}).get("tuning") or {}


def _gone(admin: Client, resource: Resource, name: str, namespace: str | None) -> bool:
    try:
        admin.get(resource, name, namespace=namespace)
    except NotFound:
        return True
    return False
