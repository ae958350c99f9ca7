"""Where a tuning Job is: read from the Job and its Pods, and from the status where the end of one is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from kaito_hooks.api import labels
from kaito_hooks.api.conditions import find, is_true
from kaito_hooks.api.pods import has_ended
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj, parse_time
from kaito_hooks.workspace.decision.actions import Outcome
from kaito_hooks.workspace.decision.revision import Revision, recorded_revision, tuning_hash_of
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.status import pod_refusals, pods, progress
from kaito_hooks.workspace.tuning.job import PUSH, TUNE

NEVER = 2
"""A step's exit code that means: trying again would not help."""
_FINE = Outcome("ready")
METRICS = ("loss", "evalLoss", "baseEvalLoss", "perplexity", "tokensPerSecond")
SERVED = "served"
_RESULT = ("adapterImage", "adapterDigest", "failure", "revision", "metrics", "lineage", SERVED)
"""The fields of a Record in ``status.tuning``."""
MOST_LINEAGE = 16
LAST_FAILURE = "lastFailure"
"""Of ``status.tuning.training``: what last failed in the Pods of a Job that is tried again."""


def revision_of(workspace: Workspace, revision: Revision, history: Iterable[Obj]) -> str:
    """The number of the revision that brought what is tuned; later ones that only change nodes do not count.

    An annotation says it. Where that speaks of another tuning, or somebody took it away: among the ControllerRevisions
    with the same tuning that of which there is a record, else the oldest.
    """
    wanted, known = tuning_hash_of(workspace.raw), workspace.annotations.get(labels.TUNING_HASH)
    if known == wanted:
        return workspace.annotations.get(labels.TUNING_REVISION) or str(revision.number)
    same = sorted(int(r.get("revision") or 0) for r in history if tuning_hash_of(r.get("data") or {}) == wanted)
    recorded = recorded_revision(workspace.raw)
    return recorded if recorded in map(str, same) else str(same[0] if same else revision.number)


@dataclass(frozen=True, slots=True)
class Record:
    """In ``status.tuning``: how the job of a revision ended; without an image it has failed for good, and why.

    ``lineage``: what the adapter was made of, as the image's annotations say it. ``served``: whether it has answered,
    and nobody has ended that since.
    """

    revision: str
    image: str = ""
    digest: str = ""
    failure: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    served: bool = False

    @classmethod
    def read(cls, workspace: Workspace) -> Record | None:
        """The record in the Workspace's status."""
        found = (workspace.raw.get("status") or {}).get("tuning")
        if not found or not any(found.get(key) for key in _RESULT):
            return None
        return cls(
            revision=str(found.get("revision") or ""),
            image=str(found.get("adapterImage") or ""),
            digest=str(found.get("adapterDigest") or ""),
            failure=str(found.get("failure") or ""),
            metrics=found.get("metrics") or {},
            lineage=found.get("lineage") or {},
            served=found.get(SERVED) is True,
        )

    @property
    def succeeded(self) -> bool:
        """Whether there is an adapter."""
        return bool(self.image)

    @property
    def reference(self) -> str:
        """The adapter's image by digest; by its tag if the digest is not known."""
        repository, _, _ = self.image.rpartition(":")
        return f"{repository}@{self.digest}" if self.digest else self.image

    def write(self) -> dict[str, Any]:
        """As fields of ``status.tuning``."""
        fields = {
            "adapterImage": self.image,
            "adapterDigest": self.digest,
            "failure": self.failure,
            "revision": self.revision,
            "metrics": dict(self.metrics),
            "lineage": dict(self.lineage),
            SERVED: self.served,
        }
        return {key: value for key, value in fields.items() if value}


def without_record(tuning: Mapping[str, Any]) -> dict[str, Any]:
    """What ``status.tuning`` says besides how a job ended."""
    return {key: value for key, value in tuning.items() if key not in _RESULT}


@dataclass(frozen=True, slots=True)
class JobState:
    """``phase``: what its Pod is at; ``outcome``: what keeps it from that phase's end; ``record``: how it ended.

    ``trained``: what the trainer left when it ended well, as /progress said it; nothing, if that is not known.
    """

    phase: Literal["starting", "training", "pushing", "ended"]
    outcome: Outcome = _FINE
    record: Record | None = None
    trained: Mapping[str, Any] = field(default_factory=dict)
    active: int = 0
    ready: int = 0


def pods_of(found: Iterable[Obj], job: Obj) -> list[Obj]:
    """The Pods that this Job made."""
    uid = job["metadata"].get("uid")
    return [p for p in found if any(o.get("uid") == uid for o in p["metadata"].get("ownerReferences") or ())]


def read(s: Snapshot, job: Obj, *, revision: str) -> JobState:
    """Where the Job of that revision is."""
    own = pods_of(s.pods, job)
    status = job.get("status") or {}
    trained = _trained(own)
    if (sentence := _never(own)) is not None:
        return JobState("ended", Outcome("failed", sentence), Record(revision, failure=sentence), trained=trained)
    if (success := _success(s.workspace, own, job, revision)) is not None:
        return JobState("ended", record=success, trained=trained)
    told = explain(s, own)
    if is_true(status.get("conditions"), "Failed"):
        sentence = _used_up(s, job)
        return JobState("ended", Outcome("failed", sentence), Record(revision, failure=sentence), trained=trained)
    active, ready = int(status.get("active") or 0), int(status.get("ready") or 0)
    step = _running_step(own)
    if step is not None:
        trouble = told if step == "pushing" and told is not None and told.state == "failed" else _FINE
        return JobState(step, trouble, trained=trained, active=active, ready=ready)
    if not own and (refusal := s.pod_refusals.get(str(job["metadata"].get("uid", "")))) is not None:
        return JobState("starting", pod_refusals.outcome(f"Job/{job['metadata']['name']}", refusal))
    return JobState("starting", told or Outcome("waiting", pods.WAITING), active=active, ready=ready)


def job_failures(s: Snapshot) -> dict[str, str]:
    """By the uid of the Workspace's Job, what last failed in its Pods; they go before it says that it has failed.

    What this process does not remember, the status may: another one has followed the Job before.
    """
    job = s.children.get(f"Job/{s.workspace.name}")
    if job is None:
        return {}
    uid, own = str(job["metadata"].get("uid", "")), pods_of(s.pods, job)
    told = explain(s, own)
    if not own and uid in s.pod_refusals:
        told = pod_refusals.outcome(f"Job/{s.workspace.name}", s.pod_refusals[uid])
    if told is not None and told.state == "failed":
        return {uid: told.message}
    last = s.memory.job_failures.get(uid) or _recorded_failure(s.workspace, job)
    return {uid: last} if last else {}


def _recorded_failure(workspace: Workspace, job: Obj) -> str:
    """What the status says of the Job's last failure."""
    training = ((workspace.raw.get("status") or {}).get("tuning") or {}).get("training") or {}
    revision = (job["metadata"].get("annotations") or {}).get(labels.REVISION)
    return str(training.get(LAST_FAILURE) or "") if training.get("revision") == revision else ""


def explain(s: Snapshot, own: Iterable[Obj]) -> Outcome | None:
    """The worst that is true of these Pods of a Job; None if there is nothing to say."""
    return pods.explain(own, s.pod_warnings, pull_errors=s.memory.pull_errors, pull_secrets=s.pull_secrets)


def pod_to_ask(found: Iterable[Obj], job: Obj) -> Obj | None:
    """The Job's Pod whose trainer or push runs, which answers /progress."""
    for pod in pods_of(found, job):
        has_address = bool((pod.get("status") or {}).get("podIP"))
        if has_address and not pod["metadata"].get("deletionTimestamp") and _is_running(pod):
            return pod
    return None


def last_to_end(found: Iterable[Obj]) -> Obj | None:
    """A Pod of a Job that has not ended, although its push may have: something was put into it that goes on."""
    return next((pod for pod in found if pods.owned_by_job(pod) and not has_ended(pod)), None)


def pushed_at(pod: Obj) -> datetime | None:
    """When the Pod's push ended, as far as that is known."""
    finished = (_state(pod, PUSH).get("terminated") or {}).get("finishedAt")
    return parse_time(finished) if finished else None


def _running_step(own: Iterable[Obj]) -> Literal["training", "pushing"] | None:
    for pod in own:
        if pod["metadata"].get("deletionTimestamp"):
            continue
        if (_state(pod, TUNE).get("terminated") or {}).get("exitCode") == 0:
            return "pushing"
        if _state(pod, TUNE).get("running") is not None:
            return "training"
    return None


def _trained(own: Iterable[Obj]) -> Mapping[str, Any]:
    """The termination message of the step ``tune`` that ended well."""
    for pod in own:
        ended = _state(pod, TUNE).get("terminated") or {}
        if ended.get("exitCode") == 0 and (said := progress.read(str(ended.get("message") or ""))) is not None:
            return said
    return {}


def _is_running(pod: Obj) -> bool:
    return any(_state(pod, name).get("running") is not None for name in (TUNE, PUSH))


def containers(pod: Obj) -> Iterator[Mapping[str, Any]]:
    """What a Pod says of its containers, its steps first."""
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _state(pod: Obj, name: str) -> Mapping[str, Any]:
    return next((c.get("state") or {} for c in containers(pod) if c.get("name") == name), {})


def _never(own: Iterable[Obj]) -> str | None:
    """The sentence of a step that will never succeed."""
    for pod in own:
        for container in containers(pod):
            for state in (container.get("state") or {}, container.get("lastState") or {}):
                ended = state.get("terminated") or {}
                if ended.get("exitCode") == NEVER:
                    said = pods.sentence(ended.get("message") or "") or "it ended with exit code 2"
                    return f"step {container.get('name')}: {said}"
    return None


def _success(workspace: Workspace, own: list[Obj], job: Obj, revision: str) -> Record | None:
    """The result that `push` left in its termination message."""
    assert workspace.tuning is not None
    assert workspace.tuning.output is not None
    image = workspace.tuning.output.image
    for pod in own:
        ended = _state(pod, PUSH).get("terminated")
        if ended is not None and ended.get("exitCode") == 0:
            digest, metrics, lineage = _result(str(ended.get("message") or ""))
            return Record(revision, image, digest, metrics=metrics, lineage=lineage)
    gone = all(p["metadata"].get("deletionTimestamp") for p in own)
    if is_true((job.get("status") or {}).get("conditions"), "Complete") and gone:
        return Record(revision, image)
    return None


def _result(message: str) -> tuple[str, dict[str, float], dict[str, str]]:
    """Digest, metrics and lineage."""
    said = progress.read(message)
    if said is None:
        return (message.strip() if message.strip().startswith("sha256:") else ""), {}, {}
    metrics, lineage = (part if isinstance(part := said.get(key), Mapping) else {} for key in ("metrics", "lineage"))
    texts = {str(key): value for key, value in lineage.items() if isinstance(value, str)}
    return (
        str(said.get("digest") or ""),
        {key: metrics[key] for key in METRICS if progress.is_number(metrics.get(key))},
        dict(sorted(texts.items())[:MOST_LINEAGE]),
    )


def _used_up(s: Snapshot, job: Obj) -> str:
    """The Job's last word, with what last failed in its Pods: they are gone with it."""
    status = job.get("status") or {}
    failed = find(status.get("conditions"), "Failed") or {}
    cause = s.memory.job_failures.get(str(job["metadata"].get("uid", ""))) or str(failed.get("message", ""))
    return f"job {s.workspace.name} has failed {int(status.get('failed') or 0)} pods" + (f": {cause}" if cause else "")
