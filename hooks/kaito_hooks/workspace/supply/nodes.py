"""Which Nodes a Workspace uses, and whether their GPUs are there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import Catalog
from kaito_hooks.api.conditions import find
from kaito_hooks.api.pods import has_ended
from kaito_hooks.api.workspace import ResourceSpec, Workspace
from kaito_hooks.runtime import Obj, parse_quantity, parse_time
from kaito_hooks.workspace.decision.snapshot import Tenant
from kaito_hooks.workspace.rules import pod_template


def name_of(node: Obj) -> str:
    """The Node's name."""
    return str(node["metadata"]["name"])


def of_pod(pod: Obj) -> str:
    """The node to which the Pod is bound and on which it has not ended; "" if there is none."""
    return "" if has_ended(pod) else str((pod.get("spec") or {}).get("nodeName") or "")


def labels_of(node: Obj) -> Mapping[str, str]:
    """The Node's labels."""
    return node["metadata"].get("labels") or {}


def is_ready(node: Obj) -> bool:
    """Whether the kubelet reports Ready."""
    ready = find((node.get("status") or {}).get("conditions"), "Ready")
    return ready is not None and ready.get("status") == "True"


def away_since(node: Obj) -> datetime | None:
    """When a Node that is not Ready ceased to be, or was made; None of one that is Ready."""
    ready = find((node.get("status") or {}).get("conditions"), "Ready") or {}
    since = ready.get("lastTransitionTime") or node["metadata"].get("creationTimestamp")
    return parse_time(since) if ready.get("status") != "True" and since else None


def ready_since(node: Obj) -> datetime | None:
    """When the Node became Ready, if it is."""
    ready = find((node.get("status") or {}).get("conditions"), "Ready")
    if ready is None or ready.get("status") != "True" or not ready.get("lastTransitionTime"):
        return None
    return parse_time(ready["lastTransitionTime"])


def gpu_capacity(node: Obj) -> int:
    """GPUs that the device plugin has announced."""
    capacity = (node.get("status") or {}).get("capacity") or {}
    return int(parse_quantity(capacity.get(labels.GPU_RESOURCE, "0")) or Decimal(0))


def candidates(
    nodes: Iterable[Obj],
    workspace: Workspace,
    resource: ResourceSpec,
    *,
    tenants: Mapping[str, Sequence[Tenant]],
    staying: Collection[str] = (),
    of_other_types: Callable[[Obj], bool] = lambda node: False,
) -> list[Obj]:
    """Nodes that the Workspace may use now: labels match, Ready, not going away, right type, nobody else's.

    ``staying``: names of Nodes that keep their place although they are not Ready. ``of_other_types``: whether a Node
    will do that is of another instance type, or of none.
    """
    return [
        node
        for node in nodes
        if has_labels(node, resource)
        and (name_of(node) in resource.preferred_nodes or _is_of_type(node, resource) or of_other_types(node))
        and (is_ready(node) or name_of(node) in staying)
        and not node["metadata"].get("deletionTimestamp")
        and _is_ours_or_free(node, workspace)
        and not _is_taken(node, workspace, tenants.get(name_of(node), ()))
        and _has_room(node, workspace)
    ]


def select(
    found: Iterable[Obj],
    *,
    count: int,
    preferred: Iterable[str] = (),
    occupied: Iterable[str] = (),
    previous: Iterable[str] = (),
    node_claim_mode: bool = False,
    resource: ResourceSpec | None = None,
) -> list[Obj]:
    """The first ``count`` of the candidates, sorted by name.

    Order: preferred, ``occupied`` by its Pods, used before (Ready ones first), made by KAITO's provisioner, in KAITO's
    node pool (NodeClaim mode only), of the instance type that ``resource`` names, with GPUs, name.
    """
    wanted, taken, used = set(preferred), set(occupied), set(previous)

    def rank(node: Obj) -> tuple[bool, bool, bool, bool, bool, bool, bool, bool, str]:
        name, marks = name_of(node), labels_of(node)
        return (
            name not in wanted,
            name not in taken,
            name not in used,
            not is_ready(node),
            labels.MACHINE_TYPE not in marks,
            not (node_claim_mode and labels.NODE_POOL in marks),
            resource is not None and not _is_of_type(node, resource),
            gpu_capacity(node) == 0,
            name,
        )

    return sorted(sorted(found, key=rank)[: max(count, 0)], key=name_of)


def has_labels(node: Obj, resource: ResourceSpec) -> bool:
    """Whether the Node has all labels that the Workspace's nodes must have."""
    marks = labels_of(node)
    return all(marks.get(key) == value for key, value in resource.match_labels.items())


def _is_of_type(node: Obj, resource: ResourceSpec) -> bool:
    return labels_of(node).get(labels.INSTANCE_TYPE, "").lower() == resource.instance_type.lower()


def is_bought(node: Obj) -> bool:
    """A Node bought for a Workspace carries its two labels; one without them was brought by the user."""
    return labels.WORKSPACE in labels_of(node)


def _is_ours_or_free(node: Obj, workspace: Workspace) -> bool:
    if not is_bought(node):
        return True
    marks = labels_of(node)
    return marks[labels.WORKSPACE] == workspace.name and marks.get(labels.WORKSPACE_NAMESPACE) == workspace.namespace


def _is_taken(node: Obj, workspace: Workspace, tenants: Sequence[Tenant]) -> bool:
    """A Node in another Workspace's workerNodes is in use; if both list it, the older Workspace keeps it."""
    if is_bought(node) or not tenants:
        return False
    if name_of(node) not in workspace.worker_nodes:
        return True
    me = (workspace.creation_timestamp, workspace.namespace, workspace.name)
    return any((t.creation_timestamp, t.namespace, t.name) < me for t in tenants)


def in_others_hands(
    nodes: Iterable[Obj], workspace: Workspace, resource: ResourceSpec, *, tenants: Mapping[str, Sequence[Tenant]]
) -> dict[str, Tenant]:
    """Nodes that nobody bought and to which the Workspace's Pods could go, but which another Workspace uses."""
    return {
        name_of(node): min(others, key=lambda t: (t.creation_timestamp, t.namespace, t.name))
        for node in nodes
        if has_labels(node, resource)
        and (others := tenants.get(name_of(node), ()))
        and _is_taken(node, workspace, others)
    }


def _has_room(node: Obj, workspace: Workspace) -> bool:
    """A cordoned Node takes no new Pod, but keeps the one that it has."""
    return not (node.get("spec") or {}).get("unschedulable") or name_of(node) in workspace.worker_nodes


def needs_nvidia(instance_type: str, catalog: Catalog | None) -> bool:
    """Whether Nodes of that type must offer ``nvidia.com/gpu``: the Catalog says so, or it is an Azure N size."""
    listed = catalog.find_instance_type(instance_type) if catalog else None
    if listed is not None:
        return listed.gpu_vendor == "nvidia" and listed.gpu_count > 0
    return instance_type.lower().startswith("standard_n")


def needs_gpus(workspace: Workspace, resource: ResourceSpec, catalog: Catalog | None) -> bool:
    """Whether what the Workspace runs needs ``nvidia.com/gpu``: a template may leave the GPUs of its nodes alone."""
    template = workspace.inference.template if workspace.inference is not None else None
    if template is not None and not pod_template.requests_gpus(template):
        return False
    return needs_nvidia(resource.instance_type, catalog)


@dataclass(frozen=True, slots=True)
class GPUCheck:
    """What a Node's GPUs lack: the label by which the device plugin finds its nodes, the GPUs, and until when we wait.

    ``label_missing``: a value of the user's own is no missing label.
    """

    node: str
    label_missing: bool
    gpus_missing: bool
    deadline: datetime


def check_gpus(
    node: Obj, workspace: Workspace, *, labelled_at: datetime | None, now: datetime, timeout: float
) -> GPUCheck:
    """Look at one Node. The deadline runs since the Node, the label and the Workspace have all been there."""
    since = [moment for moment in (ready_since(node), labelled_at) if moment is not None]
    if workspace.creation_timestamp:
        since.append(parse_time(workspace.creation_timestamp))
    label_missing = labels.ACCELERATOR not in labels_of(node)
    start = now if label_missing else max(since, default=now)
    return GPUCheck(
        node=name_of(node),
        label_missing=label_missing,
        gpus_missing=gpu_capacity(node) == 0,
        deadline=start + timedelta(seconds=timeout),
    )
