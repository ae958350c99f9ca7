"""Carrying out a drain's moves: the only place that removes Pods.

What is refused concerns that Pod alone: the others are asked all the same, and Events of the claim, its Node and the
Pod tell why.
"""

from __future__ import annotations

from dataclasses import dataclass

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.phases.drain import SHORTEST_WAIT, DrainPlan
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.runtime import (
    BadRequest,
    Conflict,
    Forbidden,
    InternalError,
    Invalid,
    NotFound,
    Obj,
    TooManyRequests,
)

# 429: a budget does not allow it at this moment; 500: several budgets, or a broken one, or a broken webhook; the
# others: admission, a namespace that is being deleted, or a Pod that an older API server let in.
_REFUSALS = (TooManyRequests, InternalError, Forbidden, BadRequest, Invalid)
_PROTECTED = f"its annotation {labels.DO_NOT_DISRUPT} forbids to evict it"


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one look at a Node's Pods: why Pods ``stay``, a sentence each, and in how many seconds to look
    ``again``.
    """

    stay: tuple[str, ...]
    again: float


def pods_on(node: Obj, env: Environment) -> list[Obj]:
    """The Pods that are bound to the Node at this moment."""
    return env.client.list(resources.POD, field_selector=f"spec.nodeName={nodes.name(node)}").items


def carry_out(step: DrainPlan, node: Obj, claim: Claim, env: Environment) -> Round:
    """Evict and delete what the plan says; refusals become Events and asked again later."""
    granted = False
    for removal in step.delete:
        refusal = _delete(removal.pod, removal.grace_seconds, env)
        granted |= _settle(removal.pod, refusal, node, claim, env)
    for pod in step.evict:
        if env.drains.due(pod["metadata"]["uid"], env.clock.monotonic()):
            granted |= _settle(pod, _evict(pod, node, env), node, claim, env)
    for pod in step.protected:
        if env.drains.due(pod["metadata"]["uid"], env.clock.monotonic()):
            _settle(pod, _PROTECTED, node, claim, env)
    now = env.clock.monotonic()
    staying = [pod for pod in step.remaining if not pod["metadata"].get("deletionTimestamp")]
    known = [(pod, env.drains.refusal(pod["metadata"]["uid"])) for pod in staying]
    refused = [(_name(pod), refusal) for pod, refusal in known if refusal is not None]
    if refused:
        env.metrics.drain_blocked.labels(nodes.name(node)).set(max(now - refusal.since for _, refusal in refused))
    else:
        env.metrics.drained(nodes.name(node))
    again = min((step.again, *(refusal.again - now for _, refusal in refused)))
    return Round(
        stay=tuple(f"{name}: {refusal.reason}" for name, refusal in refused),
        again=SHORTEST_WAIT if granted else max(SHORTEST_WAIT, again),
    )


def _settle(pod: Obj, refusal: str | None, node: Obj, claim: Claim, env: Environment) -> bool:
    """Remember and tell what was answered; whether the Pod is on its way."""
    uid = pod["metadata"]["uid"]
    if refusal is None:
        env.drains.left([uid])
        return True
    env.drains.refused(uid, env.clock.monotonic(), refusal)
    message = f"Pod {_name(pod)} cannot be evicted from Node {nodes.name(node)}: {refusal}"
    for obj in (claim.object, node, pod):
        env.events.event(obj, "Warning", "FailedDraining", message)
    return False


def release_pods(node: Obj, env: Environment) -> None:
    """Remove what is left of Pods on a machine that does not exist any more: no kubelet will ever confirm their end."""
    for pod in pods_on(node, env):
        refusal = _delete(pod, 0, env)
        env.drains.left([pod["metadata"]["uid"]])
        if refusal is not None:
            message = f"Pod {_name(pod)} of Node {nodes.name(node)}, which is gone, cannot be deleted: {refusal}"
            env.events.event(pod, "Warning", "FailedDraining", message)
    env.metrics.drained(nodes.name(node))


def _evict(pod: Obj, node: Obj, env: Environment) -> str | None:
    """Ask for the eviction; None when it was granted or the Pod is gone, else why not."""
    metadata = pod["metadata"]
    request = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "deleteOptions": {"preconditions": {"uid": metadata["uid"]}},
    }
    try:
        env.client.create(
            resources.POD, request, namespace=metadata["namespace"], subresource="eviction", name=metadata["name"]
        )
        code, refusal = 201, None
    except (NotFound, Conflict) as error:
        code, refusal = error.status, None
    except _REFUSALS as error:
        code, refusal = error.status, error.message
    env.metrics.evictions.labels(str(code)).inc()
    if refusal is None:
        env.metrics.pods_drained.labels("evicted").inc()
        env.events.event(pod, "Normal", "Evicted", f"Evicted from Node {nodes.name(node)}, which is given back")
    return refusal


def _delete(pod: Obj, grace_seconds: int, env: Environment) -> str | None:
    """Delete the Pod; None when it was granted or the Pod is gone, else why not."""
    metadata = pod["metadata"]
    try:
        env.client.delete(
            resources.POD,
            metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            grace_period_seconds=grace_seconds,
        )
    except (NotFound, Conflict):
        return None
    except _REFUSALS as error:
        return error.message
    env.metrics.pods_drained.labels("deleted").inc()
    return None


def _name(pod: Obj) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
