"""Deleting a claim that is of no use any more: its termination then gives the machine back, in order."""

from __future__ import annotations

from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.provisioner.resources import CLAIMS
from kaito_hooks.runtime import Conflict, NotFound


def delete_claim(claim: Claim, env: Environment, *, cause: str, message: str, reason: str = "Disrupted") -> bool:
    """Delete exactly this claim and say why; False if somebody else has already.

    ``cause`` labels the metric, ``reason`` and ``message`` are the Event's.
    """
    if claim.deleting:
        return False
    try:
        env.client.delete(CLAIMS[claim.kind], claim.name, uid=claim.uid)
    except (NotFound, Conflict):
        return False
    env.events.event(claim.object, "Warning", reason, message)
    env.metrics.claims_disrupted.labels(claim.kind, cause).inc()
    return True
