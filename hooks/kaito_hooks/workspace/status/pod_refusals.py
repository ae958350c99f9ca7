"""Why the API server refuses a Pod: a quota, a range of limits, Pod security or a policy of its namespace.

A Deployment has a condition for it. The controllers of Jobs and StatefulSets say it in Events only, which outlive their
cause: one counts until its controller must have tried again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta

from kaito_hooks.runtime import Obj, parse_time
from kaito_hooks.workspace.decision.actions import Outcome
from kaito_hooks.workspace.status import pods

REASON = "FailedCreate"
KINDS = ("Job", "StatefulSet")
LONGEST_PAUSE = timedelta(seconds=1000)
"""Between two attempts of the same controller, as client-go's DefaultControllerRateLimiter has it."""

_ATTEMPT = re.compile(
    r"^(\(combined from similar events\): )?(Error creating: |create Pod \S+ in StatefulSet \S+ failed error: )?"
    r'((pods|Pod) "[^"]*" is (forbidden|invalid): )?'
)
"""What stands before the cause; each attempt has another name for its Pod."""


def newest(events: Iterable[Obj], *, now: datetime) -> str:
    """What the newest of these Events of one object says; "" if it is no proof any more."""
    last = max(events, key=told_at, default=None)
    if last is None or not told_at(last) or now - parse_time(told_at(last)) > LONGEST_PAUSE:
        return ""
    return str(last.get("message", ""))


def outcome(reference: str, message: str) -> Outcome:
    """What is told of a ``Kind/name`` whose Pods are refused with that message."""
    cause = _ATTEMPT.sub("", " ".join(message.split()), count=1)
    return Outcome("failed", f"{reference} cannot create its Pods: {pods.short(cause)}")


def told_at(event: Obj) -> str:
    """Recorders of either Event API set one of the two times."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
