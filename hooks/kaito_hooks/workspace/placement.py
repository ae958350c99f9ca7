"""Where a Workspace's Pods may run."""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import ResourceSpec, Workspace
from kaito_hooks.runtime import Obj

TOLERATIONS: tuple[Obj, ...] = (
    {"key": labels.GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"},
    {"key": labels.SKU, "operator": "Equal", "value": labels.SKU_GPU, "effect": "NoSchedule"},
)


def affinity(workspace: Workspace, resource: ResourceSpec) -> Obj:
    """Required node affinity: nodes bought for this Workspace, or nodes that no Workspace bought.

    Two Workspaces with the same labels would otherwise land on each other's nodes. With several replicas, Pods prefer
    nodes of their own.
    """
    wanted = [_is_in(key, value) for key, value in sorted(resource.match_labels.items())]
    ours = [_is_in(labels.WORKSPACE, workspace.name), _is_in(labels.WORKSPACE_NAMESPACE, workspace.namespace)]
    nobodys = [{"key": labels.WORKSPACE, "operator": "DoesNotExist"}]
    rules: Obj = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": wanted + ours}, {"matchExpressions": wanted + nobodys}]
            }
        }
    }
    if resource.count > 1:
        rules["podAntiAffinity"] = {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "podAffinityTerm": {
                        "topologyKey": labels.HOSTNAME,
                        "labelSelector": {"matchLabels": {labels.WORKSPACE: workspace.name}},
                    },
                }
            ]
        }
    return rules


def _is_in(key: str, value: str) -> Obj:
    return {"key": key, "operator": "In", "values": [value]}
