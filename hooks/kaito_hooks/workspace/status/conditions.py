"""The status of a Workspace: conditions with upstream's types, reasons and messages, and what changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_hooks.api import labels
from kaito_hooks.api.conditions import Condition, Status, set_condition
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.decision.actions import Note, Outcome
from kaito_hooks.workspace.supply.decide import ClaimProgress

RESOURCE_READY = "ResourceReady"
INFERENCE_READY = "InferenceReady"
JOB_STARTED = "JobStarted"
WORKSPACE_READY = "WorkspaceReady"
WORKSPACE_SUCCEEDED = "WorkspaceSucceeded"
WORKSPACE_DELETING = "WorkspaceDeleting"

CLAIMS_READY = {"Machine": "MachineReady", "NodeClaim": "NodeClaimReady"}
"""By the kind of the claims."""

WORKLOAD_UP_TO_DATE = "WorkloadUpToDate"

READY = "workspaceReady"
JOB_HAS_STARTED = "WorkspaceTuningJobStatusStarted"
INTERNAL_ERROR = "InternalError"
UP_TO_DATE = "UpToDate"
PLATFORM_CHANGED = "PlatformChanged"
ROLLING = "Rolling"
CANNOT_ROLL = "CannotRoll"
UPDATE_REFUSED = "UpdateRefused"
NO_WORKLOAD = "NoWorkload"

NOT_UP_TO_DATE = f"the workload is not up to date ({WORKLOAD_UP_TO_DATE} tells how to roll it)"

_COMPARED = ("status", "reason", "message", "observedGeneration")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition without its bookkeeping."""

    type: str
    status: Status
    reason: str
    message: str


def claims_ready(progress: ClaimProgress, claim_kind: str) -> Verdict:
    """MachineReady or NodeClaimReady."""
    machine, condition = claim_kind == "Machine", CLAIMS_READY[claim_kind]
    kind = "machine" if machine else "nodeClaim"
    if progress.state == "ready":
        what = "machines" if machine else "nodeClaim"  # upstream's plurals differ
        return Verdict(
            condition, "True", "installNodePluginsSuccess", f"{what} plugins have been installed successfully"
        )
    if progress.state == "creation failed":
        return Verdict(condition, "False", f"{kind}FailedCreation", progress.message)
    if progress.state == "status failed":
        reason = "checkMachineStatusFailed" if machine else "checkNodeClaimStatusFailed"
        return Verdict(condition, "False", reason, progress.message)
    reason = "CreateMachinePending" if machine else "CreateNodeClaimPending"
    return Verdict(condition, "Unknown", reason, progress.message)


def no_claims(claim_kind: str, going: Iterable[str]) -> Verdict:
    """MachineReady or NodeClaimReady where none is asked for; ``going``: names of those that are being deleted."""
    names = ", ".join(going)
    text = f"{names} is being given back" if names else f"there is no {claim_kind}"
    reason = f"No{claim_kind}"
    return Verdict(CLAIMS_READY[claim_kind], "False", reason, f"{text}, and none is asked for at the moment")


def resource_ready(outcome: Outcome) -> Verdict:
    """ResourceReady."""
    return _verdict(
        RESOURCE_READY,
        outcome,
        reasons=("workspaceResourceStatusSuccess", "workspaceResourceStatusPending", "workspaceResourceStatusFailed"),
        done="workspace resource is ready",
    )


def inference_ready(outcome: Outcome) -> Verdict:
    """InferenceReady."""
    return _verdict(
        INFERENCE_READY,
        outcome,
        reasons=(
            "WorkspaceInferenceStatusSuccess",
            "WorkspaceInferenceStatusPending",
            "WorkspaceInferenceStatusFailed",
        ),
        done="Inference has been deployed successfully",
    )


def job_started(outcome: Outcome) -> Verdict:
    """JobStarted."""
    return _verdict(
        JOB_STARTED,
        outcome,
        reasons=(
            JOB_HAS_STARTED,
            "WorkspaceTuningJobStatusPending",
            "WorkspaceTuningJobStatusFailed",
        ),
        done="Tuning job has started",
    )


def up_to_date() -> Verdict:
    """WorkloadUpToDate of a workload that is what its Workspace and today's settings make of it."""
    return Verdict(WORKLOAD_UP_TO_DATE, "True", UP_TO_DATE, "the workload is what its Workspace and the settings say")


def drifted(drift: str, *, broken: str, upgrade: str) -> Verdict:
    """WorkloadUpToDate of a workload that is left as it was made. ``broken``: rules that today's would break."""
    message = f"the settings of the platform have changed since the workload was made, which is left as it is: {drift}"
    if broken:
        return Verdict(WORKLOAD_UP_TO_DATE, "False", CANNOT_ROLL, f"{message}; it is not rolled by itself: {broken}")
    how = f"annotate the Workspace with another value of {labels.ROLL} to roll it"
    if upgrade == "rolling":
        how = f"it is rolled when its turn comes; {how} at once"
    return Verdict(WORKLOAD_UP_TO_DATE, "False", PLATFORM_CHANGED, f"{message}; {how}")


def rolling() -> Verdict:
    """WorkloadUpToDate of a workload that was left as it was made, and is made anew."""
    message = "the workload is made of today's settings, and its Pods are not ready yet"
    return Verdict(WORKLOAD_UP_TO_DATE, "True", ROLLING, message)


def cannot_roll(problem: str) -> Verdict:
    """WorkloadUpToDate of a workload that is not up to date, and whose Workspace has a problem that leaves it so."""
    return Verdict(WORKLOAD_UP_TO_DATE, "False", CANNOT_ROLL, f"it is not rolled: {problem}")


def not_updated(message: str) -> Verdict:
    """WorkloadUpToDate of a workload that the API server refuses to change."""
    return Verdict(WORKLOAD_UP_TO_DATE, "False", UPDATE_REFUSED, message)


def no_workload() -> Verdict:
    """WorkloadUpToDate where none is."""
    return Verdict(WORKLOAD_UP_TO_DATE, "Unknown", NO_WORKLOAD, "there is no workload")


def summary(outcomes: Iterable[Outcome]) -> list[Verdict]:
    """WorkspaceReady and, under upstream's older name, WorkspaceSucceeded: the first thing that is not done."""
    open_ones = [outcome for outcome in outcomes if not outcome.ready]
    worst = next((o for o in open_ones if o.state == "failed"), open_ones[0] if open_ones else None)
    if worst is None:
        return [
            Verdict(WORKSPACE_READY, "True", READY, "workspace is ready"),
            Verdict(WORKSPACE_SUCCEEDED, "True", "workspaceSucceeded", "workspace succeeds"),
        ]
    reason = "workspaceFailed" if worst.state == "failed" else "workspacePending"
    return [Verdict(name, "False", reason, worst.message) for name in (WORKSPACE_READY, WORKSPACE_SUCCEEDED)]


def deleting(waiting_for: str) -> list[Verdict]:
    """WorkspaceDeleting, and in the summary what the deletion waits for."""
    message = f"workspace is being deleted, waiting for {waiting_for}" if waiting_for else "workspace is being deleted"
    return [
        Verdict(WORKSPACE_DELETING, "True", "workspaceDeleted", "workspace is being deleted"),
        *(Verdict(name, "False", "workspacePending", message) for name in (WORKSPACE_READY, WORKSPACE_SUCCEEDED)),
    ]


def unforeseen(error: Exception) -> list[Verdict]:
    """The summary of a Workspace whose reconcile raised an error that nobody foresaw."""
    message = (
        f"the controller failed with {type(error).__name__} and tries again; "
        "this is a fault of the controller, whose log tells where"
    )
    return [Verdict(name, "False", INTERNAL_ERROR, message) for name in (WORKSPACE_READY, WORKSPACE_SUCCEEDED)]


def of_unread(obj: Mapping[str, Any], verdicts: Iterable[Verdict], *, now: str) -> dict[str, Any] | None:
    """As ``write``, of a Workspace whose specification perhaps cannot be read."""
    readable = {part: obj[part] for part in ("metadata", "status") if part in obj}
    return write(Workspace.read(readable), verdicts, worker_nodes=None, now=now)


def write(
    workspace: Workspace,
    verdicts: Iterable[Verdict],
    *,
    worker_nodes: Iterable[str] | None,
    now: str,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The whole new status, or None if it says nothing new.

    ``worker_nodes`` None: leave them as they are. ``fields``: other fields of the status, empty ones are removed.
    """
    before = workspace.raw.get("status") or {}
    conditions: list[Condition] = [dict(c) for c in workspace.conditions]
    for verdict in verdicts:
        conditions = set_condition(
            conditions,
            type=verdict.type,
            status=verdict.status,
            reason=verdict.reason,
            message=verdict.message,
            generation=workspace.generation,
            now=now,
        )
    after: dict[str, Any] = {**before, "conditions": conditions}
    if worker_nodes is not None:
        after["workerNodes"] = sorted(worker_nodes)
    for key, value in (fields or {}).items():
        after.pop(key, None)
        if value:
            after[key] = value
    same_nodes = list(before.get("workerNodes") or ()) == list(after.get("workerNodes") or ())
    same_fields = all(before.get(key) == after.get(key) for key in fields or ())
    if same_nodes and same_fields and _comparable(workspace.conditions) == _comparable(conditions):
        return None
    return after


def notes(workspace: Workspace, verdicts: Iterable[Verdict]) -> list[Note]:
    """An Event for each step that is done, that failed, with each new cause, or that is no longer done."""
    found = []
    for verdict in verdicts:
        before = next((c for c in workspace.conditions if c.get("type") == verdict.type), {})
        if verdict.type in (WORKSPACE_SUCCEEDED, *CLAIMS_READY.values()):
            continue
        if verdict.type == WORKSPACE_READY and verdict.status != "True":
            continue
        if verdict.type == WORKLOAD_UP_TO_DATE and verdict.status != "False":
            continue
        failed = verdict.reason.lower().endswith("failed")
        changed = (before.get("status"), before.get("reason")) != (verdict.status, verdict.reason)
        if verdict.status != "True" and not failed and before.get("status") != "True":
            continue
        if changed or (failed and before.get("message") != verdict.message):
            found.append(Note("Warning" if failed else "Normal", verdict.reason, verdict.message))
    return found


def told_together(notes: Iterable[Note]) -> list[Note]:
    """One Event for the good news of one moment, under the last one's reason; what is told alone, and each warning, for
    itself."""
    notes = list(notes)
    good = [note for note in notes if note.type == "Normal" and not note.alone]
    joined = [Note("Normal", good[-1].reason, "; ".join(note.message for note in good))] if good else []
    alone = [note for note in notes if note.type == "Normal" and note.alone]
    return [*joined, *alone, *(note for note in notes if note.type == "Warning")]


def _verdict(condition: str, outcome: Outcome, *, reasons: tuple[str, str, str], done: str) -> Verdict:
    ready, waiting, failed = reasons
    if outcome.ready:
        return Verdict(condition, "True", ready, outcome.message or done)
    return Verdict(condition, "False", failed if outcome.state == "failed" else waiting, outcome.message)


def _comparable(conditions: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    return [(c.get("type"), *(c.get(key) for key in _COMPARED)) for c in conditions]
