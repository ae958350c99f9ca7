"""Why a Workspace's Pods do not answer yet, in a sentence: read from Pod states, as the kubelet wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kaito_hooks.api.conditions import find
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.actions import Outcome
from kaito_hooks.workspace.status import missing_secrets

IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
MAX_MESSAGE = 600
WAITING = "waiting for the Pod"
STAGES = {
    "push-right": "checking that the adapter may be pushed",
    "tokenizer": "fetching the model's tokenizer",
    "check": "checking the data",
    "weights": "fetching the weights",
    "data": "fetching the data",
    "tune": "training",
    "push": "pushing the adapter",
}
"""What our steps do, by container name."""

_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*"(: )?')
_WRAPPING = re.compile(
    r"^(ErrImagePull: |ImagePullBackOff: |rpc error: code = \w+ desc = |failed to resolve image: "
    r'|failed to (pull and unpack image|pull image|resolve reference|copy|do request)( "[^"]*")?: )'
)
_NOT_A_CAUSE = re.compile(r" (no new claims to deallocate, )?preemption: .*", re.DOTALL)
"""How the scheduler ends what it says: it has tried to make room, and counts the nodes once more."""
_LEVEL = re.compile(
    r"^(\S+\s+){0,4}?[\[(]?(?P<level>DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|ALERT|CRITICAL|FATAL)[\])]?:?(\s+|$)"
)
"""A level in upper case among the first five words of a line, as Python, Ray and HAProxy write it."""
_SERIOUS = frozenset({"ERROR", "ALERT", "CRITICAL", "FATAL"})
_TRACEBACK, _FATAL = "Traceback (most recent call last)", "Fatal Python error"
_SOURCE_PORT = re.compile(r"(?<=[\d\]]):\d+(?=->)")


def explain(
    pods: Iterable[Obj],
    warnings: Mapping[str, str],
    *,
    pull_errors: Mapping[str, str] | None = None,
    pull_secrets: Mapping[str, str] | None = None,
    servers: Mapping[str, Outcome] | None = None,
) -> Outcome | None:
    """The worst that is true of these Pods: a failure before a wait; None if there is nothing to say.

    ``pull_errors``: those of before. ``pull_secrets``: by Pod uid, what the kubelet says of those it does not find.
    ``servers``: by Pod uid, what servers that run say of themselves.

    A Pod that has failed as a whole (evicted, or ``UnexpectedAdmissionError`` of a kubelet that restarted before its
    device plugin) is replaced by its owner and stays behind; it counts only as long as there is no other.
    """
    there = sorted(pods, key=_name)
    current = [pod for pod in there if (pod.get("status") or {}).get("phase") != "Failed"] or there
    causes = _Causes(warnings, pull_errors or {}, pull_secrets or {}, servers or {})
    told = [_explain_one(pod, causes) for pod in current]
    found = [outcome for outcome in told if outcome is not None]
    return next((o for o in found if o.state == "failed"), found[0] if found else None)


def is_ready(pod: Obj) -> bool:
    """Whether the Pod is Ready."""
    ready = find((pod.get("status") or {}).get("conditions"), "Ready")
    return ready is not None and ready.get("status") == "True"


def owned_by_job(pod: Obj) -> bool:
    """Whether a Job made the Pod."""
    return any(owner.get("kind") == "Job" for owner in pod["metadata"].get("ownerReferences") or ())


@dataclass(frozen=True, slots=True)
class _Causes:
    """What is known besides the Pods' states, by Pod uid; ``pull_errors`` also by container."""

    warnings: Mapping[str, str]
    pull_errors: Mapping[str, str]
    pull_secrets: Mapping[str, str]
    servers: Mapping[str, Outcome]


def _explain_one(pod: Obj, causes: _Causes) -> Outcome | None:
    if pod["metadata"].get("deletionTimestamp") or is_ready(pod):
        return None
    status = pod.get("status") or {}
    for kind, part in (("init container", "initContainerStatuses"), ("container", "containerStatuses")):
        for container in status.get(part) or ():
            who = f"Pod {_name(pod)}: {kind} {container.get('name')}: "
            if (problem := _pull_problem(pod, container, causes) or _container_problem(container)) is not None:
                return Outcome("failed", who + problem + _wanted_secrets(pod, problem))
    if status.get("phase") == "Failed":
        return Outcome("failed", f"Pod {_name(pod)}: {status.get('reason', 'Failed')}: {status.get('message', '')}")
    if warning := causes.warnings.get(_uid(pod)):
        return Outcome("failed", f"Pod {_name(pod)}: {short(warning)}{_wanted_secrets(pod, warning)}")
    scheduled = find(status.get("conditions"), "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        cause = _NOT_A_CAUSE.sub("", str(scheduled.get("message", "")))
        return Outcome("waiting", f"Pod {_name(pod)} cannot be scheduled: {short(cause)}")
    if (server := causes.servers.get(_uid(pod))) is not None:
        return Outcome(server.state, f"Pod {_name(pod)}: {server.message}")
    stage = _stage(status)
    return Outcome("waiting", f"Pod {_name(pod)}: {stage}" if stage else WAITING)


def pull_errors(pods: Iterable[Obj], earlier: Mapping[str, str]) -> dict[str, str]:
    """Why images cannot be pulled, by ``<Pod uid>/<container>``: a kubelet that waits before it pulls again may not say
    any more what it said before."""
    found = {}
    for pod in pods:
        status = pod.get("status") or {}
        for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
            if (waiting := _failed_pull(container)) is None:
                continue
            place = _place(pod, container)
            if error := _pull_error(waiting) or earlier.get(place):
                found[place] = error
    return found


def _failed_pull(container: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state of a container whose image cannot be pulled, while it is tried and while the next try is waited for."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    return waiting if waiting.get("reason") in IMAGE_REASONS else None


def _pull_error(waiting: Mapping[str, Any]) -> str:
    """The cause in what the kubelet says of a failed pull; "" if it only says that it waits."""
    cause = _BACK_OFF.sub("", " ".join(str(waiting.get("message") or "").split()))
    while (bare := _WRAPPING.sub("", cause)) != cause:
        cause = bare
    return short(_SOURCE_PORT.sub("", cause))


def _pull_problem(pod: Obj, container: Mapping[str, Any], causes: _Causes) -> str | None:
    """Why an image cannot be pulled, in the same words while it is tried and while the next try is waited for."""
    if (waiting := _failed_pull(container)) is None:
        return None
    cause = _pull_error(waiting) or causes.pull_errors.get(_place(pod, container), "")
    secrets = missing_secrets.of_a_pull(causes.pull_secrets.get(_uid(pod), ""))
    wanted = missing_secrets.wanted(secrets, _namespace(pod))
    return f"image {container.get('image')} cannot be pulled" + (f": {cause}" if cause else "") + wanted


def _wanted_secrets(pod: Obj, message: str) -> str:
    return missing_secrets.wanted(missing_secrets.of_a_state(message), _namespace(pod))


def _place(pod: Obj, container: Mapping[str, Any]) -> str:
    return f"{_uid(pod)}/{container.get('name')}"


def _container_problem(container: Mapping[str, Any]) -> str | None:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or last.get("terminated") or {}
    reason = waiting.get("reason", "")
    if reason in CONFIG_REASONS:
        return f"{reason}: {short(waiting.get('message', ''))}"
    if not ended or ended.get("exitCode", 0) == 0 or container.get("ready"):
        return None
    if state.get("running") is not None and not sentence(ended.get("message") or ""):
        # Running again: what it died of is only worth telling if it said so.
        return None
    return _death(ended)


def _death(ended: Mapping[str, Any]) -> str:
    message = sentence(ended.get("message") or "")
    if ended.get("reason") == "OOMKilled":
        return "it ran out of memory (OOMKilled); give it more, or choose a larger instance type"
    return message or f"it ended with exit code {ended.get('exitCode')} ({ended.get('reason', 'Error')})"


def _stage(status: Mapping[str, Any]) -> str:
    """What the Pod is doing; "" as long as nothing in it runs."""
    for container in status.get("initContainerStatuses") or ():
        if ((container.get("state") or {}).get("terminated") or {}).get("exitCode") == 0:
            continue
        if (container.get("state") or {}).get("running") is None:
            return ""
        name = str(container.get("name"))
        if name.startswith("adapter-"):
            return f"fetching the adapter {name.removeprefix('adapter-')}"
        return STAGES.get(name, f"in step {name}")
    for container in status.get("containerStatuses") or ():
        if (container.get("state") or {}).get("running") is not None:
            return STAGES.get(str(container.get("name")), "loading the model")
    return ""


def sentence(text: str) -> str:
    """Why a container ended, of its termination message; "" if that does not say it.

    A message of ours is one sentence. Where there is none, the kubelet takes the end of the log: then an error is what
    was logged as one, or the end of a traceback, and not what happened to be the last line.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if any(_level(line) for line in lines):
        lines = _errors(lines)
    return short(lines[-1]) if lines else ""


def _errors(lines: Sequence[str]) -> list[str]:
    """Of a log, the messages of errors and the last lines of tracebacks."""
    found = []
    in_traceback = lines[0][0].isspace()
    for line in lines:
        if _level(line) in _SERIOUS:
            found.append(_LEVEL.sub("", line, count=1))
        elif (in_traceback and not line[0].isspace() and not _level(line)) or line.startswith(_FATAL):
            found.append(line)
        in_traceback = line.startswith(_TRACEBACK) or (in_traceback and line[0].isspace())
    return found


def _level(line: str) -> str:
    """The level of a line of a log; "" if it has none."""
    found = _LEVEL.match(line)
    return found["level"] if found else ""


def short(text: str) -> str:
    """The text on one line, cut where it is longer than a condition can bear."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _name(pod: Obj) -> str:
    return str(pod["metadata"]["name"])


def _namespace(pod: Obj) -> str:
    return str(pod["metadata"].get("namespace", ""))


def _uid(pod: Obj) -> str:
    return str(pod["metadata"].get("uid", ""))
