"""The check before a node is bought: when it is made, what it has found, and what that means.

What it has found is first recorded in the status, and acted upon afterwards: a controller that dies in between neither
checks twice nor buys early.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from kaito_hooks.api import labels
from kaito_hooks.api.conditions import find, is_true
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj, format_duration, parse_time
from kaito_hooks.workspace.children import deletion, inference, upkeep
from kaito_hooks.workspace.decision.actions import Delete, Outcome
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.status import pod_refusals, pods
from kaito_hooks.workspace.supply import nodes
from kaito_hooks.workspace.tuning import report, state

CHECK, DATA = "check", "data"
FINAL = (DATA, CHECK)
"""Steps whose exit code 2 refuses the tuning. What the other steps meet, a Secret or a registry, may be put right
without a change of the Workspace: they are tried again, with the kubelet's back-off."""
TRIES = 3
"""After so many ends without an answer the check itself is at fault, and is skipped."""
RECORDING = (
    "the check has ended, and its report is being recorded; if this does not go, the CRD is older than the controller: "
    "apply the files in crds of the chart"
)
"""An API server drops fields that its CRD lacks, and nothing is done before the report is in the status."""
ON_THE_NODE = "what it would have looked at is looked at on the node"
NO_CHECK = f"annotate the Workspace with {labels.TUNING_CHECK}={labels.OFF} to buy a node without a check"
OTHER_RESOURCES = (
    "give its containers other resources with tuning.check.resources and steps.resources in the chart's values"
)

Result = Literal["Passed", "Refused", "Skipped"]
RESULTS: tuple[Result, ...] = ("Passed", "Refused", "Skipped")


@dataclass(frozen=True, slots=True)
class Check:
    """``status.tuning.check``: how the check of a revision ended. ``inputs``: what was checked besides the revision.

    ``message``: why it was refused or skipped.
    """

    revision: str
    inputs: str
    result: Result
    message: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, workspace: Workspace) -> Check | None:
        """The check in the Workspace's status."""
        found = ((workspace.raw.get("status") or {}).get("tuning") or {}).get("check") or {}
        result = next((known for known in RESULTS if known == found.get("result")), None)
        if result is None:
            return None
        return cls(
            revision=str(found.get("revision") or ""),
            inputs=str(found.get("inputs") or ""),
            result=result,
            message=str(found.get("message") or ""),
            report={key: found[key] for key in report.FIELDS if key in found},
        )

    def has_passed(self, revision: str, inputs: str) -> bool:
        """Whether that revision with those inputs was checked, and found good."""
        return self.result == "Passed" and self.holds_for(revision, inputs)

    def holds_for(self, revision: str, inputs: str) -> bool:
        """Whether this is the answer for that revision and those inputs.

        Other settings may let pass what was refused or skipped; what has passed is not checked again for them.
        """
        found, wanted = (self.inputs, inputs) if self.result != "Passed" else map(_of_the_user, (self.inputs, inputs))
        return (self.revision, found) == (revision, wanted)

    def write(self) -> dict[str, Any]:
        """As ``status.tuning.check``."""
        fields = {"revision": self.revision, "inputs": self.inputs, "result": self.result, "message": self.message}
        return {key: value for key, value in fields.items() if value} | dict(self.report)


@dataclass(frozen=True, slots=True)
class Look:
    """Where a check is. ``ended``: what it found. ``look_at``: when it ends if nothing happens. ``again``: whether its
    Job has ended without an answer, and another one is to be made."""

    outcome: Outcome
    ended: Check | None = None
    look_at: datetime | None = None
    again: bool = False


def is_wanted(s: Snapshot) -> bool:
    """Whether tunings are checked here, and this one too."""
    return s.settings.tuning.check.enabled and not labels.is_off(s.workspace.annotations, labels.TUNING_CHECK)


def inputs_of(workspace: Workspace, configuration: str, *, job: Obj) -> str:
    """Twice 16 hex digits that change when a check may end otherwise although the revision is the same.

    The first ones with what the user says: the ConfigMap's text, whether the result is served, a wish for another
    check. The last ones with what the chart, the Catalog and this version say, which is all in the spec of the ``job``.
    """
    assert workspace.tuning is not None
    asked = workspace.annotations.get(labels.TUNING_CHECK, "")
    parts = json.dumps([configuration, workspace.tuning.serve_result, asked])
    return f"{hashlib.sha256(parts.encode()).hexdigest()[:16]}-{upkeep.fingerprint(job)}"


def _of_the_user(inputs: str) -> str:
    return inputs.partition("-")[0]


def job_name(workspace: str, revision: str) -> str:
    """The name of a check Job: 7 characters and a number longer than its Workspace's."""
    return f"{workspace}-{CHECK}-{revision}"


def is_job(workspace: str, job: Obj) -> bool:
    """Whether the Job has the name of a check of that Workspace."""
    return _is_name(workspace, job["metadata"]["name"])


def is_pod(workspace: str, pod: Obj) -> bool:
    """Whether the Pod is a check's of that Workspace."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("kind") == "Job" and _is_name(workspace, str(owner.get("name", ""))) for owner in owners)


def _is_name(workspace: str, name: str) -> bool:
    revision = name.removeprefix(job_name(workspace, ""))
    return revision != name and revision.isdecimal()


def made_for(job: Obj) -> tuple[str, str]:
    """Revision and inputs that the Job checks."""
    annotations = job["metadata"].get("annotations") or {}
    return str(annotations.get(labels.REVISION) or ""), str(annotations.get(labels.CHECK_INPUTS) or "")


def config_of(job: Obj) -> str:
    """The resourceVersion that the ConfigMap had when the Job was made; "" if there was none."""
    return str((job["metadata"].get("annotations") or {}).get(labels.CHECK_CONFIG) or "")


def removals(s: Snapshot, *, keep: tuple[str, str] | None) -> list[Delete]:
    """Deletes our check Jobs but the one for that revision and those inputs; one is gone when its Pods are."""
    return upkeep.remove(job for job in deletion.checks(s) if keep is None or made_for(job) != keep)


def look(s: Snapshot, job: Obj) -> Look:
    """Where the check of that Job is."""
    own = state.pods_of(s.check_pods, job)
    told = _complaint(own) or state.explain(s, own)
    uid = str(job["metadata"].get("uid", ""))
    is_refused = not own and uid in s.pod_refusals
    if is_refused:
        told = pod_refusals.outcome(f"Job/{job['metadata']['name']}", s.pod_refusals[uid])
        if inference.live_workload(s) is None:
            return Look(Outcome(told.state, f"{told.message}; {OTHER_RESOURCES}, or {NO_CHECK}"))
        # The server of an earlier result may be what has used a quota up, and it goes only after the check.
    why = told.message if told is not None else ""
    limits = list(_limits(s, job, own, is_refused=is_refused))
    found = _answer(own) or next((limit.found(why) for limit in limits if s.now >= limit.until), None)
    found = found or _end_of_job(job, own) or (("Skipped", why, {}) if any(map(_is_at_fault, own)) else None)
    if found is None and _is_out_of_time(job):
        return Look(Outcome("waiting", "the check is made again, as it has waited too long"), again=True)
    if found is None:
        until = min((limit.until for limit in limits), default=None)
        return Look(told or Outcome("waiting", pods.WAITING), look_at=until)
    result, message, said = found
    if result == "Skipped":
        message = f"the check was skipped, {ON_THE_NODE}: {message}"
    outcome = Outcome("failed", message) if result == "Refused" else Outcome("waiting", RECORDING)
    return Look(outcome, Check(*made_for(job), result, message, said))


_Found = tuple[Result, str, Mapping[str, Any]]
"""Result, message and report."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """What ends a check at ``until``, and how it ends. ``has_cause``: whether what its Pod says belongs to that."""

    until: datetime
    result: Result
    message: str
    has_cause: bool = True

    def found(self, why: str) -> _Found:
        """The end. ``why``: what is said of the Pod."""
        return self.result, f"{self.message}: {why}" if why and self.has_cause else self.message, {}


def _limits(s: Snapshot, job: Obj, own: list[Obj], *, is_refused: bool) -> Iterator[_Limit]:
    """What ends the check if nothing happens any more."""
    settings = s.settings.tuning.check
    waits = timedelta(seconds=settings.timeout)
    if (since := _homeless_since(own, job, is_refused=is_refused)) is not None:
        text = f"no node took its Pod within {format_duration(settings.timeout)}"
        yield _Limit(since + waits, "Skipped", text)
    if (since := _without_image_since(own)) is not None:
        text = f"its image did not come within {format_duration(settings.timeout)}"
        yield _Limit(since + waits, "Skipped", text)
    for step, since in _running(own):
        text, until = _overdue(step, settings.deadline), since + timedelta(seconds=settings.deadline)
        yield _Limit(until, "Refused" if step == CHECK else "Skipped", text, has_cause=False)


def _overdue(step: str, deadline: float) -> str:
    text = f"step {step} has not ended within {format_duration(deadline)} (tuning.check.deadline)"
    if step != CHECK:
        return text
    return (
        f"{text}, and the trainer does the same work on its node: a chat template may loop for ever; correct it, or "
        f"{NO_CHECK}"
    )


def _running(own: Iterable[Obj]) -> Iterator[tuple[str, datetime]]:
    """The steps that run in Pods that stay, and since when; a step that is tried again begins anew. What a cluster puts
    into all Pods is no step."""
    for pod in own:
        for container in state.containers(pod):
            name, runs = str(container.get("name")), (container.get("state") or {}).get("running") or {}
            started = runs.get("startedAt") if name in pods.STAGES else None
            if started and not pod["metadata"].get("deletionTimestamp"):
                yield name, parse_time(started)


def _without_image_since(own: Iterable[Obj]) -> datetime | None:
    """Since when a Pod waits for the image of the check itself, which cannot be pulled. The image of the other steps is
    that of the job on the node too, which would wait for it there, and be paid for."""
    for pod in own:
        status = pod.get("status") or {}
        waits = [c for c in status.get("containerStatuses") or () if c.get("name") == CHECK]
        reasons = {((c.get("state") or {}).get("waiting") or {}).get("reason") for c in waits}
        if reasons & pods.IMAGE_REASONS and not pod["metadata"].get("deletionTimestamp"):
            begun = find(status.get("conditions"), "Initialized") or {}
            stamp = begun.get("lastTransitionTime") if begun.get("status") == "True" else None
            stamp = stamp or _created(pod)
            return parse_time(stamp) if stamp else None
    return None


def _answer(own: Iterable[Obj]) -> _Found | None:
    """What a Pod of the check has said at its end."""
    for pod in own:
        for name in FINAL:
            if (message := _message(pod, name, exit_code=state.NEVER)) is not None:
                found = report.read(message)
                if not report.sentence(found):
                    text = "" if found else pods.sentence(message)
                    found |= {"problems": [text or "it ended with exit code 2"]}
                return "Refused", f"step {name}: {report.sentence(found)}", found
        if (message := _message(pod, CHECK, exit_code=0)) is not None:
            return "Passed", "", report.read(message)
    return None


def _end_of_job(job: Obj, own: Iterable[Obj]) -> _Found | None:
    """What the Job alone says whose Pods are gone, and their messages with them."""
    known = (job.get("status") or {}).get("conditions")
    if is_true(known, "Complete") and not any(own):
        return "Passed", "", {}
    failed = find(known, "Failed") or {}
    if failed.get("status") != "True" or _is_out_of_time(job):
        return None
    return "Skipped", f"its Job has failed: {failed.get('message', '')}", {}


def _is_out_of_time(job: Obj) -> bool:
    """Whether the Job's own deadline has ended it. No step has run for too long then: it has waited for something."""
    failed = find((job.get("status") or {}).get("conditions"), "Failed") or {}
    return failed.get("status") == "True" and failed.get("reason") == "DeadlineExceeded"


def _complaint(own: list[Obj]) -> Outcome | None:
    """What a check that is tried again has reported; its message is a report, and no sentence."""
    for pod in own:
        found = report.read(_message(pod, CHECK, exit_code=1) or "")
        if (sentence := report.sentence(found)) and not pod["metadata"].get("deletionTimestamp"):
            return Outcome("failed", f"step {CHECK}: {sentence}")
    return None


def _message(pod: Obj, name: str, *, exit_code: int) -> str | None:
    """The termination message of a container that ended so, also if it has been started again since; else None."""
    for container in state.containers(pod):
        for kind in ("state", "lastState"):
            ended = (container.get(kind) or {}).get("terminated") or {}
            if container.get("name") == name and ended.get("exitCode") == exit_code:
                return str(ended.get("message") or "")
    return None


def _is_at_fault(pod: Obj) -> bool:
    """Whether it is the check that fails, and not what it looks at: it dies again and again, or takes too much disk."""
    status = pod.get("status") or {}
    if status.get("phase") == "Failed" and status.get("reason") == "Evicted":
        return True
    return any(c.get("name") == CHECK and int(c.get("restartCount") or 0) >= TRIES for c in state.containers(pod))


def _homeless_since(own: list[Obj], job: Obj, *, is_refused: bool) -> datetime | None:
    """Since when no node has taken a Pod; None if one has, or if its Pod went and the next one is still to come."""
    current = [pod for pod in own if not pod["metadata"].get("deletionTimestamp")]
    if not current and not is_refused:
        return None
    for pod in current:
        scheduled = find((pod.get("status") or {}).get("conditions"), "PodScheduled") or {}
        if nodes.of_pod(pod) or scheduled.get("status") == "True" or any(state.containers(pod)):
            return None
    stamp = min((_created(o) for o in current or [job]), default="")
    return parse_time(stamp) if stamp else None


def _created(obj: Obj) -> str:
    return str(obj["metadata"].get("creationTimestamp") or "")
