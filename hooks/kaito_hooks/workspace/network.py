"""The NetworkPolicy of a Workspace: who may talk to its Pods, and whom they may talk to."""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.service import SERVER_PORT

DNS_PORT = 53


def network_policy(workspace: Workspace, *, metadata: Obj, distributed: bool, only_from: str = "") -> Obj:
    """In: the server's port, from anywhere or ``only_from`` a namespace; of a StatefulSet everything between its Pods.

    Out: DNS, and whatever the init containers fetch from, but no link-local address: a cloud's metadata service hands
    the node's credentials to anyone who asks.
    """
    ours = {"podSelector": {"matchLabels": {labels.WORKSPACE: workspace.name}}}
    ingress: list[Obj] = [{"ports": [{"protocol": "TCP", "port": SERVER_PORT}]}]
    if only_from:
        ingress[0]["from"] = [{"namespaceSelector": {"matchLabels": {labels.NAMESPACE_NAME: only_from}}}]
    egress: list[Obj] = [
        {"ports": [{"protocol": "UDP", "port": DNS_PORT}, {"protocol": "TCP", "port": DNS_PORT}]},
        {
            "to": [
                {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
                {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
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
