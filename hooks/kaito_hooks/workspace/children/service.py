"""The Services of a Workspace."""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj

HTTP_PORT = 80
SERVER_PORT = 5000
TORCH_PORT = 29500
MAX_NAME = 63


def headless_name(workspace: Workspace) -> str:
    """Name of the Service that names each Pod of a StatefulSet."""
    return f"{workspace.name}-headless"


def first_pod_host(workspace: Workspace) -> str:
    """DNS name of a StatefulSet's first Pod; the resolver adds the cluster's domain."""
    return f"{workspace.name}-0.{headless_name(workspace)}.{workspace.namespace}.svc"


def service(workspace: Workspace, *, metadata: Obj, distributed: bool, port: int = SERVER_PORT) -> Obj:
    """The Service that users talk to: 80 to the Pods' ``port``, ready ones only; of a StatefulSet the first answers."""
    balanced = workspace.annotations.get(labels.ENABLE_LOAD_BALANCER) == "True"
    selector = {labels.WORKSPACE: workspace.name}
    if distributed:
        selector["statefulset.kubernetes.io/pod-name"] = f"{workspace.name}-0"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "LoadBalancer" if balanced else "ClusterIP",
            "selector": selector,
            "ports": [_port("http", HTTP_PORT, port), _port("torch", TORCH_PORT, TORCH_PORT)],
        },
    }


def headless_service(workspace: Workspace, *, metadata: Obj) -> Obj:
    """The Service by which the Pods of a StatefulSet find each other before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {labels.WORKSPACE: workspace.name},
            "ports": [_port("torchrun", TORCH_PORT, TORCH_PORT)],
        },
    }


def _port(name: str, port: int, target: int) -> Obj:
    return {"name": name, "protocol": "TCP", "port": port, "targetPort": target}
