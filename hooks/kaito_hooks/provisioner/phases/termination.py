"""The termination phase: Node cordoned and drained, volumes detached, machine deleted, then the finalizers, in that
order.

Every step looks at the world again, so a crash in the middle costs only the look. The claim's finalizer is the last
thing to go, after a GET (never a listing) has shown that nothing bills any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.api.conditions import find
from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.cloud import Instance, State
from kaito_hooks.provisioner.errors import CloudError, LaunchFailed, OperationInProgress, PoolNameConflict
from kaito_hooks.provisioner.phases import drain, eviction, finalizer, volumes
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.provisioner.phases.launch import deletion_key, look_key
from kaito_hooks.provisioner.phases.polling import LONGEST_DELETION_RETRY, listing_age
from kaito_hooks.provisioner.resources import CLAIMS
from kaito_hooks.runtime import NotFound, Obj, format_time, later, parse_duration, parse_time

VOLUME_POLL = 5.0
_EXCLUDED_BY = "karpenter"
_NAMED_PODS = 3
_NAMED_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Ending:
    """How far the end of a claim is. ``gone``: finalizer and all."""

    gone: bool = False
    drained: bool = False
    detached: bool = False
    message: str = ""
    requeue_after: float | None = None


def termination(claim: Claim, env: Environment) -> Ending:
    """One look, the next writes; never waits."""
    deadline = _deadline(claim, env)
    own = env.nodes.of_claim(claim)
    for node in own:
        _begin(node, claim, env)
    try:
        return _end(claim, own, deadline, env)
    except CloudError as error:
        delay = env.backoff.failed(_retry_key(claim), error, longest=LONGEST_DELETION_RETRY)
        if not isinstance(error, OperationInProgress):
            env.events.event(claim.object, "Warning", "FailedTermination", error.message)
        return _waiting_for_cloud(_message(error), delay)


def _end(claim: Claim, own: list[Obj], deadline: datetime | None, env: Environment) -> Ending:
    alive = any(nodes.is_ready(node) for node in own)
    waiting = _clear(claim, own, deadline, env) if alive else None
    if waiting is not None:
        return waiting
    wait = env.backoff.remaining(_retry_key(claim))
    if wait > 0:
        return _waiting_for_cloud(_message(env.backoff.last_error(_retry_key(claim))), wait)
    hint = env.cloud.get(claim.name, max_age=listing_age(claim.deletion_timestamp, env))
    if hint is not None and not hint.belongs_to(claim):
        hint = None
    if hint is not None and hint.state is State.DELETING:
        return _deleting(claim, env)
    if hint is None and not finalizer.held(env.client, CLAIMS[claim.kind], claim.object):
        # The cache is old: this end has been reached before.
        return Ending(gone=True)
    # A silent kubelet is no reason to spare its Pods the eviction, unless its machine is gone for certain.
    instance = _own_instance(claim, env) if alive or hint is None else hint
    if instance is None:
        return _release(claim, own, env)
    if not alive:
        waiting = _clear(claim, own, deadline, env)
        if waiting is not None:
            return waiting
        instance = _own_instance(claim, env)
    if instance is not None and instance.state is not State.DELETING:
        _delete(instance, claim, env)
    return _deleting(claim, env)


def _delete(instance: Instance, claim: Claim, env: Environment) -> None:
    """Ask for the machine's deletion; raises what became of the one before, if that was accepted and failed."""
    if instance.state.broken and env.drains.deletion_failed(claim.uid):
        raise instance.error or LaunchFailed("", f"the deletion of agent pool {instance.name} failed without an error")
    env.cloud.delete(instance)
    env.drains.deletion_accepted(claim.uid)


def _clear(claim: Claim, own: list[Obj], deadline: datetime | None, env: Environment) -> Ending | None:
    """Drain, then wait for volumes; None when the machine may go. What was cordoned and empty once is not searched
    again: a machine takes minutes to go, and its kubelet may say Ready to the end.
    """
    if env.drains.is_over(claim.uid):
        return None
    waiting = _empty(claim, own, deadline, env) or _detach(own, deadline, env)
    if waiting is None and own:
        env.drains.over(claim.uid)
        env.metrics.nodes_drained.inc(len(own))
    return waiting


def _deadline(claim: Claim, env: Environment) -> datetime | None:
    """When draining must be over; the claim's own deadline is written down once, so that it does not move.

    Without one it is the provisioner's, because the machine bills while its Pods stay.
    """
    noted = claim.annotations.get(labels.TERMINATION_TIMESTAMP)
    if noted:
        try:
            return parse_time(noted)
        except ValueError:
            return env.clock.now()
    if claim.deletion_timestamp is None:
        return None
    if not claim.termination_grace_period:
        grace = env.settings.termination_grace_period
        return later(claim.deletion_timestamp, grace) if grace > 0 else None
    deadline = later(claim.deletion_timestamp, parse_duration(claim.termination_grace_period))
    text = format_time(deadline)
    env.client.patch(
        CLAIMS[claim.kind],
        claim.name,
        {"metadata": {"uid": claim.uid, "annotations": {labels.TERMINATION_TIMESTAMP: text}}},
    )
    env.events.event(
        claim.object,
        "Warning",
        "TerminationGracePeriodExpiring",
        f"Pods of {claim.kind} {claim.name} that have not left by {text} are deleted",
    )
    return deadline


def _begin(node: Obj, claim: Claim, env: Environment) -> None:
    """Nothing new is scheduled or balanced onto the Node, and its deletion waits for us."""
    if not nodes.deleting(node):
        if nodes.change(env.client, node, partial(_cordon, claim=claim)) is None:
            return
        try:
            env.client.delete(resources.NODE, nodes.name(node), uid=node["metadata"]["uid"])
        except NotFound:
            return
    elif not _cordoned(node):
        nodes.change(env.client, node, partial(_cordon, claim=claim))


def _cordoned(node: Obj) -> bool:
    taints = (node.get("spec") or {}).get("taints") or ()
    return any(t.get("key") == labels.DISRUPTED_TAINT and t.get("effect") == "NoSchedule" for t in taints)


def _cordon(node: Obj, *, claim: Claim) -> None:
    nodes.add_taints(node, [{"key": labels.DISRUPTED_TAINT, "effect": "NoSchedule"}])
    node["metadata"].setdefault("labels", {})[labels.EXCLUDE_FROM_LOAD_BALANCERS] = _EXCLUDED_BY
    # A Node that never registered has no finalizer yet; without one it would be gone before its Pods are.
    if not nodes.deleting(node) and not finalizer.present(node):
        node["metadata"]["finalizers"] = [*(node["metadata"].get("finalizers") or ()), labels.TERMINATION_FINALIZER]


def _own_instance(claim: Claim, env: Environment) -> Instance | None:
    """The claim's instance as a GET shows it at this moment; PoolNameConflict when its labels do not tell."""
    instance = env.cloud.get(claim.name)
    if instance is None or instance.belongs_to(claim):
        return instance
    if not instance.may_belong_to(claim):
        return None
    raise PoolNameConflict(
        "OwnerUnknown",
        f"agent pool {instance.name} has lost the labels that show whose it is, and {claim.kind} {claim.name} had its "
        f"machine there ({claim.provider_id}): delete the pool, or give it the label {labels.CLAIM_UID}={claim.uid} "
        "again to have it deleted",
    )


def _empty(claim: Claim, own: list[Obj], deadline: datetime | None, env: Environment) -> Ending | None:
    """Drain; None when nobody is left or the deadline has passed."""
    now = env.clock.now()
    waiting = 0
    stay: list[str] = []
    again = drain.LONGEST_WAIT
    for node in own:
        step = drain.plan(eviction.pods_on(node, env), now=now, deadline=deadline)
        found = eviction.carry_out(step, node, claim, env)
        waiting += len(step.remaining)
        stay += found.stay
        again = min(again, found.again)
    if waiting == 0 or (deadline is not None and now >= deadline):
        return None
    names = ", ".join(nodes.name(node) for node in own)
    message = f"Pods that have not left {names} yet: {waiting}"
    if stay:
        message += f"; {'; '.join(text[:_NAMED_LENGTH] for text in stay[:_NAMED_PODS])}"
        message += f"; {len(stay) - _NAMED_PODS} others" if len(stay) > _NAMED_PODS else ""
        message += f"; whoever is left at {format_time(deadline)} is deleted" if deadline is not None else ""
    return Ending(message=message, requeue_after=again)


def _detach(own: list[Obj], deadline: datetime | None, env: Environment) -> Ending | None:
    """Wait for the volumes; None when all are detached or the deadline has passed."""
    if not own or (deadline is not None and env.clock.now() >= deadline):
        return None
    attached = volumes.awaited(own, env)
    if not attached:
        return None
    names = ", ".join(nodes.name(node) for node in own)
    return Ending(
        drained=True,
        message=f"volumes that are still attached to {names}: {len(attached)}",
        requeue_after=VOLUME_POLL,
    )


def _release(claim: Claim, own: list[Obj], env: Environment) -> Ending:
    """The machine is gone: let go of the Nodes, then of the claim."""
    for node in own:
        eviction.release_pods(node, env)
        if finalizer.remove(env.client, resources.NODE, node):
            _count_node(node, env)
    released = finalizer.remove(env.client, CLAIMS[claim.kind], claim.object)
    for key in (claim.uid, look_key(claim), deletion_key(claim), _retry_key(claim)):
        env.backoff.forget(key)
    env.drains.forget(claim.uid)
    env.metrics.drained(claim.node_name)
    if not released:
        return Ending(gone=True)
    env.metrics.claims_terminated.labels(claim.kind).inc()
    if claim.deletion_timestamp is not None:
        took = (env.clock.now() - claim.deletion_timestamp).total_seconds()
        env.metrics.claim_termination.labels(claim.kind).observe(took)
    requested = (find(claim.conditions, "InstanceTerminating") or {}).get("lastTransitionTime")
    if requested:
        took = (env.clock.now() - parse_time(requested)).total_seconds()
        env.metrics.instance_termination.labels(claim.kind).observe(took)
    return Ending(gone=True)


def _deleting(claim: Claim, env: Environment) -> Ending:
    return _waiting_for_cloud(f"agent pool {claim.name} is being deleted", env.settings.pool_poll_interval)


def _waiting_for_cloud(message: str, requeue_after: float) -> Ending:
    return Ending(drained=True, detached=True, message=message, requeue_after=requeue_after)


def _message(error: CloudError | None) -> str:
    return f"{error.reason}: {error.message}" if error is not None else ""


def _retry_key(claim: Claim) -> str:
    """Refused deletions wait for themselves only: an hour's wait for quota must not delay the end."""
    return f"{claim.uid}/termination"


def _count_node(node: Obj, env: Environment) -> None:
    now = env.clock.now()
    env.metrics.nodes_terminated.inc()
    created = node["metadata"].get("creationTimestamp")
    deleted = node["metadata"].get("deletionTimestamp")
    if created:
        env.metrics.node_lifetime.observe((now - parse_time(created)).total_seconds())
    if deleted:
        env.metrics.node_termination.observe((now - parse_time(deleted)).total_seconds())
