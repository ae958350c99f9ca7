"""Carrying out a drain's moves: the only place that removes Pods."""

from __future__ import annotations

from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.drain import DrainPlan
from kaito_hooks.provisioner.environment import Environment
from kaito_hooks.runtime import Conflict, InternalError, NotFound, Obj, TooManyRequests


def pods_on(node: Obj, env: Environment) -> list[Obj]:
    """The Pods that are bound to the Node at this moment."""
    return env.client.list(resources.POD, field_selector=f"spec.nodeName={nodes.name(node)}").items


def carry_out(step: DrainPlan, node: Obj, env: Environment) -> None:
    """Evict and delete what the plan says; refusals are told in Events and asked again later."""
    for removal in step.delete:
        _delete(removal.pod, removal.grace_seconds, env)
    blocked = 0.0
    for pod in step.evict:
        uid, now = pod["metadata"]["uid"], env.clock.monotonic()
        if env.drains.due(uid, now):
            refusal = _evict(pod, env)
            if refusal is None:
                env.drains.left([uid])
                env.metrics.pods_drained.labels("evicted").inc()
                env.events.event(pod, "Normal", "Evicted", f"Evicted from Node {nodes.name(node)}, which is given back")
                continue
            blocked = max(blocked, env.drains.refused(uid, now))
            message = f"Pod {_name(pod)} cannot be evicted from Node {nodes.name(node)}: {refusal}"
            env.events.event(node, "Warning", "FailedDraining", message)
            env.events.event(pod, "Warning", "FailedDraining", message)
    if blocked:
        env.metrics.drain_blocked.labels(nodes.name(node)).set(blocked)
    if step.done:
        _unblocked(node, env)


def release_pods(node: Obj, env: Environment) -> None:
    """Remove what is left of Pods on a machine that does not exist any more: no kubelet will ever confirm their end."""
    for pod in pods_on(node, env):
        _delete(pod, 0, env)
    _unblocked(node, env)


def _evict(pod: Obj, env: Environment) -> str | None:
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
    except (TooManyRequests, InternalError) as error:
        # 429: a budget does not allow it at this moment; 500: several budgets, or a broken one.
        code, refusal = error.status, error.message
    env.metrics.evictions.labels(str(code)).inc()
    return refusal


def _delete(pod: Obj, grace_seconds: int, env: Environment) -> None:
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
        return
    env.drains.left([metadata["uid"]])
    env.metrics.pods_drained.labels("deleted").inc()


def _unblocked(node: Obj, env: Environment) -> None:
    try:
        env.metrics.drain_blocked.remove(nodes.name(node))
    except KeyError:
        return


def _name(pod: Obj) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
