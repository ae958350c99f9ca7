"""What a tuning Workspace needs now, as its phases put it together, and what several phases do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children import network, service, upkeep, workload
from kaito_hooks.workspace.decision.actions import Action, Delete, Note, Outcome
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.status import conditions
from kaito_hooks.workspace.status.conditions import Verdict
from kaito_hooks.workspace.supply import placement
from kaito_hooks.workspace.supply.decide import Supply


@dataclass(slots=True)
class Tuning:
    """What to do and where each concern stands; None: not reached. ``fields``: of the status, besides conditions;
    ``status``: ``status.tuning`` from here on.

    ``completion``: what the summary says of a job that has started, until it has ended. ``given_back``: no node is
    needed any more. ``unneeded``: why none is bought at the moment. ``serves``: whether the children of a server are
    among what is kept.
    """

    resource: Outcome
    supplied: Supply | None = None
    job: Outcome | None = None
    completion: Outcome | None = None
    served: Outcome | None = None
    unserved: Outcome | None = None
    up_to_date: Verdict | None = None
    given_back: bool = False
    unneeded: str = ""
    serves: bool = False
    actions: list[Action] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    look_at: list[datetime] = field(default_factory=list)


def begin(s: Snapshot, outcome: Outcome, supplied: Supply | None = None) -> Tuning:
    """A decision that changes nothing of ``status.tuning`` yet."""
    return Tuning(outcome, supplied, status=dict((s.workspace.raw.get("status") or {}).get("tuning") or {}))


def surroundings(s: Snapshot) -> list[Obj]:
    """The Service, and a NetworkPolicy that lets this cluster's Pods alone, us and Prometheus, see the progress."""
    ws = s.workspace
    found = [service.service(ws, metadata=workload.metadata(ws), distributed=False)]
    if s.settings.network_policy:
        found.append(
            network.network_policy(ws, metadata=workload.metadata(ws), distributed=False, in_cluster_only=True)
        )
    return found


def keep(s: Snapshot, found: Tuning, wanted: Sequence[Obj]) -> Outcome | None:
    """Create or repair these children; the worst that is to be said of them."""
    kept = upkeep.keep_all(s, wanted, beside=[f"{kind}/{s.workspace.name}" for kind in placement.WITH_PODS])
    found.notes += kept.notes
    found.actions += kept.actions
    return kept.problem


def deletion(s: Snapshot, kind: str) -> list[Delete]:
    """The deletion of our child of that kind, if it is there; it is gone when its Pods are."""
    live = s.children.get(f"{kind}/{s.workspace.name}")
    if live is None or not upkeep.is_owned(live, s.workspace.uid) or live["metadata"].get("deletionTimestamp"):
        return []
    metadata = live["metadata"]
    return [Delete(kind, metadata["namespace"], metadata["name"], metadata["uid"], foreground=True)]


def release(s: Snapshot, found: Tuning, why: str) -> None:
    """The nodes that were bought are given back."""
    doomed = [claim for claim in s.claims if not claim.deleting]
    found.actions += [Delete(claim.kind, "", claim.name, claim.uid) for claim in doomed]
    found.notes += [Note("Normal", f"Deleted{c.kind}", f"deleted {c.kind} {c.name}: {why}") for c in doomed]


def explain_server(
    s: Snapshot, found: Tuning, why: str = "the tuned model is served when the tuning job has ended"
) -> None:
    """InferenceReady, if an earlier revision was served."""
    if s.workspace.condition(conditions.INFERENCE_READY) is not None:
        found.unserved = Outcome("waiting", why)


def moments(supplied: Supply) -> list[datetime]:
    """When the nodes have to be looked at again."""
    return [supplied.look_at] if supplied.look_at is not None else []
