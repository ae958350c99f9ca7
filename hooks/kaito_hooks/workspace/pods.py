"""Why a Workspace's Pods do not answer yet, in a sentence: read from Pod states, as the kubelet wrote them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kaito_hooks.api.conditions import find
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.actions import Outcome

IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
MAX_MESSAGE = 600
WAITING = "waiting for the Pod"
STAGES = {
    "check": "checking that the adapter may be pushed",
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
_SOURCE_PORT = re.compile(r"(?<=[\d\]]):\d+(?=->)")


def explain(
    pods: Iterable[Obj],
    warnings: Mapping[str, str],
    *,
    said: Collection[str] = (),
    servers: Mapping[str, Outcome] | None = None,
) -> Outcome | None:
    """The worst that is true of these Pods: a failure before a wait; None if there is nothing to say.

    ``said``: messages of before; a kubelet that waits before it pulls again may not say any more why. ``servers``: by
    Pod uid, what servers that run say of themselves.

    A Pod that has failed as a whole (evicted, or ``UnexpectedAdmissionError`` of a kubelet that restarted before its
    device plugin) is replaced by its owner and stays behind; it counts only as long as there is no other.
    """
    there = sorted(pods, key=_name)
    current = [pod for pod in there if (pod.get("status") or {}).get("phase") != "Failed"] or there
    told = [_explain_one(pod, warnings, said, (servers or {}).get(_uid(pod))) for pod in current]
    found = [outcome for outcome in told if outcome is not None]
    return next((o for o in found if o.state == "failed"), found[0] if found else None)


def is_ready(pod: Obj) -> bool:
    """Whether the Pod is Ready."""
    ready = find((pod.get("status") or {}).get("conditions"), "Ready")
    return ready is not None and ready.get("status") == "True"


def owned_by_job(pod: Obj) -> bool:
    """Whether a Job made the Pod."""
    return any(owner.get("kind") == "Job" for owner in pod["metadata"].get("ownerReferences") or ())


def _explain_one(
    pod: Obj, warnings: Mapping[str, str], said: Collection[str], server: Outcome | None
) -> Outcome | None:
    if pod["metadata"].get("deletionTimestamp") or is_ready(pod):
        return None
    status = pod.get("status") or {}
    for kind, part in (("init container", "initContainerStatuses"), ("container", "containerStatuses")):
        for container in status.get(part) or ():
            who = f"Pod {_name(pod)}: {kind} {container.get('name')}: "
            if (problem := _pull_problem(container, who, said) or _container_problem(container)) is not None:
                return Outcome("failed", who + problem)
    if status.get("phase") == "Failed":
        return Outcome("failed", f"Pod {_name(pod)}: {status.get('reason', 'Failed')}: {status.get('message', '')}")
    if warning := warnings.get(_uid(pod)):
        return Outcome("failed", f"Pod {_name(pod)}: {short(warning)}")
    scheduled = find(status.get("conditions"), "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        cause = _NOT_A_CAUSE.sub("", str(scheduled.get("message", "")))
        return Outcome("waiting", f"Pod {_name(pod)} cannot be scheduled: {short(cause)}")
    if server is not None:
        return Outcome(server.state, f"Pod {_name(pod)}: {server.message}")
    stage = _stage(status)
    return Outcome("waiting", f"Pod {_name(pod)}: {stage}" if stage else WAITING)


def _pull_problem(container: Mapping[str, Any], who: str, said: Collection[str]) -> str | None:
    """Why an image cannot be pulled: the same words while it is tried and while the next try is waited for."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") not in IMAGE_REASONS:
        return None
    head = f"image {container.get('image')} cannot be pulled"
    cause = _BACK_OFF.sub("", " ".join(str(waiting.get("message") or "").split()))
    while (bare := _WRAPPING.sub("", cause)) != cause:
        cause = bare
    if cause:
        return f"{head}: {short(_SOURCE_PORT.sub('', cause))}"
    earlier = [message[start + len(who) :] for message in said if (start := message.find(f"{who}{head}: ")) >= 0]
    return earlier[0] if earlier else head


def _container_problem(container: Mapping[str, Any]) -> str | None:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or last.get("terminated") or {}
    reason = waiting.get("reason", "")
    if reason in CONFIG_REASONS:
        return f"{reason}: {short(waiting.get('message', ''))}"
    if not ended or ended.get("exitCode", 0) == 0 or container.get("ready"):
        return None
    if state.get("running") is not None and not ended.get("message"):
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
    """Termination messages of ours are one sentence; one taken from a log ends with what matters."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return short(lines[-1]) if lines else ""


def short(text: str) -> str:
    """The text on one line, cut where it is longer than a condition can bear."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _name(pod: Obj) -> str:
    return str(pod["metadata"]["name"])


def _uid(pod: Obj) -> str:
    return str(pod["metadata"].get("uid", ""))
