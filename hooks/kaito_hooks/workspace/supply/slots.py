"""The slots of a Workspace: one for each node that it asks for, and in each one state.

What is bought, given back and told is read from these states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from kaito_hooks.api import claim as claim_api
from kaito_hooks.api.claim import Claim
from kaito_hooks.api.workspace import ResourceSpec
from kaito_hooks.runtime import Obj, format_time
from kaito_hooks.workspace.decision.actions import BuyClaim
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.purchases import claims
from kaito_hooks.workspace.purchases.history import CACHE_LAG
from kaito_hooks.workspace.supply import nodes

UNSERVED_PAUSE = 10.0
"""Seconds between two looks for a CRD that is missing: no event tells when it comes."""


class State(Enum):
    """Where one slot stands; those that a user must hear of first come first."""

    CLAIM_FAILED = "its claim will not become a node by waiting"
    BACKING_OFF = "its last claim went too early, and the next one is not bought yet"
    REFUSED = "its claim cannot be written"
    GPUS_LATE = "its node has no GPUs, and its time for that is over"
    CLAIM_LATE = "its claim takes long to become a node"
    AWAY = "its node is not Ready, and keeps its place for a while"
    CLAIM_PENDING = "its claim is to become a node"
    REPAIRING = "the node of its claim cannot be used"
    GPUS_MISSING = "its node has no GPUs yet"
    ORDERED = "its claim was written, and no cache has it yet"
    TO_BUY = "its claim is written next"
    GOING = "its claim is being deleted, and the next one must wait for that"
    FREE = "nothing is bought for it"
    READY = "its node can be used"


FAILED = frozenset({State.CLAIM_FAILED, State.BACKING_OFF, State.REFUSED, State.GPUS_LATE})
_RANKS = {state: rank for rank, state in enumerate(State)}


_WAITED_FOR = frozenset({State.CLAIM_LATE, State.CLAIM_PENDING, State.REPAIRING, State.ORDERED, State.TO_BUY})


@dataclass(frozen=True, slots=True)
class Slot:
    """``text``: what there is to say of its ``claim``, or of the slot itself. ``look_at``: when it changes by itself.

    ``last``: why its claim before this one went. ``buy``: the claim to write. ``label``: a node that lacks the label by
    which the device plugin finds its nodes.
    """

    number: int
    state: State
    text: str = ""
    look_at: datetime | None = None
    claim: str = ""
    last: str = ""
    buy: BuyClaim | None = None
    label: str = ""

    @property
    def message(self) -> str:
        """A sentence for the user."""
        text = f"{self.claim}: {self.text}" if self.claim else self.text
        if self.state in _WAITED_FOR:
            text = f"waiting for {text}"
        return f"{text}; the last try ended with: {self.last}" if self.last else text

    @property
    def urgency(self) -> tuple[int, int]:
        """Sorts what a user must hear of first to the front."""
        return _RANKS[self.state], self.number


def away_until(s: Snapshot, node: Obj) -> datetime | None:
    """Until when a Node keeps its place that is not Ready; None of one that is Ready."""
    since = nodes.away_since(node)
    return since + timedelta(seconds=s.settings.timeouts.node_not_ready) if since is not None else None


def find_node(s: Snapshot, name: str) -> Obj | None:
    """The Node of that name."""
    return next((node for node in s.nodes if nodes.name_of(node) == name), None)


def judge(
    s: Snapshot,
    resource: ResourceSpec,
    number: int,
    *,
    claim: Claim | None,
    node: Obj | None,
    disk_gib: int,
    buy: bool,
) -> Slot:
    """The state of the slot of that number, which holds that claim and that Node; ``buy``: whether it may be bought."""
    if node is None:
        if claim is None:
            return _empty(s, resource, number, disk_gib=disk_gib, buy=buy)
        return _waiting(s, number, claim)
    if not nodes.is_ready(node):
        return _away(s, number, node, bought=claim is not None)
    checked = _checked(s, resource, number, node)
    if claim is None or claim.deleting or (claim.ready and claim.node_name == nodes.name_of(node)):
        return checked
    return replace(_waiting(s, number, claim), label=checked.label)


def _away(s: Snapshot, number: int, node: Obj, *, bought: bool) -> Slot:
    since, until = nodes.away_since(node), away_until(s, node)
    assert since is not None
    assert until is not None
    what = "given up" if bought or s.settings.node_api == "none" else "replaced"
    return Slot(
        number,
        State.AWAY,
        f"node {nodes.name_of(node)} is not Ready since {format_time(since)}; "
        f"it is {what} at {format_time(until)} if it is not back by then",
        until,
    )


def _checked(s: Snapshot, resource: ResourceSpec, number: int, node: Obj) -> Slot:
    """A slot whose node is Ready: its GPUs may be missing."""
    if not nodes.needs_gpus(s.workspace, resource, s.catalog):
        return Slot(number, State.READY)
    check = nodes.check_gpus(
        node,
        s.workspace,
        labelled_at=s.memory.labelled.get(nodes.name_of(node)),
        now=s.now,
        timeout=s.settings.timeouts.gpu_plugin,
    )
    label = check.node if check.label_missing else ""
    if not check.gpus_missing:
        return Slot(number, State.READY, label=label)
    if s.now >= check.deadline:
        text = f"node plugin installation timed out. node {check.node} is not ready"
        return Slot(number, State.GPUS_LATE, text, label=label)
    return Slot(number, State.GPUS_MISSING, f"node {check.node} has no nvidia.com/gpu yet", check.deadline, label=label)


def _waiting(s: Snapshot, number: int, claim: Claim) -> Slot:
    """A slot whose claim has no node that can be used."""
    last = s.memory.purchases.of(number).cause
    if claim.deleting:
        said = claim.first_waiting()
        if said is not None and claims.is_failure(*said):
            text = f"{': '.join(said)}; it is being deleted, and bought again when it is gone"
            return Slot(number, State.CLAIM_FAILED, text, claim=claim.name)
        text = f"{claim.name} is being deleted, its replacement is bought when it is gone"
        return Slot(number, State.GOING, text, last=last)
    if claim.ready:
        return Slot(number, State.REPAIRING, _ready_without_node(s, claim), claim=claim.name, last=last)
    found = claims.examine(claim, settings=s.settings, now=s.now)
    if found.kind == "failed":
        return Slot(number, State.CLAIM_FAILED, found.text, found.look_at, claim.name)
    state = State.CLAIM_LATE if found.kind == "late" else State.CLAIM_PENDING
    return Slot(number, state, found.text, found.look_at, claim.name, last)


def _ready_without_node(s: Snapshot, claim: Claim) -> str:
    """A claim stays Ready when its Node does not: look at the Node itself."""
    node = find_node(s, claim.node_name)
    if node is None:
        return f"its node {claim.node_name} is gone"
    if node["metadata"].get("deletionTimestamp"):
        return f"its node {claim.node_name} is being deleted"
    if not nodes.is_ready(node):
        return f"its node {claim.node_name} is not Ready"
    if (node.get("spec") or {}).get("unschedulable"):
        return f"its node {claim.node_name} is cordoned"
    return f"its node {claim.node_name} does not have the labels and the instance type of the Workspace"


def _empty(s: Snapshot, resource: ResourceSpec, number: int, *, disk_gib: int, buy: bool) -> Slot:
    """A slot without claim and node: bought, or why not."""
    api = s.settings.node_api
    if not buy or api == "none":
        return Slot(number, State.FREE)
    if api not in s.served_claim_kinds:
        plural = claim_api.ENCODINGS[api].plural
        text = (
            f"nodeAPI is {api}, but this cluster serves no {plural}.karpenter.sh; "
            "install the chart gpu-provisioner, or set nodeAPI to what is installed"
        )
        return Slot(number, State.REFUSED, text, s.now + timedelta(seconds=UNSERVED_PAUSE))
    if unobtainable := claims.unobtainable(resource, s.catalog):
        return Slot(number, State.REFUSED, f"resource.labelSelector: {unobtainable}")
    losses = s.memory.purchases.of(number)
    if losses.not_before is not None and s.now < losses.not_before:
        again = f"the next try is at {format_time(losses.not_before)}"
        return Slot(number, State.BACKING_OFF, f"{losses.cause}; {again}", losses.not_before)
    name = claims.next_name(s.workspace, number, s.memory.salts)
    waiting = Slot(number, State.ORDERED, claims.UNANSWERED, claim=name, last=losses.cause)
    if (coming := s.memory.purchases.bought.get(name)) is not None:
        return replace(waiting, look_at=coming.at + timedelta(seconds=CACHE_LAG))
    refusal = s.memory.refusals.get(f"{api}/{name}")
    if refusal is not None and s.now < refusal.retry_at:
        return Slot(number, State.REFUSED, refusal.message, refusal.retry_at)
    spec = claims.claim_spec(name, s.workspace, resource, disk_gib=disk_gib, catalog=s.catalog, settings=s.settings)
    return replace(waiting, state=State.TO_BUY, buy=BuyClaim(claim_api.encode(spec, api), number))
