"""Claims that a Workspace holds although nothing of it runs: kept for a pause, then given back.

As Karpenter's ``consolidateAfter``: what is mended within the pause buys nothing twice, and what is not mended does not
bill for ever. Since when nothing runs is ``status.idleSince``, so that a controller that restarts goes on counting; one
whose Workspaces are stored by a definition without that field goes on until it restarts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from kaito_hooks.api.claim import Claim
from kaito_hooks.api.conditions import find
from kaito_hooks.api.pods import has_ended
from kaito_hooks.runtime import Obj, format_duration, format_time, parse_time
from kaito_hooks.workspace.children.upkeep import is_owned, reference
from kaito_hooks.workspace.children.workload import is_over
from kaito_hooks.workspace.decision.actions import Delete, Note, Outcome
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.status import pods
from kaito_hooks.workspace.supply import nodes
from kaito_hooks.workspace.supply.placement import WITH_PODS

FIELD = "idleSince"
"""Of the status."""
NOTHING_RAN = "nothing is made that could run there"


@dataclass(frozen=True, slots=True)
class Idle:
    """``since``: when nothing ran any more. ``resource``: what ResourceReady says. ``look_at``: when claims go."""

    since: datetime
    resource: Outcome
    actions: tuple[Delete, ...] = ()
    notes: tuple[Note, ...] = ()
    look_at: datetime | None = None


def judge(s: Snapshot, resource: Outcome, *, why: str, going: Iterable[Delete] = ()) -> Idle | None:
    """What becomes of the claims of a Workspace that buys no node at the moment; None where something runs on them, or
    may at any time, and where there are none; those that were given back count until something is made again.

    ``why``: no node is bought. ``going``: deletions that are decided already.
    """
    released = {action.uid for action in going}
    spare = [claim for claim in s.claims if not claim.deleting and claim.uid not in released]
    if works(s) or not (spare or (s.settings.node_api != "none" and without_pods(s))):
        return None
    # What was made within the pause begins another; its clock is the API server's, and may go ahead of ours.
    since = max([_since(s) or s.now.replace(microsecond=0), *_made(s)])
    if not spare:
        return Idle(since, Outcome("waiting", why) if resource.state == "waiting" else resource)
    until = since + timedelta(seconds=s.settings.timeouts.node_idle)
    if s.now < until:
        return Idle(since, _told(resource, spare, until, why=why), look_at=until)
    pause = format_duration(s.settings.timeouts.node_idle)
    return Idle(
        since,
        Outcome("waiting", why) if resource.ready else resource,
        tuple(Delete(claim.kind, "", claim.name, claim.uid) for claim in spare),
        tuple(
            Note(
                "Normal",
                f"Deleted{claim.kind}",
                f"deleted {claim.kind} {claim.name}: nothing has run on its node for {pause}",
            )
            for claim in spare
        ),
    )


def works(s: Snapshot) -> bool:
    """Whether a Pod of the Workspace is on a node, or what makes its Pods is there and may make one."""
    return any(map(nodes.of_pod, s.pods)) or any(not _hindrance(s, child) for child in _making(s))


def without_pods(s: Snapshot) -> str:
    """Why no node is bought for a workload, or a Job, that makes no Pods or cannot be made itself; "" if there is none.

    It makes them without a node, too: a Pod that waits for one ends this. Till then it takes nobody else's node: taking
    it away instead would buy one again and again.
    """
    told = [f"{reference(child)} {why}" for child in _making(s) if (why := _hindrance(s, child))]
    if (why := unmade(s) or (NOTHING_RAN if _gave_back(s) else "")) != "":
        told.append(why)
    return f"no node is bought while {told[0]}" if told and not works(s) else ""


def unmade(s: Snapshot) -> str:
    """Why the workload or Job that is not there is made before its node is bought: the API server has refused it, or
    nothing has run on the nodes of before until they were given back, so that it is tried first. "" if there is none.
    """
    if _making(s):
        return ""
    names = (f"{kind}/{s.workspace.name}" for kind in WITH_PODS)
    if (refused := next((name for name in names if name in s.memory.refusals), "")) != "":
        return f"{refused} cannot be made"
    # What is made while a node is on its way out could still go there.
    return NOTHING_RAN if _gave_back(s) and not s.claims else ""


def _gave_back(s: Snapshot) -> bool:
    """Whether the nodes of before are given back, because nothing ran there, and nothing that makes Pods is there."""
    idle = s.settings.node_api != "none" and _since(s) is not None
    return idle and not _making(s) and all(claim.deleting for claim in s.claims)


def _since(s: Snapshot) -> datetime | None:
    stamp = (s.workspace.raw.get("status") or {}).get(FIELD)
    since = parse_time(stamp) if stamp else s.memory.idle_since
    # Another replica's clock may go ahead.
    return min(since, s.now.replace(microsecond=0)) if since is not None else None


def _made(s: Snapshot) -> list[datetime]:
    """When what makes Pods was made."""
    stamps = (child["metadata"].get("creationTimestamp") for child in _making(s))
    return [parse_time(stamp) for stamp in stamps if stamp]


def _told(resource: Outcome, spare: Iterable[Claim], until: datetime, *, why: str) -> Outcome:
    claims = ", ".join(f"{claim.kind} {claim.name}" for claim in spare)
    what = f"{claims} is given back at {format_time(until)} if nothing runs there by then"
    if resource.ready:
        return Outcome("ready", f"workspace resource is ready, and nothing runs on it: {why}; {what}")
    return Outcome(resource.state, f"{resource.message}; {what}")


def _making(s: Snapshot) -> list[Obj]:
    """Our workload and our Job, unless it is over."""
    named = (s.children.get(f"{kind}/{s.workspace.name}") for kind in WITH_PODS)
    ours = [child for child in named if child is not None and is_owned(child, s.workspace.uid)]
    return [child for child in ours if child["kind"] != "Job" or not is_over(child)]


def _hindrance(s: Snapshot, child: Obj) -> str:
    """Why the child, which has no Pod, makes none; "" if it may. Where Events alone say that the API server refuses
    them, and get old, that holds until there is a Pod. Scaled to zero it has its nodes kept, and lost ones not bought
    again."""
    if any(pods.owned_by_job(pod) == (child["kind"] == "Job") and not has_ended(pod) for pod in s.pods):
        return ""
    spec, was_idle = child.get("spec") or {}, _was_idle(s, child)
    if spec.get("suspend"):
        return "is suspended"
    if spec.get("replicas") == 0:
        return "is scaled to zero" if was_idle and all(claim.deleting for claim in s.claims) else ""
    failure = find((child.get("status") or {}).get("conditions"), "ReplicaFailure") or {}
    said = failure.get("status") == "True" or str(child["metadata"].get("uid", "")) in s.pod_refusals
    return "cannot create its Pods" if said or (was_idle and child["kind"] != "Deployment") else ""


def _was_idle(s: Snapshot, child: Obj) -> bool:
    """Whether nothing runs since before now, and the child was there then."""
    since, created = _since(s), child["metadata"].get("creationTimestamp")
    return since is not None and (not created or parse_time(created) <= since)
