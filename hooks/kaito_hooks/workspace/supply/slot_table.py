"""The table of a Workspace's slots: which claim and which node is in which.

The node of a slot's own claim comes first; nodes that nobody bought fill slots without a claim, and only then others,
whose claim is then needed no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kaito_hooks.api.claim import Claim
from kaito_hooks.api.workspace import ResourceSpec
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.purchases import claims
from kaito_hooks.workspace.supply import node_facts, nodes
from kaito_hooks.workspace.supply.slots import Slot, State, away_until, find_node, judge


@dataclass(frozen=True, slots=True)
class Table:
    """``nodes``: the chosen ones, sorted by name. ``surplus``: claims that no slot needs and that may be given back."""

    slots: tuple[Slot, ...]
    nodes: tuple[Obj, ...] = ()
    surplus: tuple[Claim, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether every slot has a node that can be used."""
        return all(slot.state is State.READY for slot in self.slots)


@dataclass(slots=True)
class _Row:
    """A slot while the table is filled. ``displaced``: a claim whose place a node has taken that is not its own."""

    number: int
    claim: Claim | None = None
    node: Obj | None = None
    displaced: Claim | None = None


def fill(s: Snapshot, resource: ResourceSpec, *, disk_gib: int, buy: bool) -> Table:
    """The table as it is; ``buy``: whether claims may be written for slots that have neither claim nor node."""
    chosen = _chosen(s, resource)
    rows, extra = _place_claims(s, count=resource.count)
    _place_nodes(s, rows, chosen)
    slots = tuple(
        judge(s, resource, row.number, claim=row.claim, node=row.node, disk_gib=disk_gib, buy=buy) for row in rows
    )
    names = {nodes.name_of(node) for node in chosen}
    unneeded = [row.displaced for row, slot in zip(rows, slots, strict=True) if slot.state is State.READY]
    if all(slot.state is State.READY for slot in slots):
        unneeded += extra
    # Only once our choice is written down do others know of it, and we of theirs.
    settled = names <= set(s.workspace.worker_nodes)
    return Table(
        slots=slots,
        nodes=tuple(chosen),
        surplus=tuple(c for c in unneeded if c is not None and settled and _may_go(s, c, in_use=names)),
    )


def _chosen(s: Snapshot, resource: ResourceSpec) -> list[Obj]:
    """A node whose claim is being deleted is kept while it is in use, and not taken any more."""
    going = {claim.node_name for claim in s.claims if claim.deleting} - set(s.workspace.worker_nodes)
    return nodes.select(
        nodes.candidates(
            [node for node in s.nodes if nodes.name_of(node) not in going],
            s.workspace,
            resource,
            tenants=s.tenants,
            staying=_staying(s),
            of_other_types=lambda node: node_facts.may_use(s, node),
        ),
        count=resource.count,
        preferred=resource.preferred_nodes,
        # The scheduler may have chosen a node that nobody bought: what was bought instead of it serves nobody.
        occupied={nodes.of_pod(pod) for pod in s.pods if not pod["metadata"].get("deletionTimestamp")},
        previous=s.workspace.worker_nodes,
        node_claim_mode=s.settings.node_api == "NodeClaim",
        resource=resource,
    )


def _staying(s: Snapshot) -> set[str]:
    """Nodes in use that are not Ready since a short while; not if their provisioner gives them up already."""
    given_up = {claim.node_name for claim in s.claims if claim.deleting}
    return {
        name
        for node in s.nodes
        if (name := nodes.name_of(node)) in s.workspace.worker_nodes
        and name not in given_up
        and (until := away_until(s, node)) is not None
        and s.now < until
    }


def _place_claims(s: Snapshot, *, count: int) -> tuple[list[_Row], list[Claim]]:
    """Every claim in its own slot, those with other names in slots that are left, and what is too many."""
    rows = [_Row(number) for number in range(count)]
    numbers = claims.slots_by_name(s.workspace, count=count) if s.claims else {}
    others = []
    for claim in sorted(s.claims, key=lambda c: (c.deleting, c.name)):
        number = numbers.get(claim.name)
        if number is not None and rows[number].claim is None:
            rows[number].claim = claim
        else:
            others.append(claim)
    left = iter([row for row in rows if row.claim is None])
    extra = []
    for claim in others:
        if (row := next(left, None)) is not None:
            row.claim = claim
        else:
            extra.append(claim)
    return rows, extra


def _place_nodes(s: Snapshot, rows: Sequence[_Row], chosen: Iterable[Obj]) -> None:
    left = {nodes.name_of(node): node for node in chosen}
    for row in rows:
        if row.claim is not None and row.claim.node_name in left:
            row.node = left.pop(row.claim.node_name)
    named = {claim.node_name for claim in s.claims}
    # A bought node carries our labels before its provisioner holds it; until a claim names it, it is not there yet.
    joining = [node for name, node in left.items() if nodes.is_bought(node) and name not in named]
    for row in rows:
        if joining and row.node is None and row.claim is not None and not row.claim.deleting:
            row.node = left.pop(nodes.name_of(joining.pop(0)))
    free = iter(sorted((row for row in rows if row.node is None), key=lambda row: (_worth(s, row.claim), -row.number)))
    for node in left.values():
        row = next(free)
        row.node, row.displaced, row.claim = node, row.claim, None


def _worth(s: Snapshot, claim: Claim | None) -> int:
    """How much is lost when the claim is needed no more."""
    if claim is None or claim.deleting:
        return 0 if claim is None else 1
    return 2 if _may_go(s, claim, in_use=()) else 3


def _may_go(s: Snapshot, claim: Claim, *, in_use: Iterable[str]) -> bool:
    """Whether the claim may be given back if no slot needs it: not if its node serves, or is repaired."""
    if claim.deleting or claim.node_name in in_use:
        return False
    if not claim.node_name:
        return True
    if any(nodes.of_pod(pod) == claim.node_name for pod in s.pods):
        return False
    node = find_node(s, claim.node_name)
    return node is not None and nodes.is_ready(node)
