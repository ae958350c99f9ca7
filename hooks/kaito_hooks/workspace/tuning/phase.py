"""Which phase a tuning Workspace is in: decided first, from what is recorded and what is there, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from kaito_hooks.api import labels
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children import inference
from kaito_hooks.workspace.children import upkeep as children
from kaito_hooks.workspace.decision.revision import Revision, tuning_hash_of
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.tuning import config
from kaito_hooks.workspace.tuning.state import Record, revision_of


class Phase(Enum):
    """From the wish to the served adapter. The first three have a record of this revision's job, the others none."""

    FAILED = "the job will not be tried again"
    DONE = "the job has ended, and nothing is served"
    SERVING = "the job has ended, and its adapter is served"
    MISCONFIGURED = "the configuration is wrong, and what an earlier revision left stays until it is right"
    REMOVING_SERVER = "the server of an earlier result makes room"
    RUNNING = "the job is there"
    OCCUPIED = "somebody else's Job has the name"
    REMOVING_JOB = "the job of an earlier revision makes room"
    STARTING = "the job is made as soon as there is a node"


@dataclass(frozen=True, slots=True)
class Situation:
    """``wanted``: the revision that is to be tuned. ``record``: of the last job that ended. ``job``: under our name,
    whoever's. ``current``: whether it tunes what is wanted. ``checked``: the configuration of a job to be made.
    """

    phase: Phase
    wanted: str
    record: Record | None = None
    job: Obj | None = None
    current: bool = False
    checked: config.Checked = field(default_factory=config.Checked)


def read(s: Snapshot, revision: Revision) -> Situation:
    """The situation of a tuning Workspace."""
    assert s.workspace.tuning is not None
    wanted, record, job = revision_of(s.workspace, revision, s.revisions), Record.read(s.workspace), _job(s)
    current = _is_current(s, job, wanted)
    if record is not None and record.revision == wanted:
        ended = Phase.SERVING if s.workspace.tuning.serve_result else Phase.DONE
        return Situation(ended if record.succeeded else Phase.FAILED, wanted, record, job, current)
    checked = config.Checked()
    if not current:
        checked = config.check(s.workspace, s.tuning_config, release_namespace=s.settings.release_namespace)
    return Situation(_of_training(s, job, checked, current=current), wanted, record, job, current, checked)


def _of_training(s: Snapshot, job: Obj | None, checked: config.Checked, *, current: bool) -> Phase:
    if checked.problems:
        return Phase.MISCONFIGURED
    if inference.live_workload(s) is not None:
        return Phase.REMOVING_SERVER
    if current:
        return Phase.RUNNING
    if job is None:
        return Phase.STARTING
    return Phase.REMOVING_JOB if children.is_owned(job, s.workspace.uid) else Phase.OCCUPIED


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
    return not (record.succeeded and s.workspace.tuning.serve_result)


def _has_ended(s: Snapshot, wanted: str) -> bool:
    record = Record.read(s.workspace)
    return record is not None and record.revision == wanted


def _job(s: Snapshot) -> Obj | None:
    return s.children.get(f"Job/{s.workspace.name}")


def _is_current(s: Snapshot, job: Obj | None, wanted: str) -> bool:
    """Whether the Job is ours, stays, and tunes what is wanted now."""
    if job is None or not children.is_owned(job, s.workspace.uid) or job["metadata"].get("deletionTimestamp"):
        return False
    annotations = job["metadata"].get("annotations") or {}
    return bool(
        annotations.get(labels.TUNING_HASH) == tuning_hash_of(s.workspace.raw)
        and annotations.get(labels.REVISION) == wanted
    )
