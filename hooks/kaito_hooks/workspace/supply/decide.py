"""The nodes of a Workspace: those that are there, those to buy and to give back, and what is still missing.

All of it is read from the table of its slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import ResourceSpec
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.actions import Action, BuyClaim, Delete, LabelNode, Note, Outcome
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.supply import node_facts, nodes, placement
from kaito_hooks.workspace.supply.slot_table import Table, fill
from kaito_hooks.workspace.supply.slots import FAILED, Slot, State, find_node

NOT_BOUGHT = "no node is bought at the moment"
_COMING = frozenset({State.CLAIM_PENDING, State.ORDERED, State.TO_BUY})
"""States of slots whose claim is to become a node."""


@dataclass(frozen=True, slots=True)
class Supply:
    """``nodes``: chosen ones, sorted by name. ``claims``: where the claims stand (None: nothing is bought here).

    ``lost_to``: which node that the Workspace's Pods could take is another Workspace's, while it has too few itself; ""
    otherwise. What runs must not compete for that node.
    """

    outcome: Outcome
    nodes: tuple[Obj, ...] = ()
    claims: ClaimProgress | None = None
    actions: tuple[Action, ...] = ()
    notes: tuple[Note, ...] = ()
    look_at: datetime | None = None
    lost_to: str = ""


@dataclass(frozen=True, slots=True)
class ClaimProgress:
    """For the condition MachineReady or NodeClaimReady."""

    state: Literal["pending", "creation failed", "status failed", "ready"]
    message: str = ""


def supply(s: Snapshot, resource: ResourceSpec, *, disk_gib: int, why_not: str) -> Supply:
    """Choose nodes, buy what is missing, give back what is too much, say what the Workspace waits for.

    ``why_not``: nothing is bought; "" if it is.
    """
    table = fill(s, resource, disk_gib=disk_gib, buy=not why_not)
    purchases = [slot.buy for slot in table.slots if slot.buy is not None]
    return Supply(
        outcome=_outcome(s, resource, table, why_not=why_not or NOT_BOUGHT),
        nodes=table.nodes,
        claims=_progress(s, table),
        actions=(
            *purchases,
            *(LabelNode(slot.label) for slot in table.slots if slot.label),
            *(Delete(claim.kind, "", claim.name, claim.uid) for claim in table.surplus),
        ),
        notes=(
            *(
                Note("Normal", f"Created{kind}", f"created {kind} {name} for one {resource.instance_type}")
                for kind, name in map(_kind_and_name, purchases)
            ),
            *(
                Note("Normal", f"Deleted{c.kind}", f"deleted {c.kind} {c.name}: other nodes have taken its place")
                for c in table.surplus
            ),
        ),
        look_at=min((slot.look_at for slot in table.slots if slot.look_at is not None), default=None),
        lost_to=_lost_to(s, resource, table),
    )


def _kind_and_name(purchase: BuyClaim) -> tuple[str, str]:
    return purchase.claim["kind"], purchase.claim["metadata"]["name"]


def _outcome(s: Snapshot, resource: ResourceSpec, table: Table, *, why_not: str) -> Outcome:
    if table.ready:
        return Outcome("ready", "workspace resource is ready")
    usable = sum(slot.state is State.READY for slot in table.slots)
    first = _most_urgent(table)
    message = first.message
    if first.state is State.FREE:
        free = sum(slot.state is State.FREE for slot in table.slots)
        message = _bring_your_own(s, resource, table, free) if s.settings.node_api == "none" else why_not
    return Outcome("failed" if first.state in FAILED else "waiting", f"node {usable}/{resource.count} ready; {message}")


def _most_urgent(table: Table) -> Slot:
    return min(table.slots, key=lambda slot: slot.urgency)


def _bring_your_own(s: Snapshot, resource: ResourceSpec, table: Table, missing: int) -> str:
    selector = ",".join(f"{key}={value}" for key, value in sorted(resource.match_labels.items())) or "any label"
    text = (
        f"{missing} more Ready node{'s' if missing > 1 else ''} with the labels {selector} needed; "
        "nothing is bought because nodeAPI is none"
    )
    chosen = {nodes.name_of(node) for node in table.nodes}
    labelled = [n for n in s.nodes if nodes.has_labels(n, resource) and nodes.name_of(n) not in chosen]
    reasons = filter(None, (_why_not(s, resource, node) for node in labelled))
    return f"{text}; {reason}" if (reason := next(reasons, "")) else text


def _why_not(s: Snapshot, resource: ResourceSpec, node: Obj) -> str:
    """Why a node that has the labels cannot be used; "" if nothing is known."""
    name = nodes.name_of(node)
    if node["metadata"].get("deletionTimestamp"):
        return f"node {name} has the labels but is being deleted"
    if not nodes.is_ready(node):
        return f"node {name} has the labels but is not Ready"
    if (tenant := nodes.in_others_hands([node], s.workspace, resource, tenants=s.tenants).get(name)) is not None:
        return f"node {name} has the labels but is used by Workspace {tenant.namespace}/{tenant.name}"
    if (node.get("spec") or {}).get("unschedulable"):
        return f"node {name} has the labels but is cordoned"
    if node_facts.may_use(s, node):
        return ""
    if (found := node_facts.facts(node)) is not None:
        gpus = f"{found.gpu_count} x {found.gpu_model or 'GPU'} with {found.per_gpu_memory_gib} GiB"
        return f"the GPUs of node {name} ({gpus}) do not hold what the Workspace runs"
    kind = nodes.labels_of(node).get(labels.INSTANCE_TYPE, "of no type")
    return f"node {name} ({kind}) has the labels but offers no nvidia.com/gpu, and the Workspace needs GPUs"


def _progress(s: Snapshot, table: Table) -> ClaimProgress | None:
    if s.settings.node_api == "none":
        return None
    if table.ready:
        return ClaimProgress("ready")
    first, kind = _most_urgent(table), "machine" if s.settings.node_api == "Machine" else "nodeClaim"
    match first.state:
        case State.CLAIM_FAILED | State.BACKING_OFF | State.REFUSED:
            return ClaimProgress("creation failed", first.message)
        case State.GPUS_LATE:
            return ClaimProgress("status failed", first.message)
        case State.CLAIM_LATE:
            text = f"check {kind} status timed out. {kind} {first.claim} is not ready: {first.text}"
            return ClaimProgress("status failed", text)
    if coming := sum(slot.state in _COMING for slot in table.slots):
        return ClaimProgress("pending", f"creating {coming} {kind}s")
    return ClaimProgress("pending", NOT_BOUGHT if first.state is State.FREE else first.message)


def _lost_to(s: Snapshot, resource: ResourceSpec, table: Table) -> str:
    """Pods that run where nobody else's node is harm nobody; those that run nowhere may go anywhere. One that has
    ended, or is ending, takes nothing more."""
    if len(table.nodes) >= resource.count:
        return ""
    taken = nodes.in_others_hands(s.nodes, s.workspace, resource, tenants=s.tenants)
    used = {nodes.of_pod(pod) for pod in s.pods if not pod["metadata"].get("deletionTimestamp")} - {""}
    if used or table.nodes:
        taken = {name: tenant for name, tenant in taken.items() if name in used}
    else:
        taken = {name: tenant for name, tenant in taken.items() if _may_take(s, name)}
    return next((f"node {n} is used by Workspace {t.namespace}/{t.name}" for n, t in sorted(taken.items())), "")


def _may_take(s: Snapshot, node: str) -> bool:
    """Whether a Pod of what was made for the Workspace may go to that node; also if nothing is made yet."""
    made = [s.children.get(f"{kind}/{s.workspace.name}") for kind in placement.WITH_PODS]
    found = find_node(s, node)
    specs = [placement.pod_of(child) for child in made if child is not None]
    return found is None or not specs or any(placement.admits(pod, found) for pod in specs)
