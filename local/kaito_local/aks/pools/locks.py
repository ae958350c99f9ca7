"""What keeps a request from an agent pool: conditions that the pool does not meet, and operations in progress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from kaito_local.aks.errors import Refusal, aks_error
from kaito_local.aks.pools.pool import BUSY, CREATING, DELETING, Pool


def check_conditions(pool: Pool | None, *, if_match: str = "", if_none_match: str = "") -> None:
    """Raises Refusal 412 unless the request's headers fit the pool; None: there is none."""
    if if_none_match.strip() == "*" and pool is not None:
        raise aks_error(412, "PreconditionFailed", f"The agent pool '{pool.name}' exists already.")
    wanted = if_match.strip().removeprefix("W/").strip('"')
    if if_match and (pool is None or wanted not in ("*", pool.etag)):
        raise aks_error(412, "PreconditionFailed", "The If-Match condition is not met: the agent pool was changed.")


def check_idle(
    pool: Pool | None,
    *,
    others: Iterable[Pool],
    locks: Literal["none", "pool", "cluster"],
    deletion: Literal["", "preempt", "refuse"] = "",
) -> None:
    """Raises Refusal 409 if an operation on the pool, or with ``locks`` "cluster" on another one, is in progress.

    ``deletion``: the request is one, and that is what happens to it, or to the creation, while one is in progress.
    """
    if pool is not None and pool.state in BUSY:
        if pool.state == CREATING and deletion:
            held = deletion == "refuse"
        else:
            held = pool.state == DELETING or locks != "none"
        if held:
            raise _busy(_in_progress(pool))
    if locks != "cluster":
        return
    for other in others:
        if other.state in BUSY:
            raise _busy(f"Another operation ({other.name} - {other.state}) is in progress")


def _in_progress(pool: Pool) -> str:
    if pool.state == CREATING:
        return "Operation is not allowed because there's an in progress create node pool operation"
    return f"Another agentpool operation ({pool.name} - {pool.state}) is in progress"


def _busy(text: str) -> Refusal:
    message = f"{text}, please wait for it to finish before starting a new operation."
    return aks_error(409, "OperationNotAllowed", message)
