"""The first start of a Workspace, told by phases: ``status.startup``.

``{"phases": [{"name": "Bought", "seconds": 1}, ...], "totalSeconds": 312}``, whole seconds, in the order of the phases.
A phase appears once it is over, with whatever else the status is written for, and does not go any more: a start that
fails stays as far as it came. ``totalSeconds`` ends the record, which then never changes: restarts, rolls and later
revisions are no first start. A Workspace that was there before records were written gets none.

Each moment is an object's own timestamp, so a controller that restarts in the middle tells the same. Clocks of several
machines are involved: a moment counts as no earlier than the one before it, hence no phase is negative, and together
they are the total. Of several nodes or Pods the last one counts.

A start ends when the Workspace is ready; one that tunes, when its training begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from kaito_hooks.api.conditions import find
from kaito_hooks.runtime import Obj, parse_time
from kaito_hooks.workspace.decision.actions import Note
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.status import conditions, pods
from kaito_hooks.workspace.status.conditions import Verdict

BOUGHT, NODE_READY, IMAGE_PULLED = "Bought", "NodeReady", "ImagePulled"
WEIGHTS_FETCHED, MODEL_LOADED, ANSWERING, TRAINING = "WeightsFetched", "ModelLoaded", "Answering", "Training"
WORDS = {
    BOUGHT: "claim",
    NODE_READY: "node",
    IMAGE_PULLED: "image",
    WEIGHTS_FETCHED: "weights",
    MODEL_LOADED: "load",
    ANSWERING: "answer",
    TRAINING: "training",
}
"""All phases in their order, and what a sentence calls them."""
TRAINER = "tune"
"""The init container of a tuning Job with which the training begins."""

_NEVER = datetime.max.replace(tzinfo=UTC)

Startup = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Moments:
    """When a start came where; None: not yet, or never.

    ``bought``: the last claim was made. ``node_ready``: all nodes were. ``steps_began``, ``steps_ended``: the init
    containers that fetch. ``began``: the server, or the trainer. ``ready``: the server's Pod, which it is when /health
    answers that the model is loaded. ``end``: of the whole start.
    """

    start: datetime
    bought: datetime | None = None
    node_ready: datetime | None = None
    steps_began: datetime | None = None
    steps_ended: datetime | None = None
    began: datetime | None = None
    ready: datetime | None = None
    end: datetime | None = None

    @property
    def slowness(self) -> tuple[datetime, ...]:
        """Greater for the Pod that is, or was, ready later."""
        return tuple(m or _NEVER for m in (self.ready, self.began, self.steps_ended, self.steps_began))


def follow(s: Snapshot, verdicts: Sequence[Verdict]) -> Startup | None:
    """What the status says of the start from here on; None: nothing. ``verdicts``: its conditions from here on."""
    before: Startup | None = (s.workspace.raw.get("status") or {}).get("startup")
    if (before is None and s.workspace.conditions) or is_over(before) or not s.workspace.creation_timestamp:
        return before
    record = tell(moments(s, verdicts), now=_whole(s.now), tuning=s.workspace.tuning is not None)
    # What a phase is read from may go: the claim of a tuning that failed, a Pod that is replaced.
    return record if is_over(record) or _names(before) <= _names(record) else before


def _names(startup: Startup | None) -> set[str]:
    return {phase["name"] for phase in (startup or {}).get("phases", ())}


def is_over(startup: Startup | None) -> bool:
    """Whether the record is complete."""
    return startup is not None and "totalSeconds" in startup


def moments(s: Snapshot, verdicts: Sequence[Verdict]) -> Moments:
    """What the objects say."""
    tuning = s.workspace.tuning is not None
    bought = [claim.creation_timestamp for claim in s.claims if claim.creation_timestamp and not claim.deleting]
    found = Moments(parse_time(s.workspace.creation_timestamp))
    counted = [
        _of_pod(found, pod, tuning=tuning)
        for pod in s.pods
        if pods.owned_by_job(pod) == tuning
        and not pod["metadata"].get("deletionTimestamp")
        and (pod.get("status") or {}).get("phase") != "Failed"
    ]
    return replace(
        max(counted, key=lambda pod: pod.slowness, default=found),
        bought=max(bought, default=None),
        node_ready=_since(s, verdicts, conditions.RESOURCE_READY),
        end=_since(s, verdicts, conditions.JOB_STARTED if tuning else conditions.WORKSPACE_READY),
    )


def tell(found: Moments, *, now: datetime, tuning: bool) -> dict[str, Any]:
    """The record of a start that came so far. A moment that nothing tells of falls together with the next one."""
    line = [found.node_ready, found.steps_began, found.steps_ended, found.began, found.ready, found.end]
    reached = max((i for i, moment in enumerate(line) if moment is not None and i not in (1, 2)), default=-1)
    following = None
    for i in range(reached, -1, -1):
        line[i] = following = line[i] or following
    latest = max(found.start, found.end or now)
    at = [found.start]
    for moment in (found.bought, *line[: reached + 1]):
        at.append(min(latest, max(at[-1], _whole(moment))) if moment is not None else at[-1])
    took = [int((later - earlier).total_seconds()) for earlier, later in pairwise(at)]
    phases = {BOUGHT: took[0]} if found.bought is not None else {}
    if reached >= 0:
        phases[NODE_READY] = took[1]
    if reached >= 3:
        phases[IMAGE_PULLED] = took[2] + took[4]
        if found.steps_ended is not None:
            phases[WEIGHTS_FETCHED] = took[3]
        else:
            phases[IMAGE_PULLED] += took[3]
    if reached >= 4 and not tuning:
        phases[MODEL_LOADED] = took[5]
    if reached >= 5:
        phases[TRAINING if tuning else ANSWERING] = took[6] + (took[5] if tuning else 0)
    record: dict[str, Any] = {"phases": [{"name": name, "seconds": seconds} for name, seconds in phases.items()]}
    return record | {"totalSeconds": sum(phases.values())} if reached >= 5 else record


def sentence(startup: Startup) -> str:
    """``312 s: node 240 s, image 31 s, weights 28 s, load 13 s``, without the phases that took no second."""
    parts = [f"{WORDS[p['name']]} {p['seconds']} s" for p in startup["phases"] if p["seconds"] and p["name"] in WORDS]
    return f"{startup['totalSeconds']} s" + (f": {', '.join(parts)}" if parts else "")


def add(s: Snapshot, startup: Startup | None, notes: Iterable[Note]) -> list[Note]:
    """The Events with that of the start's end telling the start; said once, as the record ends once."""
    before = (s.workspace.raw.get("status") or {}).get("startup")
    if startup is None or not is_over(startup) or is_over(before):
        return list(notes)
    reason = conditions.JOB_HAS_STARTED if s.workspace.tuning is not None else conditions.READY
    return [
        replace(note, message=f"{note.message} after {sentence(startup)}") if note.reason == reason else note
        for note in notes
    ]


def _since(s: Snapshot, verdicts: Sequence[Verdict], condition: str) -> datetime | None:
    """Since when the condition is True; None if it is not."""
    if not any(v.type == condition and v.status == "True" for v in verdicts):
        return None
    before = s.workspace.condition(condition) or {}
    time = before.get("lastTransitionTime") if before.get("status") == "True" else None
    return parse_time(time) if time else _whole(s.now)


def _of_pod(found: Moments, pod: Obj, *, tuning: bool) -> Moments:
    """With the moments of one Pod."""
    status = pod.get("status") or {}
    steps: list[Mapping[str, Any]] = list(status.get("initContainerStatuses") or ())
    runs: list[Mapping[str, Any]] = list(status.get("containerStatuses") or ())
    if tuning:
        names = [step.get("name") for step in steps]
        at = names.index(TRAINER) if TRAINER in names else len(steps)
        steps, runs = steps[:at], steps[at : at + 1]
    began = [_began(container) for container in runs]
    all_began = None if None in began else max((moment for moment in began if moment), default=None)
    ends = [_time(((step.get("state") or {}).get("terminated") or {}).get("finishedAt")) for step in steps]
    ready = find(status.get("conditions"), "Ready") or {}
    return replace(
        found,
        steps_began=min((moment for moment in map(_began, steps) if moment), default=None),
        steps_ended=max((moment for moment in ends if moment), default=None),
        began=all_began,
        ready=_time(ready.get("lastTransitionTime")) if ready.get("status") == "True" and not tuning else None,
    )


def _began(container: Mapping[str, Any]) -> datetime | None:
    """When a container first began, as far back as the kubelet knows."""
    state, last = container.get("state") or {}, container.get("lastState") or {}
    runs = (state.get("running"), state.get("terminated"), last.get("terminated"))
    return min((time for run in runs if run and (time := _time(run.get("startedAt")))), default=None)


def _time(text: str | None) -> datetime | None:
    return parse_time(text) if text else None


def _whole(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)
