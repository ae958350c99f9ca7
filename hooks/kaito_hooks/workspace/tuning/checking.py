"""What comes before a node is bought: the configuration is right, and a Job without GPU has looked at the data."""

from __future__ import annotations

from datetime import timedelta

from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children import inference, upkeep
from kaito_hooks.workspace.decision.actions import CopyConfigMap, Note, Outcome
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.rules import validate
from kaito_hooks.workspace.tuning import check, report
from kaito_hooks.workspace.tuning.check import Check
from kaito_hooks.workspace.tuning.check_job import check_job
from kaito_hooks.workspace.tuning.phase import Phase, Situation
from kaito_hooks.workspace.tuning.wanted import Tuning, keep, surroundings

CONFIG_PERIOD = 10.0
"""Seconds between two looks at a ConfigMap that is wrong, say: no event tells when it is put right."""
NOTHING_BOUGHT = {
    Phase.MISCONFIGURED: "no node is bought before the tuning configuration is right",
    Phase.OCCUPIED: "no node is bought for a job that cannot be made",
    Phase.CHECKING: "no node is bought before the data have been checked",
    Phase.REFUSED: "no node is bought for what the check has refused",
}
"""Why, by phase."""


def look_before(s: Snapshot, found: Tuning, at: Situation) -> None:
    """What comes before a node is bought; what nobody tells that it was put right is looked at again."""
    if at.phase is Phase.CHECKING:
        _check(s, found, at)
        return
    found.look_at.append(s.now + timedelta(seconds=CONFIG_PERIOD))
    if at.phase is Phase.MISCONFIGURED:
        found.job, found.fields["progress"] = Outcome("failed", validate.told(at.checked.problems)), ""
    elif at.phase is Phase.OCCUPIED:
        assert at.job is not None
        found.job, found.fields["progress"] = _in_the_way(s, at.job), ""
    else:
        assert at.check is not None
        found.job, found.fields["progress"] = Outcome("failed", at.check.message), "refused"


def _check(s: Snapshot, found: Tuning, at: Situation) -> None:
    """A Job without GPU; what it found is recorded, and nothing else is done until it is."""
    found.fields["progress"] = "checking the data"
    if at.checked.copy is not None:
        found.actions.append(CopyConfigMap(at.checked.copy))
    name = check.job_name(s.workspace.name, at.wanted)
    live = next((job for job in s.check_jobs if job["metadata"]["name"] == name), None)
    if live is None:
        _start_check(s, found, at)
    elif not upkeep.is_owned(live, s.workspace.uid):
        found.job = _in_the_way(s, live)
    elif live["metadata"].get("deletionTimestamp") or check.made_for(live) != (at.wanted, at.inputs):
        found.job = Outcome("waiting", "the check before this one is being removed")
    else:
        seen = check.look(s, live)
        found.job = seen.outcome
        if seen.look_at is not None:
            found.look_at.append(seen.look_at)
        if seen.again:
            found.actions += upkeep.remove([live])
        elif seen.ended is not None and check.config_of(live) not in ("", _config_version(s)):
            # It may have read what was there in between.
            found.actions += upkeep.remove([live])
            found.job = Outcome("waiting", "the check is made again, as its ConfigMap was changed meanwhile")
        elif seen.ended is not None:
            _record_check(found, seen.ended)


def _in_the_way(s: Snapshot, job: Obj) -> Outcome:
    """What is said of somebody else's Job: that of a Workspace that had the name before goes by itself."""
    if job["metadata"].get("deletionTimestamp"):
        return Outcome("waiting", f"{upkeep.reference(job)} of somebody else is being deleted; ours comes then")
    return Outcome("failed", upkeep.foreign(job, s.workspace))


def _config_version(s: Snapshot) -> str:
    """The resourceVersion of the ConfigMap; "" before it is copied."""
    found = s.tuning_config.found if s.tuning_config is not None else None
    return str((found or {}).get("metadata", {}).get("resourceVersion") or "")


def _start_check(s: Snapshot, found: Tuning, at: Situation) -> None:
    if not found.serves and inference.live_workload(s) is None:
        # Otherwise what lets the server reach its registries is there.
        found.job = keep(s, found, surroundings(s))
        if found.job is not None and found.job.state == "failed":
            return
    preset = inference.preset_of(s)
    assert preset is not None
    wanted = check_job(
        s.workspace,
        preset=preset,
        revision=at.wanted,
        inputs=at.inputs,
        config_version=_config_version(s),
        settings=s.settings,
    )
    action, problem = upkeep.keep(s, wanted)
    found.job = problem
    if action is not None:
        found.actions.append(action)
        text = f"created {upkeep.reference(wanted)}, which looks at the data before a node is bought"
        found.notes.append(Note("Normal", "Created", text))


def _record_check(found: Tuning, ended: Check) -> None:
    found.status["check"] = ended.write()
    match ended.result:
        case "Passed":
            summary = report.summary(ended.report)
            text = f"the data have been checked: {summary}" if summary else "the data have been checked"
            found.notes.append(Note("Normal", "TuningChecked", text, alone=True))
        case "Skipped":
            found.notes.append(Note("Warning", "TuningCheckSkipped", ended.message))
        case "Refused":
            # The Event is that of the condition.
            found.fields["progress"] = "refused"
