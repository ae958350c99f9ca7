"""`helm test`: looks for what a Workspace needs, and says what is missing."""

from __future__ import annotations

from collections.abc import Callable

from kaito_hooks.api import catalog
from kaito_hooks.helm.errors import NotReady
from kaito_hooks.helm.resources import CATALOG, MACHINE, NODE, NODE_CLAIM, POLICY, WORKSPACE
from kaito_hooks.runtime import Client, NotFound

POLICIES = ("catalog.workspaces.kaito.sh", "workspaces.kaito.sh")
CLAIMS = {"Machine": MACHINE, "NodeClaim": NODE_CLAIM}


def preflight(client: Client, *, node_api: str, report: Callable[[str], None]) -> None:
    """Reports everything that is there; raises NotReady with all that is missing, one per line."""
    missing: list[str] = []

    def check(present: bool, what: str, remedy: str) -> None:
        if present:
            report(f"{what}: there")
        else:
            missing.append(f"{what}: missing; {remedy}")

    check(client.served(WORKSPACE), "kind Workspace", "apply the files of charts/kaito/crds")
    check(client.served(CATALOG), "kind Catalog", "apply the files of charts/kaito/crds")
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
    if missing:
        raise NotReady("\n".join(missing))


def _readable(client: Client) -> bool:
    try:
        catalog.Catalog.read(client.get(CATALOG, catalog.NAME))
    except (NotFound, ValueError):
        return False
    return True


def _exists(client: Client, policy: str) -> bool:
    try:
        client.get(POLICY, policy)
    except NotFound:
        return False
    return True
