"""Which phase a tuning Workspace is in: decided first, from what is recorded and what is there, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from kaito_hooks.api import labels
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children import inference, upkeep
from kaito_hooks.workspace.children.workload import is_over
from kaito_hooks.workspace.decision.revision import Revision, tuning_hash_of
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.supply import placement
from kaito_hooks.workspace.tuning import check, config, gate
from kaito_hooks.workspace.tuning.check import Check
from kaito_hooks.workspace.tuning.check_job import job_spec
from kaito_hooks.workspace.tuning.state import Record, revision_of


class Phase(Enum):
    """From the wish to the served adapter. The first three have a record of this revision's job, the others none.

    In the next four no node is bought for what is to be tuned, and what an earlier revision left stays: its adapter
    goes on being served.
    """

    FAILED = "the job will not be tried again"
    DONE = "the job has ended, and nothing is served"
    SERVING = "the job has ended, and its adapter is served"
    MISCONFIGURED = "the configuration is wrong"
    OCCUPIED = "somebody else's Job has the name"
    CHECKING = "a Job without GPU looks at what can be known before a node is bought"
    REFUSED = "that check has refused this revision with these inputs"
    REMOVING_SERVER = "the server of an earlier result makes room"
    RUNNING = "the job is there"
    REMOVING_JOB = "the job of an earlier revision, or one that was made for other nodes, makes room"
    STARTING = "the job is made as soon as there is a node"


BEFORE_THE_NODE = (Phase.MISCONFIGURED, Phase.OCCUPIED, Phase.CHECKING, Phase.REFUSED)


@dataclass(frozen=True, slots=True)
class Situation:
    """``wanted``: the revision that is to be tuned. ``record``: of the last job that ended. ``job``: under our name,
    whoever's. ``current``: whether it tunes what is wanted. ``checked``: the configuration of a job to be made, and
    ``inputs`` what its check is made for. ``check``: of the last check that ended. ``serves_earlier``: whether the
    adapter of ``record``, an earlier revision's, goes on being served in a phase in which nothing is bought.
    """

    phase: Phase
    wanted: str
    record: Record | None = None
    job: Obj | None = None
    current: bool = False
    checked: config.Checked = field(default_factory=config.Checked)
    inputs: str = ""
    check: Check | None = None
    serves_earlier: bool = False


def read(s: Snapshot, revision: Revision) -> Situation:
    """The situation of a tuning Workspace."""
    assert s.workspace.tuning is not None
    wanted, record, job = revision_of(s.workspace, revision, s.revisions), Record.read(s.workspace), _job(s)
    current = _is_current(s, job, wanted)
    last = Check.read(s.workspace)
    if record is not None and record.revision == wanted:
        ended = Phase.SERVING if gate.is_served(s.workspace, record) else Phase.DONE
        return Situation(ended if record.succeeded else Phase.FAILED, wanted, record, job, current, check=last)
    if current:
        phase = Phase.RUNNING if inference.live_workload(s) is None else Phase.REMOVING_SERVER
        return Situation(phase, wanted, record, job, current, check=last)
    checked = config.check(s.workspace, s.tuning_config, release_namespace=s.settings.release_namespace)
    preset = inference.preset_of(s)
    asked = job_spec(s.workspace, preset=preset, settings=s.settings) if preset is not None else {}
    inputs = check.inputs_of(s.workspace, checked.text, job=asked)
    if checked.problems:
        phase = Phase.MISCONFIGURED
    elif job is not None and not upkeep.is_owned(job, s.workspace.uid):
        phase = Phase.OCCUPIED
    else:
        phase = _of_check(s, last, (wanted, inputs)) or _before_job(s, job)
    serves_earlier = phase in BEFORE_THE_NODE and _serves_earlier(s, record, job)
    return Situation(phase, wanted, record, job, current, checked, inputs, last, serves_earlier)


def _serves_earlier(s: Snapshot, record: Record | None, job: Obj | None) -> bool:
    """Whether an earlier result is still to be served: it was, as the server or its record shows, and no Job of ours
    holds the node."""
    if record is None or not gate.is_served(s.workspace, record):
        return False
    return (record.served or inference.live_workload(s) is not None) and not _works(s, record, job)


def _works(s: Snapshot, record: Record, job: Obj | None) -> bool:
    """Whether a Job of ours goes on whose end is not the record."""
    if job is None or not upkeep.is_owned(job, s.workspace.uid) or is_over(job):
        return False
    return (job["metadata"].get("annotations") or {}).get(labels.REVISION) != record.revision


def _of_check(s: Snapshot, last: Check | None, wanted: tuple[str, str]) -> Phase | None:
    """None: it has passed, or is not made."""
    if not check.is_wanted(s):
        return None
    if last is None or not last.holds_for(*wanted):
        return Phase.CHECKING
    return Phase.REFUSED if last.result == "Refused" else None


def _before_job(s: Snapshot, job: Obj | None) -> Phase:
    if inference.live_workload(s) is not None:
        return Phase.REMOVING_SERVER
    return Phase.STARTING if job is None else Phase.REMOVING_JOB


def needs_config(s: Snapshot, revision: Revision) -> bool:
    """Whether a Job is still to be made, so that its ConfigMap must be looked at."""
    wanted = revision_of(s.workspace, revision, s.revisions)
    return not _has_ended(s, wanted) and not _is_current(s, _job(s), wanted)


def goes_by_itself(s: Snapshot, revision: Revision) -> bool:
    """Whether this revision's job runs, or has ended and nothing runs after it: rules about a start matter no more."""
    if s.workspace.tuning is None:
        return False
    wanted, record = revision_of(s.workspace, revision, s.revisions), Record.read(s.workspace)
    if record is None or not _has_ended(s, wanted):
        return _is_current(s, _job(s), wanted)
    return not gate.is_served(s.workspace, record)


def has_succeeded(s: Snapshot, revision: Revision) -> bool:
    """Whether this revision's adapter is there."""
    record = Record.read(s.workspace) if s.workspace.tuning is not None else None
    return record is not None and record.succeeded and _has_ended(s, revision_of(s.workspace, revision, s.revisions))


def _has_ended(s: Snapshot, wanted: str) -> bool:
    record = Record.read(s.workspace)
    return record is not None and record.revision == wanted


def _job(s: Snapshot) -> Obj | None:
    return s.children.get(f"Job/{s.workspace.name}")


def _is_current(s: Snapshot, job: Obj | None, wanted: str) -> bool:
    """Whether the Job is ours, stays, tunes what is wanted now, and has ended or can go on where the Workspace is."""
    if job is None or not upkeep.is_owned(job, s.workspace.uid) or job["metadata"].get("deletionTimestamp"):
        return False
    annotations = job["metadata"].get("annotations") or {}
    return bool(
        annotations.get(labels.TUNING_HASH) == tuning_hash_of(s.workspace.raw)
        and annotations.get(labels.REVISION) == wanted
        and (is_over(job) or not placement.is_stranded(s, job))
    )
