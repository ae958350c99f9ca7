"""What a model server says of itself while it is not ready: asked on /progress, told in a few words.

The answer is ``{"state": "loading" | "ready" | "restarting" | "failed" | "draining", "progress": 0..1 or null,
"message": "loading weights"}``; it speaks for all replicas of its Pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.actions import Outcome
from kaito_hooks.workspace.status import pods, progress

MOST_PODS = 2
"""How many Pods of a Workspace are asked."""


def pods_to_ask(workspace: Workspace, found: Iterable[Obj]) -> list[Obj]:
    """The first Pods, by name, in which a preset's server runs and is not ready."""
    if workspace.preset is None:
        return []
    asked = [
        pod
        for pod in found
        if (pod.get("status") or {}).get("podIP")
        and not pod["metadata"].get("deletionTimestamp")
        and not pods.owned_by_job(pod)
        and not pods.is_ready(pod)
        and _runs(pod, workspace.name)
    ]
    return sorted(asked, key=lambda pod: str(pod["metadata"]["name"]))[:MOST_PODS]


def describe(said: Mapping[str, Any]) -> Outcome | None:
    """``loading weights, 42 %``, ``restarting: <message>``, or why it failed; None if there is nothing to tell."""
    message = pods.short(str(said.get("message") or ""))
    match said.get("state"):
        case "loading":
            return Outcome("waiting", (message or "loading the model") + _percent(said))
        case "restarting" | "draining" as state:
            return Outcome("waiting", (f"{state}: {message}" if message else state) + _percent(said))
        case "failed":
            return Outcome("failed", message or "the server has failed; its log says why")
    return None


def outcomes(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Outcome]:
    """What the Pods, by uid, have to tell."""
    told = {uid: describe(said) for uid, said in answers.items()}
    return {uid: outcome for uid, outcome in told.items() if outcome is not None}


def _percent(said: Mapping[str, Any]) -> str:
    part = said.get("progress")
    return f", {100 * part:.0f} %" if progress.is_number(part) and 0 <= part <= 1 else ""


def _runs(pod: Obj, container: str) -> bool:
    return any(
        status.get("name") == container and (status.get("state") or {}).get("running") is not None
        for status in (pod.get("status") or {}).get("containerStatuses") or ()
    )
