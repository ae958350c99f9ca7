"""The nodes of a Workspace: those that are there, those to buy and to give back, and what is still missing.

All of it is read from the table of its slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kaito_hooks.api.workspace import ResourceSpec
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.actions import Action, BuyClaim, Delete, LabelNode, Note, Outcome
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.supply import node_facts, nodes, placement
from kaito_hooks.workspace.supply.slot_table import Table, fill
from kaito_hooks.workspace.supply.slots import FAILED, Slot, State, find_node


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
    """For the condition MachineReady or NodeClaimReady. ``pending``: claims that are still to become nodes."""

    state: str
    """``pending``, ``creation failed``, ``status failed`` or ``ready``."""
    message: str = ""
    pending: int = 0


def supply(s: Snapshot, resource: ResourceSpec, *, disk_gib: int, buy: bool) -> Supply:
    """Choose nodes, buy what is missing (if ``buy``), give back what is too much, say what the Workspace waits for."""
    table = fill(s, resource, disk_gib=disk_gib, buy=buy)
    purchases = [slot.buy for slot in table.slots if slot.buy is not None]
    return Supply(
        outcome=_outcome(s, resource, table),
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


def _outcome(s: Snapshot, resource: ResourceSpec, table: Table) -> Outcome:
    if table.ready:
        return Outcome("ready", "workspace resource is ready")
    usable = sum(slot.state is State.READY for slot in table.slots)
    first = _most_urgent(table)
    message = first.message
    if first.state is State.FREE:
        free = sum(slot.state is State.FREE for slot in table.slots)
        message = _bring_your_own(s, resource, free) if s.settings.node_api == "none" else "a node"
    return Outcome("failed" if first.state in FAILED else "waiting", f"node {usable}/{resource.count} ready; {message}")


def _most_urgent(table: Table) -> Slot:
    return min(table.slots, key=lambda slot: slot.urgency)


def _bring_your_own(s: Snapshot, resource: ResourceSpec, missing: int) -> str:
    selector = ",".join(f"{key}={value}" for key, value in sorted(resource.match_labels.items())) or "any label"
    text = (
        f"{missing} more Ready node{'s' if missing > 1 else ''} with the labels {selector} needed; "
        "nothing is bought because nodeAPI is none"
    )
    for node in s.nodes:
        found = node_facts.facts(node)
        if found is not None and nodes.has_labels(node, resource) and not node_facts.may_use(s, node):
            gpus = f"{found.gpu_count} x {found.gpu_model or 'GPU'} with {found.per_gpu_memory_gib} GiB"
            return f"{text}; the GPUs of node {nodes.name_of(node)} ({gpus}) do not hold what the Workspace runs"
    return text


def _progress(s: Snapshot, table: Table) -> ClaimProgress | None:
    if s.settings.node_api == "none":
        return None
    if table.ready:
        return ClaimProgress("ready")
    first = _most_urgent(table)
    match first.state:
        case State.CLAIM_FAILED | State.BACKING_OFF | State.REFUSED:
            return ClaimProgress("creation failed", first.message)
        case State.GPUS_LATE:
            return ClaimProgress("status failed", first.message)
        case State.CLAIM_LATE:
            what = "machine" if s.settings.node_api == "Machine" else "nodeClaim"
            text = f"check {what} status timed out. {what} {first.claim} is not ready: {first.text}"
            return ClaimProgress("status failed", text)
    pending = sum(slot.state not in (State.READY, State.AWAY) for slot in table.slots)
    return ClaimProgress("pending", "" if pending else f"waiting for {first.message}", pending)


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
