"""The liveness phase: a claim that comes to nothing is deleted, because its machine bills all the same."""

from __future__ import annotations

from datetime import datetime

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.api.conditions import find
from kaito_hooks.provisioner.phases.deletion import delete_claim
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.runtime import format_duration, parse_time


def liveness(claim: Claim, env: Environment) -> float | None:
    """Delete the claim if one of its deadlines has passed; else seconds until the nearest, None without any.

    Returns 0.0 when it was deleted.
    """
    now = env.clock.now()
    deadlines = [
        (
            started_at(claim, now),
            env.settings.registration_timeout,
            "registration_timeout",
            "its Node did not register within {} of the machine being ready",
        ),
        (
            None if claim.steps["launched"].done else claim.creation_timestamp,
            env.settings.launch_timeout,
            "launch_timeout",
            "no machine was launched within {}",
        ),
    ]
    nearest: float | None = None
    for since, limit, cause, text in deadlines:
        if since is None or limit <= 0 or claim.steps["registered"].done:
            continue
        left = limit - (now - since).total_seconds()
        if left <= 0:
            message = f"{claim.kind} {claim.name} is deleted: {text.format(format_duration(limit))}"
            delete_claim(claim, env, cause=cause, message=message)
            return 0.0
        nearest = left if nearest is None else min(nearest, left)
    return nearest


def noted_at(claim: Claim, now: datetime) -> datetime | None:
    """When the machine was first seen ready, as the claim's annotation has it; None without a time that may be true."""
    try:
        noted = parse_time(claim.annotations.get(labels.POOL_SUCCEEDED_AT, ""))
    except ValueError:
        return None
    return noted if noted <= now else None


def started_at(claim: Claim, now: datetime) -> datetime | None:
    """Since when a machine bills for this claim; None as long as none is ready."""
    if (noted := noted_at(claim, now)) is not None:
        return noted
    launched = find(claim.conditions, claim.encoding.step_conditions["launched"]) or {}
    since = launched.get("lastTransitionTime")
    return parse_time(since) if launched.get("status") == "True" and since else None
