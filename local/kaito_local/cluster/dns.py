"""The cluster's DNS: CoreDNS on the system node."""

from __future__ import annotations

from typing import Any

import yaml

from kaito_local.images.product import COREDNS_IMAGE
from kaito_local.machine.network import Network

_NAMESPACE = "kube-system"
_LABELS = {"k8s-app": "kube-dns"}
_USER = 65532
# Nothing is forwarded: Pods of a local cluster have no internet, and an answer at once beats a timeout.
_COREFILE = """\
.:53 {
    errors
    health :8080
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
    }
    cache 5
    reload
}
"""


def manifests(network: Network, *, image: str = COREDNS_IMAGE) -> str:
    """YAML of CoreDNS with the cluster IP ``network.dns``, to be applied once.

    It serves cluster.local and knows nothing outside. It runs on the node labelled ``agentpool: system``, whatever
    taints that has.
    """
    documents = [_service_account(), *_access(), _settings(), _deployment(image), _service(network.dns)]
    return yaml.safe_dump_all(documents, sort_keys=False)


def _named(api_version: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    metadata = {"name": name, "labels": _LABELS}
    if not kind.startswith("ClusterRole"):
        metadata["namespace"] = _NAMESPACE
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **more}


def _service_account() -> dict[str, Any]:
    return _named("v1", "ServiceAccount", "coredns")


def _access() -> list[dict[str, Any]]:
    look = ["list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": look},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": look},
    ]
    group = "rbac.authorization.k8s.io"
    return [
        _named(f"{group}/v1", "ClusterRole", "kaito-local:coredns", rules=rules),
        _named(
            f"{group}/v1",
            "ClusterRoleBinding",
            "kaito-local:coredns",
            roleRef={"apiGroup": group, "kind": "ClusterRole", "name": "kaito-local:coredns"},
            subjects=[{"kind": "ServiceAccount", "name": "coredns", "namespace": _NAMESPACE}],
        ),
    ]


def _settings() -> dict[str, Any]:
    return _named("v1", "ConfigMap", "coredns", data={"Corefile": _COREFILE})


def _deployment(image: str) -> dict[str, Any]:
    container = {
        "name": "coredns",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "resources": {"requests": {"cpu": "10m", "memory": "30Mi"}, "limits": {"memory": "170Mi"}},
        "ports": [{"containerPort": 53, "name": "dns", "protocol": "UDP"}, {"containerPort": 53, "name": "dns-tcp"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 10, "timeoutSeconds": 5},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "settings", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
            # Port 53 is for root alone otherwise; this is one of the sysctls that `restricted` lets a Pod choose.
            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "53"}],
        },
        "nodeSelector": {"agentpool": "system"},
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "settings", "configMap": {"name": "coredns"}}],
    }
    return _named(
        "apps/v1",
        "Deployment",
        "coredns",
        spec={"selector": {"matchLabels": _LABELS}, "template": {"metadata": {"labels": _LABELS}, "spec": pod}},
    )


def _service(cluster_ip: str) -> dict[str, Any]:
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    return _named("v1", "Service", "kube-dns", spec={"clusterIP": cluster_ip, "selector": _LABELS, "ports": ports})
