"""The end of a Workspace: workloads first, then claims; our finalizer goes when nothing bills any more.

And of workloads alone, when their node is another Workspace's.
"""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children.upkeep import is_owned, remove
from kaito_hooks.workspace.decision.actions import Action, Delete, Note, Release
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.supply.placement import WITH_PODS

WITHDRAWN = "the workload is taken away until the Workspace has its nodes"


def withdraw(s: Snapshot) -> list[Action]:
    """Deletes the workloads of the Workspace, and its tuning Job; nothing else."""
    return [
        Delete(kind, s.workspace.namespace, s.workspace.name, child["metadata"]["uid"])
        for kind in WITH_PODS
        if (child := s.children.get(f"{kind}/{s.workspace.name}")) is not None
        and is_owned(child, s.workspace.uid)
        and not child["metadata"].get("deletionTimestamp")
    ]


def dismantle(s: Snapshot) -> tuple[list[Action], list[Note], str]:
    """Actions, Events, and what the deletion waits for ("" when it is over).

    A workload that outlived its node would have its Pod recreated elsewhere; so workloads go before claims.
    """
    ws = s.workspace
    if labels.WORKSPACE_FINALIZER not in ws.finalizers:
        return [], [], ""
    actions = [*withdraw(s), *remove(checks(s))]
    doomed = [claim for claim in s.claims if not claim.deleting]
    actions += [Delete(claim.kind, "", claim.name, claim.uid) for claim in doomed]
    notes = [Note("Normal", f"Deleted{claim.kind}", f"deleted {claim.kind} {claim.name}") for claim in doomed]
    if s.claims:
        return actions, notes, ", ".join(sorted(map(_awaited, s.claims)))
    if not s.claims_gone:
        return actions, notes, "the list of its claims"
    return [*actions, Release()], notes, ""


def checks(s: Snapshot) -> list[Obj]:
    """The Workspace's Jobs that check a tuning; they are on nobody's node in particular."""
    return [job for job in s.check_jobs if is_owned(job, s.workspace.uid)]


def _awaited(claim: Claim) -> str:
    ending = claim.ending()
    return f"{claim.kind} {claim.name} ({ending})" if ending else f"{claim.kind} {claim.name}"
