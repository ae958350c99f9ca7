"""The NetworkPolicy of a Workspace: who may talk to its Pods, and whom they may talk to."""

from __future__ import annotations

from kaito_hooks.api import labels, metadata_services
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children.service import SERVER_PORT

DNS_PORT = 53
_ANY_POD: Obj = {"namespaceSelector": {}}
"""Of any namespace."""
_CREDENTIAL_SERVICES = {
    block: [str(network) for network in networks]
    for block, networks in (("0.0.0.0/0", metadata_services.IPV4), ("::/0", metadata_services.IPV6))
}


def network_policy(workspace: Workspace, *, metadata: Obj, distributed: bool, in_cluster_only: bool = False) -> Obj:
    """In: the server's port, from anywhere or only from Pods of this cluster; of a StatefulSet everything between its
    Pods.

    Out: DNS, and whatever the init containers fetch from, but none of the services by which a cloud hands the node's
    credentials to anyone who asks. Pods are named besides addresses, because for Cilium an address block never means a
    Pod: https://docs.cilium.io/en/stable/network/kubernetes/policy/.
    """
    ours = {"podSelector": {"matchLabels": {labels.WORKSPACE: workspace.name}}}
    ingress: list[Obj] = [{"ports": [{"protocol": "TCP", "port": SERVER_PORT}]}]
    if in_cluster_only:
        ingress[0]["from"] = [_ANY_POD]
    egress: list[Obj] = [
        {"ports": [{"protocol": "UDP", "port": DNS_PORT}, {"protocol": "TCP", "port": DNS_PORT}]},
        {
            "to": [
                *({"ipBlock": {"cidr": block, "except": but}} for block, but in _CREDENTIAL_SERVICES.items()),
                _ANY_POD,
            ]
        },
    ]
    if distributed:
        ingress.append({"from": [ours]})
        egress.append({"to": [ours]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": ours["podSelector"],
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }
