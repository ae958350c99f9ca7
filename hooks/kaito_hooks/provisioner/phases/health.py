"""The health phase: a Node that stays NotReady is given back, unless so many are that the cause must lie elsewhere."""

from __future__ import annotations

import math

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner import nodes
from kaito_hooks.provisioner.phases.deletion import delete_claim
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.provisioner.resources import CLAIMS
from kaito_hooks.runtime import Conflict, NotFound, Obj, format_duration, format_time

UNHEALTHY_SHARE = 0.2
_BLOCKED_RETRY = 60.0


def health(claim: Claim, env: Environment) -> float | None:
    """Repair the claim's Node if it is due; seconds until it may be, None if it is well, 0.0 when the claim was
    deleted.

    Repair means: no more grace for its Pods, and the claim deleted; whoever wants the machine asks for another one.
    do-not-disrupt does not protect a Node that does not work.
    """
    limit = env.settings.node_repair_timeout
    found = env.nodes.of_provider_id(claim.provider_id)
    if limit <= 0 or len(found) != 1 or nodes.deleting(found[0]):
        return None
    node = found[0]
    now = env.clock.now()
    since = nodes.unready_since(node, now)
    if since is None:
        return None
    left = limit - (now - since).total_seconds()
    if left > 0:
        return left
    blocked = _blocked(env)
    if blocked:
        env.events.event(claim.object, "Warning", "NodeRepairBlocked", blocked)
        env.events.event(node, "Warning", "NodeRepairBlocked", blocked)
        return _BLOCKED_RETRY
    if not _end_grace(claim, env):
        return 0.0
    message = (
        f"{claim.kind} {claim.name} is deleted: Node {nodes.name(node)} has not been Ready for {format_duration(limit)}"
    )
    if delete_claim(claim, env, cause="unhealthy", message=message):
        env.metrics.claims_unhealthy.labels(claim.kind).inc()
    return 0.0


def _blocked(env: Environment) -> str | None:
    """Why nothing may be repaired at the moment: more than a fifth of our Nodes (rounded up) is not Ready."""
    fleet = [node for node in env.nodes.ours() if nodes.is_registered(node)]
    unhealthy = [node for node in fleet if not nodes.is_ready(node)]
    allowed = math.ceil(UNHEALTHY_SHARE * len(fleet))
    if len(unhealthy) <= allowed:
        return None
    return (
        f"{len(unhealthy)} of {len(fleet)} nodes are not Ready, more than {allowed}: no node is replaced, "
        "because the cause seems to be elsewhere"
    )


def _end_grace(claim: Claim, env: Environment) -> bool:
    """Write the deadline for the drain, which is now; False if the claim is gone."""
    if labels.TERMINATION_TIMESTAMP in claim.annotations:
        return True
    patch: Obj = {
        "metadata": {
            "uid": claim.uid,
            "annotations": {labels.TERMINATION_TIMESTAMP: format_time(env.clock.now())},
        }
    }
    try:
        env.client.patch(CLAIMS[claim.kind], claim.name, patch)
    except (NotFound, Conflict):
        return False
    return True
