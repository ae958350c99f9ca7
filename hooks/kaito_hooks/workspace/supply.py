"""The nodes of a Workspace: those that are there, those to buy, and what is still missing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kaito_hooks.api import claim as claim_api
from kaito_hooks.api.claim import Claim
from kaito_hooks.api.workspace import ResourceSpec
from kaito_hooks.runtime import Obj, format_time
from kaito_hooks.workspace import claims, nodes
from kaito_hooks.workspace.actions import Action, BuyClaim, LabelNode, Note, Outcome
from kaito_hooks.workspace.purchases import CACHE_LAG
from kaito_hooks.workspace.snapshot import Snapshot

UNSERVED_PAUSE = 10.0
"""Seconds between two looks for a CRD that is missing: no event tells when it comes."""


@dataclass(frozen=True, slots=True)
class Supply:
    """``nodes``: chosen ones, sorted by name. ``claims``: where the claims stand (None: nothing is bought here)."""

    outcome: Outcome
    nodes: tuple[Obj, ...] = ()
    claims: ClaimProgress | None = None
    actions: tuple[Action, ...] = ()
    notes: tuple[Note, ...] = ()
    look_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ClaimProgress:
    """For the condition MachineReady or NodeClaimReady. ``pending``: claims that are still to become nodes."""

    state: str
    """``pending``, ``creation failed``, ``status failed`` or ``ready``."""
    message: str = ""
    pending: int = 0


def supply(s: Snapshot, resource: ResourceSpec, *, disk_gib: int, buy: bool) -> Supply:
    """Choose nodes, buy what is missing (if ``buy``), and say what the Workspace waits for."""
    chosen = nodes.select(
        nodes.candidates(s.nodes, s.workspace, resource, tenants=s.tenants),
        count=resource.count,
        preferred=resource.preferred_nodes,
        previous=s.workspace.worker_nodes,
        node_claim_mode=s.settings.node_api == "NodeClaim",
    )
    names = {nodes.name_of(node) for node in chosen}
    missing = resource.count - len(chosen)
    unfilled = [c for c in s.claims if not c.deleting and c.node_name not in names]
    unready = [c for c in s.claims if not c.deleting and c.node_name in names and not c.ready]
    # A bought node carries our labels before its provisioner holds it; until a claim names it, it is not there yet.
    held = {c.node_name for c in s.claims}
    unheld = [node for node in chosen if nodes.is_bought(node) and nodes.name_of(node) not in held]
    joining = min(len(unheld), len(unfilled))
    # With enough nodes at hand (the user brought some) a claim without a node of ours keeps nobody waiting.
    open_claims = [*unready, *(unfilled if missing > 0 or joining else ())]

    gpus = _GPUs.of(s, resource, chosen)
    purchase = _Purchase.of(s, resource, missing=missing - len(unfilled), disk_gib=disk_gib, buy=buy)
    findings = [
        claims.examine(c, settings=s.settings, now=s.now) if not c.ready else _ready_without_node(s, c)
        for c in open_claims
    ]
    usable = max(0, len(chosen) - gpus.lacking - len(unready) - joining)

    outcome = _outcome(s, resource, usable=usable, missing=missing, findings=findings, purchase=purchase, gpus=gpus)
    moments = [m for m in (gpus.look_at, purchase.look_at, *(f.look_at for f in findings)) if m is not None]
    return Supply(
        outcome=outcome,
        nodes=tuple(chosen),
        claims=_progress(
            s, outcome=outcome, pending=max(missing + gpus.lacking, 1), findings=findings, purchase=purchase, gpus=gpus
        ),
        actions=(*purchase.actions, *gpus.actions),
        notes=purchase.notes,
        look_at=min(moments, default=None),
    )


@dataclass(frozen=True, slots=True)
class _GPUs:
    """The GPU check of the chosen nodes."""

    lacking: int = 0
    waiting: str = ""
    failed: str = ""
    actions: tuple[Action, ...] = ()
    look_at: datetime | None = None

    @classmethod
    def of(cls, s: Snapshot, resource: ResourceSpec, chosen: list[Obj]) -> _GPUs:
        if not nodes.needs_gpus(s.workspace, resource, s.catalog):
            return cls()
        checks = [
            nodes.check_gpus(
                node,
                s.workspace,
                labelled_at=s.memory.labelled.get(nodes.name_of(node)),
                now=s.now,
                timeout=s.settings.timeouts.gpu_plugin,
            )
            for node in chosen
        ]
        lacking = [check for check in checks if check.gpus_missing]
        late = [check for check in lacking if s.now >= check.deadline]
        return cls(
            lacking=len(lacking),
            waiting=f"node {lacking[0].node} has no nvidia.com/gpu yet" if lacking else "",
            failed=f"node plugin installation timed out. node {late[0].node} is not ready" if late else "",
            actions=tuple(LabelNode(check.node) for check in checks if check.label_missing),
            look_at=min((check.deadline for check in lacking if s.now < check.deadline), default=None),
        )


@dataclass(frozen=True, slots=True)
class _Purchase:
    """Claims to create, or why they are not created."""

    actions: tuple[BuyClaim, ...] = ()
    notes: tuple[Note, ...] = ()
    waiting: str = ""
    failed: str = ""
    look_at: datetime | None = None

    @classmethod
    def of(cls, s: Snapshot, resource: ResourceSpec, *, missing: int, disk_gib: int, buy: bool) -> _Purchase:
        if missing <= 0 or not buy:
            return cls()
        api = s.settings.node_api
        if api == "none":
            return cls(waiting=_bring_your_own(resource, missing))
        if api not in s.served_claim_kinds:
            plural = claim_api.ENCODINGS[api].plural
            return cls(
                failed=f"nodeAPI is {api}, but this cluster serves no {plural}.karpenter.sh; "
                "install the chart gpu-provisioner, or set nodeAPI to what is installed",
                look_at=s.now + timedelta(seconds=UNSERVED_PAUSE),
            )
        if unobtainable := claims.unobtainable(resource.match_labels):
            return cls(failed=f"resource.labelSelector: {unobtainable}")
        remembered = s.memory.purchases
        if remembered.not_before is not None and s.now < remembered.not_before:
            again = f"the next try is at {format_time(remembered.not_before)}"
            return cls(failed=f"{remembered.cause}; {again}", look_at=remembered.not_before)
        names = claims.to_buy(s.workspace, s.claims, count=resource.count, missing=missing, salts=s.memory.salts)
        if not names:
            going = ", ".join(sorted(c.name for c in s.claims if c.deleting))
            return cls(waiting=f"{going} is being deleted, its replacement is bought when it is gone" if going else "")
        return cls._of_names(s, resource, names, disk_gib=disk_gib)

    @classmethod
    def _of_names(cls, s: Snapshot, resource: ResourceSpec, names: list[str], *, disk_gib: int) -> _Purchase:
        api = s.settings.node_api
        assert api != "none"
        slots = {name: slot for slot in range(resource.count) for name in claims.slot_names(s.workspace, slot)}
        actions: list[BuyClaim] = []
        moments: list[datetime] = []
        waiting = failed = ""
        for name in names:
            if (coming := s.memory.purchases.bought.get(name)) is not None:
                waiting = f"waiting for {name}: {claims.UNANSWERED}"
                moments.append(coming.at + timedelta(seconds=CACHE_LAG))
                continue
            refusal = s.memory.refusals.get(f"{api}/{name}")
            if refusal is not None and s.now < refusal.retry_at:
                failed = failed or refusal.message
                moments.append(refusal.retry_at)
                continue
            spec = claims.claim_spec(
                name, s.workspace, resource, disk_gib=disk_gib, catalog=s.catalog, settings=s.settings
            )
            actions.append(BuyClaim(claim_api.encode(spec, api), slots[name]))
        bought = [action.claim["metadata"]["name"] for action in actions]
        return cls(
            actions=tuple(actions),
            notes=tuple(
                Note("Normal", f"Created{api}", f"created {api} {name} for one {resource.instance_type}")
                for name in bought
            ),
            waiting=f"waiting for {bought[0]}: {claims.UNANSWERED}" if bought else waiting,
            failed=failed,
            look_at=min(moments, default=None),
        )


def _bring_your_own(resource: ResourceSpec, missing: int) -> str:
    selector = ",".join(f"{key}={value}" for key, value in sorted(resource.match_labels.items())) or "any label"
    return (
        f"{missing} more Ready node{'s' if missing > 1 else ''} of type {resource.instance_type} with the labels "
        f"{selector} needed; nothing is bought because nodeAPI is none"
    )


def _ready_without_node(s: Snapshot, claim: Claim) -> claims.Finding:
    """A claim stays Ready when its Node does not: look at the Node itself."""
    node = next((n for n in s.nodes if nodes.name_of(n) == claim.node_name), None)
    if node is None:
        text = f"its node {claim.node_name} is gone"
    elif node["metadata"].get("deletionTimestamp"):
        text = f"its node {claim.node_name} is being deleted"
    elif not nodes.is_ready(node):
        text = f"its node {claim.node_name} is not Ready"
    elif (node.get("spec") or {}).get("unschedulable"):
        text = f"its node {claim.node_name} is cordoned"
    else:
        text = f"its node {claim.node_name} does not have the labels and the instance type of the Workspace"
    return claims.Finding(claim.name, "waiting", text)


def _outcome(
    s: Snapshot,
    resource: ResourceSpec,
    *,
    usable: int,
    missing: int,
    findings: list[claims.Finding],
    purchase: _Purchase,
    gpus: _GPUs,
) -> Outcome:
    if missing <= 0 and not findings and not gpus.lacking:
        return Outcome("ready", "workspace resource is ready")
    failures = [f"{f.claim}: {f.text}" for f in findings if f.kind == "failed"]
    failures += [text for text in (purchase.failed, gpus.failed) if text]
    waits = [f"{f.claim}: {f.text}" for f in findings if f.kind != "failed"]
    waits += [text for text in (gpus.waiting, purchase.waiting) if text]
    if not waits and not failures:
        waits = ["a node"]
    progress = f"node {usable}/{resource.count} ready; "
    if failures:
        return Outcome("failed", progress + failures[0])
    waiting = f"{progress}waiting for {waits[0]}" if findings else progress + waits[0]
    last = s.memory.purchases.cause
    return Outcome("waiting", f"{waiting}; the last try ended with: {last}" if last and missing > 0 else waiting)


def _progress(
    s: Snapshot,
    *,
    outcome: Outcome,
    pending: int,
    findings: list[claims.Finding],
    purchase: _Purchase,
    gpus: _GPUs,
) -> ClaimProgress | None:
    if s.settings.node_api == "none":
        return None
    if outcome.ready:
        return ClaimProgress("ready")
    if failed := next((f"{f.claim}: {f.text}" for f in findings if f.kind == "failed"), purchase.failed):
        return ClaimProgress("creation failed", failed)
    if late := next((f for f in findings if f.kind == "late"), None):
        what = "machine" if s.settings.node_api == "Machine" else "nodeClaim"
        return ClaimProgress(
            "status failed", f"check {what} status timed out. {what} {late.claim} is not ready: {late.text}"
        )
    if gpus.failed:
        return ClaimProgress("status failed", gpus.failed)
    return ClaimProgress("pending", pending=pending)
