"""`helm test`: looks for what a Workspace needs, and says what is missing."""

from __future__ import annotations

from collections.abc import Callable

from kaito_hooks.api import catalog
from kaito_hooks.helm.errors import NotReady
from kaito_hooks.helm.resources import (
    CATALOG,
    DAEMON_SET,
    MACHINE,
    NAMESPACE,
    NODE,
    NODE_CLAIM,
    POLICY,
    WORKSPACE,
)
from kaito_hooks.runtime import Client, Key, NotFound

POLICIES = ("catalog.workspaces.kaito.sh", "workspaces.kaito.sh")
CLAIMS = {"Machine": MACHINE, "NodeClaim": NODE_CLAIM}
ENFORCED = "pod-security.kubernetes.io/enforce"
_ELSEWHERE = (
    "set nvidiaDevicePlugin.namespace to one that is privileged, as kube-system, or nvidiaDevicePlugin.enabled=false"
)
NO_HOST_PATH = ("baseline", "restricted")
"""Levels that refuse hostPath: https://kubernetes.io/docs/concepts/security/pod-security-standards."""


def preflight(client: Client, *, node_api: str, device_plugin: Key | None, report: Callable[[str], None]) -> None:
    """Reports everything that is there; raises NotReady with all that is missing, one per line.

    ``device_plugin``: the chart's own DaemonSet, if it has one.
    """
    missing: list[str] = []

    def check(present: bool, what: str, remedy: str) -> None:
        if present:
            report(f"{what}: there")
        else:
            missing.append(f"{what}: missing; {remedy}")

    check(client.served(WORKSPACE), "kind Workspace", "apply the files of the chart's folder crds")
    check(client.served(CATALOG), "kind Catalog", "apply the files of the chart's folder crds")
    check(_readable(client), f"Catalog {catalog.NAME}", "run helm upgrade again")
    for name in POLICIES:
        check(
            _exists(client, name),
            f"ValidatingAdmissionPolicy {name}",
            "run helm upgrade with admissionPolicies.enabled",
        )
    if node_api in CLAIMS:
        check(
            client.served(CLAIMS[node_api]),
            f"kind {node_api}",
            "install the chart gpu-provisioner, or another Karpenter",
        )
    else:
        ready = [
            node
            for node in client.list(NODE).items
            if node["status"].get("capacity", {}).get("nvidia.com/gpu", "0") != "0"
        ]
        check(
            bool(ready),
            "a node with nvidia.com/gpu",
            "nothing is bought with nodeAPI=none, so add GPU nodes to the cluster",
        )
    if device_plugin:
        name = f"DaemonSet {device_plugin.namespace}/{device_plugin.name}"
        if hindrance := _hindrance(client, device_plugin):
            missing.append(f"{name}: {hindrance}")
        else:
            report(f"{name}: there")
    if missing:
        raise NotReady("\n".join(missing))


def _readable(client: Client) -> bool:
    try:
        catalog.Catalog.read(client.get(CATALOG, catalog.NAME))
    except (NotFound, ValueError):
        return False
    return True


def _hindrance(client: Client, plugin: Key) -> str:
    """What keeps the device plugin from its nodes; "" if nothing does."""
    try:
        namespace = client.get(NAMESPACE, plugin.namespace)
        status = client.get(DAEMON_SET, plugin.name, namespace=plugin.namespace).get("status") or {}
    except NotFound:
        return "missing; run helm upgrade again"
    level = (namespace["metadata"].get("labels") or {}).get(ENFORCED)
    if level in NO_HOST_PATH:
        return f"the namespace enforces the Pod security standard {level}, which refuses its Pods; {_ELSEWHERE}"
    wanted, found = status.get("desiredNumberScheduled", 0), status.get("currentNumberScheduled", 0)
    if found < wanted:
        # As where Pod security is the API server's own rule, which no label tells.
        why = "kubectl describe says why; if it is Pod security"
        return f"{found} of {wanted} Pods could be created; {why}, {_ELSEWHERE}"
    return ""


def _exists(client: Client, policy: str) -> bool:
    try:
        client.get(POLICY, policy)
    except NotFound:
        return False
    return True
