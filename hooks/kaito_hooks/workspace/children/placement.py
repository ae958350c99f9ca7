"""Where a Workspace's Pods may run."""

from __future__ import annotations

from collections.abc import Iterable

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import ResourceSpec, Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.rules import tolerations
from kaito_hooks.workspace.supply import nodes


def place(s: Snapshot, resource: ResourceSpec) -> Obj:
    """The part of a Pod's specification that says where it runs: affinity and tolerations."""
    return {
        "affinity": affinity(s.workspace, resource, instance_types=_instance_types(s, resource)),
        "tolerations": tolerations.of(s.workspace, s.settings),
    }


def affinity(workspace: Workspace, resource: ResourceSpec, *, instance_types: Iterable[str] = ()) -> Obj:
    """Required node affinity: nodes bought for this Workspace, or nodes of one of these types that no Workspace bought.

    Two Workspaces with the same labels would otherwise land on each other's nodes, and a model on a node of a type that
    it was not sized for. With several replicas, Pods prefer nodes of their own.
    """
    wanted = [_is_in(key, value) for key, value in sorted(resource.match_labels.items())]
    ours = [_is_in(labels.WORKSPACE, workspace.name), _is_in(labels.WORKSPACE_NAMESPACE, workspace.namespace)]
    nobodys: list[Obj] = [{"key": labels.WORKSPACE, "operator": "DoesNotExist"}]
    if instance_types:
        nobodys.append(_is_in(labels.INSTANCE_TYPE, *instance_types))
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


def _instance_types(s: Snapshot, resource: ResourceSpec) -> list[str]:
    """The type as the user and as the Catalog spell it, and as the Nodes do that are chosen for it or preferred.

    None where nothing is bought: there the labels alone say which nodes are meant. It is asked of Nodes that are there,
    Ready or not, so that one that blinks starts no rollout.
    """
    if s.settings.node_api == "none":
        return []
    listed = s.catalog.find_instance_type(resource.instance_type) if s.catalog is not None else None
    found = {resource.instance_type, *([listed.name] if listed is not None else [])}
    for node in s.nodes:
        spelled = nodes.labels_of(node).get(labels.INSTANCE_TYPE)
        same = spelled is not None and spelled.lower() == resource.instance_type.lower()
        if spelled and (same or nodes.name_of(node) in resource.preferred_nodes):
            found.add(spelled)
    return sorted(found)


def _is_in(key: str, *values: str) -> Obj:
    return {"key": key, "operator": "In", "values": list(values)}
