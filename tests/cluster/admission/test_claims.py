"""Claims: what the API server takes, refuses and shows, for both kinds."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kaito_hooks.runtime import Client, Invalid, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane

MACHINE = Resource("karpenter.sh", "v1alpha5", "machines", "Machine", False)
NODE_CLAIM = Resource("karpenter.sh", "v1", "nodeclaims", "NodeClaim", False)

NODE_CLAIM_OBJECT: Obj = {
    "metadata": {"name": "ws123456789"},
    "spec": {
        "expireAfter": "Never",
        "nodeClassRef": {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"},
        "requirements": [
            {"key": "karpenter.sh/nodepool", "operator": "In", "values": ["kaito"]},
            {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["Standard_NC6s_v3"]},
            {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
            {"key": "karpenter.azure.com/sku-name", "operator": "In", "values": ["Standard_NC6s_v3"]},
            {"key": "karpenter.k8s.aws/instance-gpu-count", "operator": "Gt", "values": ["0"]},
        ],
        "resources": {"requests": {"storage": "50Gi"}},
        "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
    },
}


def changed(path: str, value: Any) -> Obj:
    obj = copy.deepcopy(NODE_CLAIM_OBJECT)
    place: Any = obj["spec"]
    *parents, last = path.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    return obj


def requirement(key: str, operator: str, *values: str, **more: Any) -> Obj:
    return changed("requirements", [{"key": key, "operator": operator, "values": list(values), **more}])


@pytest.mark.parametrize(
    ("obj", "said"),
    [
        pytest.param(changed("nodeClassRef.group", ""), "group may not be empty", id="no class group"),
        pytest.param(changed("nodeClassRef.group", "a/b"), "nodeClassRef.group", id="slash in the class group"),
        pytest.param(changed("expireAfter", "never"), "expireAfter", id="bad expiry"),
        pytest.param(requirement("x", "In"), "must have a value", id="In without values"),
        pytest.param(requirement("x", "Gt", "many"), "an integer that is not negative", id="Gt many"),
        pytest.param(requirement("x", "Lt", "-1"), "an integer that is not negative", id="Lt -1"),
        pytest.param(requirement("x", "Gt", "1", "2"), "exactly one value", id="Gt two values"),
        pytest.param(requirement("x", "Near", "1"), "Unsupported value", id="unknown operator"),
        pytest.param(requirement("x", "In", "1", minValues=2), "at least as many values", id="minValues"),
        pytest.param(requirement("x", "In", "1", minValues=51), "minValues", id="minValues 51"),
        pytest.param(requirement("kubernetes.io/custom", "In", "1"), "kubernetes.io is restricted", id="kubernetes.io"),
        pytest.param(requirement("a.k8s.io/custom", "In", "1"), "k8s.io is restricted", id="k8s.io"),
        pytest.param(requirement("karpenter.sh/custom", "In", "1"), "karpenter.sh is restricted", id="karpenter.sh"),
        pytest.param(requirement("kubernetes.io/hostname", "In", "1"), "hostname is restricted", id="hostname"),
        pytest.param(changed("taints", [{"key": "a", "effect": "Never"}]), "Unsupported value", id="taint effect"),
    ],
)
def test_a_bad_node_claim_is_refused(admin: Client, obj: Obj, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        admin.create(NODE_CLAIM, obj)


@pytest.mark.parametrize(
    "key",
    ["topology.kubernetes.io/zone", "node.kubernetes.io/custom", "x.node-restriction.kubernetes.io/y", "kops.k8s.io/x"],
)
def test_a_well_known_requirement_is_taken(admin: Client, key: str) -> None:
    admin.create(NODE_CLAIM, requirement(key, "In", "1"))
    admin.delete(NODE_CLAIM, "ws123456789")


def test_a_node_claim_never_changes_its_spec(admin: Client) -> None:
    stored = admin.create(NODE_CLAIM, NODE_CLAIM_OBJECT)
    try:
        with pytest.raises(Invalid, match="spec is immutable"):
            admin.patch(NODE_CLAIM, "ws123456789", {"spec": {"expireAfter": "1h"}})
        ready = {"type": "Ready", "status": "Unknown", "reason": "ReconcilingDependents", "message": ""}
        ready |= {"lastTransitionTime": "2024-01-01T00:00:00Z", "observedGeneration": 1}
        written = admin.update(NODE_CLAIM, {**stored, "status": {"conditions": [ready]}}, subresource="status")
        assert written["status"]["conditions"] == [ready]
    finally:
        admin.delete(NODE_CLAIM, "ws123456789")


def test_a_node_claim_without_expiry_expires_after_30_days(admin: Client) -> None:
    obj = copy.deepcopy(NODE_CLAIM_OBJECT)
    del obj["spec"]["expireAfter"]
    assert admin.create(NODE_CLAIM, obj)["spec"]["expireAfter"] == "720h"
    admin.delete(NODE_CLAIM, "ws123456789")


def test_a_machine_is_taken_as_it_is(admin: Client, installed: ControlPlane) -> None:
    machine = {
        "metadata": {
            "name": "ws987654321",
            "labels": {"node.kubernetes.io/instance-type": "Standard_NC6s_v3", "karpenter.k8s.azure/zone": "z1"},
        },
        "spec": {
            "machineTemplateRef": {"name": "ws987654321"},
            "requirements": [
                {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["Standard_NC6s_v3"]},
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["free"]},
            ],
            "resources": {"requests": {"storage": "0"}},
            "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
        },
    }
    stored = admin.create(MACHINE, machine)
    try:
        assert stored["spec"] == machine["spec"]
        status = {"nodeName": "n1", "conditions": [{"type": "Ready", "status": "False", "severity": "Warning"}]}
        admin.update(MACHINE, {**stored, "status": status}, subresource="status")
        header, row = installed.kubectl("get", "machines", "ws987654321").splitlines()
        assert header.split() == ["NAME", "TYPE", "ZONE", "NODE", "READY", "AGE"]
        assert row.split()[:5] == ["ws987654321", "Standard_NC6s_v3", "z1", "n1", "False"]
        admin.patch(MACHINE, "ws987654321", {"spec": {"resources": {"requests": {"storage": "50Gi"}}}})
    finally:
        admin.delete(MACHINE, "ws987654321")


def test_workspaces_show_the_columns_that_users_know(installed: ControlPlane, admin: Client) -> None:
    text = (
        "{apiVersion: kaito.sh/v1alpha1, kind: Workspace, metadata: {name: columns}, resource: {instanceType:"
        " Standard_NC6s_v3, labelSelector: {matchLabels: {a: b}}}, inference: {preset: {name: phi-2}}}"
    )
    installed.kubectl("apply", "-f", "-", input=text)
    try:
        assert installed.kubectl("get", "wk", "columns").splitlines()[0].split() == [
            *("NAME", "INSTANCE", "RESOURCEREADY", "INFERENCEREADY", "WORKSPACEREADY", "AGE")
        ]
        assert installed.kubectl("get", "workspace", "columns", "-o", "wide").splitlines()[0].split()[6:] == [
            *("PRESET", "JOBSTARTED", "UPTODATE", "PROGRESS", "NODES", "STARTUPSECONDS", "MESSAGE")
        ]
    finally:
        installed.kubectl("delete", "workspace", "columns")
