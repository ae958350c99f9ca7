"""The chart's rights are enough: the controller, as its own ServiceAccount, takes a Workspace from birth to end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import AlreadyExists, Client, NotFound, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane

WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
MACHINE = Resource("karpenter.sh", "v1alpha5", "machines", "Machine", False)
NODE_CLAIM = Resource("karpenter.sh", "v1", "nodeclaims", "NodeClaim", False)
NODE = Resource("", "v1", "nodes", "Node", False)
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment", True)
SERVICE = Resource("", "v1", "services", "Service", True)
NETWORK_POLICY = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True)
CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap", True)
EVENT = Resource("", "v1", "events", "Event", True)
LEASE = Resource("coordination.k8s.io", "v1", "leases", "Lease", True)
ROLE_BINDING = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", True)
CLUSTER_ROLE_BINDING = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", False)
ACCESS_REVIEW = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", False)
NAMESPACE = "kaito-workspace"


@pytest.fixture
def log(installed: ControlPlane, admin: Client, tmp_path: Path) -> Iterator[Path]:
    """The log of the Workspace controller, which runs with the chart's configuration and environment."""
    config = tmp_path / "config.yaml"
    config.write_text(admin.get(CONFIG_MAP, "kaito-config", namespace=NAMESPACE)["data"]["config.yaml"])
    kubeconfig = installed.client_kubeconfig(
        tmp_path / "kubeconfig",
        user=f"system:serviceaccount:{NAMESPACE}:kaito",
        groups=("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}"),
    )
    container = admin.get(DEPLOYMENT, "kaito", namespace=NAMESPACE)["spec"]["template"]["spec"]["containers"][0]
    environment = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    environment |= {"METRICS_PORT": "0", "HEALTH_PROBE_PORT": "0", "BIND_ADDRESS": "127.0.0.1"}
    path = tmp_path / "log"
    with path.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "kaito_hooks.workspace", "--config", str(config), "--kubeconfig", str(kubeconfig)],
            env=os.environ | environment,
            stderr=out,
        )
    yield path
    process.terminate()
    assert process.wait(PATIENCE) == 0, path.read_text()


def test_the_controller_needs_no_more_than_the_chart_gives(admin: Client, log: Path) -> None:
    resource = {"instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"apps": "rights"}}}
    manifest: Obj = {"metadata": {"name": "rights"}, "resource": resource, "inference": {"preset": {"name": "phi-2"}}}
    admin.create(WORKSPACE, manifest, namespace="default")

    def missing(what: str) -> str:
        return f"{what} never came:\n{log.read_text()}"

    (claim,) = eventually(
        lambda: admin.list(MACHINE, label_selector="kaito.sh/workspace=rights").items,
        every=0.2,
        what=partial(missing, "a claim"),
    )
    make_ready(admin, claim)
    for kind in (DEPLOYMENT, SERVICE, NETWORK_POLICY):
        eventually(partial(find, admin, kind, "rights"), every=0.2, what=partial(missing, kind.kind))
    eventually(
        lambda: conditions(admin).get("ResourceReady") == "True", every=0.2, what=partial(missing, "ResourceReady")
    )
    eventually(lambda: events(admin), every=0.2, what=partial(missing, "an Event"))
    assert admin.get(LEASE, "kaito-leader-election", namespace=NAMESPACE)["spec"]["holderIdentity"]
    admin.patch(WORKSPACE, "rights", {"resource": {"preferredNodes": ["rights-node"]}}, namespace="default")
    admin.delete(WORKSPACE, "rights", namespace="default")
    eventually(lambda: find(admin, WORKSPACE, "rights") is None, every=0.2, what=partial(missing, "the end"))
    assert admin.list(MACHINE, label_selector="kaito.sh/workspace=rights").items == []
    admin.delete(NODE, "rights-node")
    assert "orbidden" not in log.read_text()


@pytest.mark.parametrize(
    ("role", "verb", "allowed"),
    [
        ("view", "get", "yes"),
        ("view", "create", "no"),
        ("edit", "create", "yes"),
        ("edit", "delete", "yes"),
        ("admin", "patch", "yes"),
        ("nothing", "get", "no"),
    ],
)
def test_kubernetes_own_roles_hold_for_the_workspaces_of_their_namespace(
    installed: ControlPlane, admin: Client, role: str, verb: str, allowed: str
) -> None:
    person = Person.bound(admin, role, namespace="default")
    # Rules are aggregated, and bindings reach the authorizer, a moment after they were written.
    eventually(lambda: person.may(verb, WORKSPACE, namespace="default") == (allowed == "yes"), every=0.1)
    assert not person.may(verb, WORKSPACE, namespace="kube-public")


@pytest.mark.parametrize(
    ("role", "verb", "allowed"),
    [
        ("view", "list", "yes"),
        ("view", "delete", "no"),
        ("edit", "list", "yes"),
        ("edit", "delete", "no"),
        ("admin", "delete", "yes"),
        ("admin", "create", "no"),
    ],
)
def test_kubernetes_own_roles_hold_for_claims_where_they_hold_for_the_cluster(
    installed: ControlPlane, admin: Client, role: str, verb: str, allowed: str
) -> None:
    person = Person.bound(admin, role)
    # The binding has reached the authorizer when what every such role may is allowed.
    eventually(lambda: person.may("get", MACHINE) and person.may("get", NODE_CLAIM), every=0.1)
    assert person.may(verb, MACHINE) == person.may(verb, NODE_CLAIM) == (allowed == "yes")


@dataclass(frozen=True, slots=True)
class Person:
    """A user who has one of Kubernetes' own roles."""

    admin: Client
    name: str

    @classmethod
    def bound(cls, admin: Client, role: str, *, namespace: str | None = None) -> Person:
        """To the role in that namespace, or in the whole cluster."""
        name = f"one-who-may-{role}-in-{namespace or 'the-cluster'}"
        binding: Obj = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
        }
        kind = ROLE_BINDING if namespace else CLUSTER_ROLE_BINDING
        with contextlib.suppress(AlreadyExists):
            admin.create(kind, binding, namespace=namespace)
        return cls(admin, name)

    def may(self, verb: str, resource: Resource, *, namespace: str = "") -> bool:
        """What the API server answers; without a namespace for the whole cluster."""
        question = {"verb": verb, "group": resource.group, "resource": resource.plural, "namespace": namespace}
        review = {"spec": {"user": self.name, "resourceAttributes": question}}
        return bool(self.admin.create(ACCESS_REVIEW, review)["status"]["allowed"])


def make_ready(admin: Client, claim: Obj) -> None:
    """What a provisioner does: a Node with the claim's labels and a GPU, and a Ready claim."""
    labels = {**claim["metadata"]["labels"], "node.kubernetes.io/instance-type": "Standard_NC6s_v3"}
    admin.create(NODE, {"metadata": {"name": "rights-node", "labels": labels}})
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": now}
    capacity = {"nvidia.com/gpu": "1", "cpu": "6", "memory": "112Gi"}
    status = {"capacity": capacity, "allocatable": capacity, "conditions": [{**ready, "lastHeartbeatTime": now}]}
    # Not an update: the node lifecycle controller writes to the Node meanwhile.
    admin.patch(NODE, "rights-node", {"status": status}, subresource="status")
    steps = ("MachineLaunched", "MachineRegistered", "MachineInitialized", "Ready")
    status = {"nodeName": "rights-node", "conditions": [{**ready, "type": step} for step in steps]}
    admin.patch(MACHINE, claim["metadata"]["name"], {"status": status}, subresource="status")


def events(admin: Client) -> list[Obj]:
    return admin.list(EVENT, namespace="default", field_selector="involvedObject.name=rights").items


def conditions(admin: Client) -> dict[str, str]:
    found = find(admin, WORKSPACE, "rights") or {}
    return {entry["type"]: entry["status"] for entry in found.get("status", {}).get("conditions", [])}


def find(admin: Client, resource: Resource, name: str) -> Obj | None:
    try:
        return admin.get(resource, name, namespace="default")
    except NotFound:
        return None
