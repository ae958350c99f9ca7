"""Where a Workspace's Pods may run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kaito_hooks.api import labels, node_labels
from kaito_hooks.api.workspace import ResourceSpec, Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.rules import tolerations
from kaito_hooks.workspace.supply import nodes

NODE_NAME = "metadata.name"
WORKLOADS = ("Deployment", "StatefulSet")
"""Kinds of which one serves a Workspace."""
WITH_PODS = (*WORKLOADS, "Job")
"""Kinds of children that make Pods."""


def place(s: Snapshot, resource: ResourceSpec) -> Obj:
    """The part of a Pod's specification that says where it runs: affinity and tolerations."""
    return {
        "affinity": affinity(s.workspace, resource, instance_types=_instance_types(s, resource)),
        "tolerations": tolerations.of(s.workspace, s.settings),
    }


def affinity(workspace: Workspace, resource: ResourceSpec, *, instance_types: Iterable[str] = ()) -> Obj:
    """Required node affinity: nodes bought for this Workspace, or nodes of one of these types that no Workspace bought.
    Preferred nodes may be of any type, or of none.

    Two Workspaces with the same labels would otherwise land on each other's nodes, and a model on a node of a type that
    it was not sized for. With several replicas, Pods prefer nodes of their own.
    """
    wanted = [_is_in(key, value) for key, value in sorted(resource.match_labels.items())]
    ours = [_is_in(labels.WORKSPACE, workspace.name), _is_in(labels.WORKSPACE_NAMESPACE, workspace.namespace)]
    nobodys: list[Obj] = [{"key": labels.WORKSPACE, "operator": "DoesNotExist"}]
    of_types, preferred = [], []
    if instance_types:
        of_types = [_is_in(labels.INSTANCE_TYPE, *instance_types)]
        # A field takes one value only, and none that cannot be the name of a Node.
        preferred = [
            {"matchExpressions": wanted + nobodys, "matchFields": [_is_in(NODE_NAME, name)]}
            for name in sorted(set(filter(node_labels.is_node_name, resource.preferred_nodes)))
        ]
    terms: list[Obj] = [
        {"matchExpressions": wanted + ours},
        {"matchExpressions": wanted + nobodys + of_types},
        *preferred,
    ]
    rules: Obj = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
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


def pod_of(workload: Obj) -> Obj:
    """The specification of its Pods; empty if somebody emptied it."""
    return ((workload.get("spec") or {}).get("template") or {}).get("spec") or {}


def admits(pod: Obj, node: Obj) -> bool:
    """Whether a Pod of that specification, placed by this module, may go to that Node."""
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    fields = {NODE_NAME: nodes.name_of(node)}
    return required is None or any(
        _are_met(term.get("matchExpressions"), nodes.labels_of(node)) and _are_met(term.get("matchFields"), fields)
        for term in required["nodeSelectorTerms"]
    )


def is_stranded(s: Snapshot, made: Obj) -> bool:
    """Whether nothing of a workload or Job runs, and it may go to none of the nodes that the Workspace has: it was made
    for others. A Pod that has ended holds no node."""
    mine = [node for node in s.nodes if nodes.name_of(node) in s.workspace.worker_nodes]
    return bool(mine) and not any(map(nodes.of_pod, s.pods)) and not any(admits(pod_of(made), node) for node in mine)


def _are_met(rules: Iterable[Obj] | None, marks: Mapping[str, str]) -> bool:
    return all(
        marks.get(rule["key"]) in rule["values"] if rule["operator"] == "In" else rule["key"] not in marks
        for rule in rules or ()
    )


def _instance_types(s: Snapshot, resource: ResourceSpec) -> list[str]:
    """The type as the user and as the Catalog spell it, and as the Nodes do that are of it.

    None where nothing is bought: there the labels alone say which nodes are meant. It is asked of Nodes that are there,
    Ready or not, so that one that blinks starts no rollout.
    """
    if s.settings.node_api == "none":
        return []
    listed = s.catalog.find_instance_type(resource.instance_type) if s.catalog is not None else None
    found = {resource.instance_type, *([listed.name] if listed is not None else [])}
    for node in s.nodes:
        spelled = nodes.labels_of(node).get(labels.INSTANCE_TYPE, "")
        if spelled and spelled.lower() == resource.instance_type.lower():
            found.add(spelled)
    return sorted(found)


def _is_in(key: str, *values: str) -> Obj:
    return {"key": key, "operator": "In", "values": list(values)}
