"""Lists of ``metav1.Condition`` as plain data: find one, set one.

https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md#typical-status-properties
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

Condition = dict[str, Any]
Status = Literal["True", "False", "Unknown"]

MESSAGE_LIMIT = 32768


def find(conditions: Iterable[Condition] | None, condition_type: str) -> Condition | None:
    """The condition of that type, or None."""
    return next((c for c in conditions or () if c.get("type") == condition_type), None)


def is_true(conditions: Iterable[Condition] | None, condition_type: str) -> bool:
    """Whether the condition exists with status "True"."""
    found = find(conditions, condition_type)
    return found is not None and found.get("status") == "True"


def set_condition(
    conditions: Iterable[Condition] | None,
    *,
    type: str,
    status: Status,
    reason: str,
    message: str,
    generation: int,
    now: str,
) -> list[Condition]:
    """A new list with that condition in it, at its old place or at the end.

    ``now`` is RFC 3339; lastTransitionTime moves only when the status changes, as the API conventions ask.
    """
    kept = [dict(c) for c in conditions or ()]
    wanted: Condition = {
        "type": type,
        "status": status,
        "reason": reason,
        "message": message[:MESSAGE_LIMIT],
        "observedGeneration": generation,
        "lastTransitionTime": now,
    }
    for index, existing in enumerate(kept):
        if existing.get("type") != type:
            continue
        if existing.get("status") == status and existing.get("lastTransitionTime"):
            wanted["lastTransitionTime"] = existing["lastTransitionTime"]
        kept[index] = wanted
        return kept
    return [*kept, wanted]
