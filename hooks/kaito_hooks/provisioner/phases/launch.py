"""The launch phase: from a claim with our finalizer to a machine whose Node is known by its providerID.

The instance's own state is the only memory, so a crash at any line is followed by the same look again:

    nothing                   order it, unless the back-off says not yet
    being made, or unknown    wait
    ready                     wait for its Node
    broken                    write the cause down, then delete it, then order again after the back-off
    being deleted, or made    wait until it is gone
      for an older claim
    somebody else's           say so; never touch it

Looks, orders and deletions that fail wait each for themselves, and none is tried before its time, whatever wakes the
claim: what it writes about a refusal wakes it, too.
"""

from __future__ import annotations

import math
from dataclasses import replace

from kaito_hooks.api import labels
from kaito_hooks.api.claim import MACHINE, Claim
from kaito_hooks.provisioner import nodes
from kaito_hooks.provisioner.cloud import Instance, State
from kaito_hooks.provisioner.errors import (
    CAPACITY_ERRORS,
    CloudError,
    InvalidRequest,
    LaunchFailed,
    OperationInProgress,
    PoolNameConflict,
)
from kaito_hooks.provisioner.outcome import Outcome, Progress
from kaito_hooks.provisioner.phases import finalizer
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.provisioner.phases.liveness import noted_at
from kaito_hooks.provisioner.phases.polling import LONGEST_DELETION_RETRY, PATIENCE, listing_age, look_again
from kaito_hooks.provisioner.refusal_text import refusal_text
from kaito_hooks.provisioner.requirements import capacity_type, node_label_values
from kaito_hooks.provisioner.resources import CLAIMS
from kaito_hooks.runtime import Conflict, NotFound, Obj, format_time

AZURE_ZONE = "karpenter.k8s.azure/zone"

_CREATING, _WAITING_FOR_NODE = "AgentPoolCreating", "WaitingForNode"
_UNDER_WAY = (_CREATING, _WAITING_FOR_NODE)
_BLIND = 8.0  # seconds between looks from the fourth in a row that failed

# What a Node says about itself and a claim repeats, for its columns and for selectors.
_CLOUD_LABELS = (labels.INSTANCE_TYPE, labels.ARCHITECTURE, labels.OPERATING_SYSTEM, labels.ZONE, labels.REGION)


def launch(claim: Claim, env: Environment) -> Outcome:
    """One look, at most one write to the cloud; CloudErrors become outcomes."""
    wait = env.backoff.remaining(look_key(claim))
    if wait > 0:
        return Outcome.unchanged(requeue_after=wait)
    try:
        instance = env.cloud.get(claim.name, max_age=listing_age(claim.creation_timestamp, env))
        _check_ours(instance)
    except CloudError as error:
        return _unseen(claim, error, env)
    env.backoff.forget(look_key(claim))
    try:
        if instance is None:
            return _order(claim, env)
        return _follow(claim, instance, env)
    except CloudError as error:
        return _refused(claim, error, env)


def look_key(claim: Claim) -> str:
    """Looks that fail are counted for themselves: no order was refused."""
    return f"{claim.uid}/look"


def deletion_key(claim: Claim) -> str:
    """Deletions of broken machines that fail are counted for themselves: the claim goes on to tell what broke them."""
    return f"{claim.uid}/deletion"


def _unseen(claim: Claim, error: CloudError, env: Environment) -> Outcome:
    """One failed look, of which all claims share one, is no news of a machine that is being made; several are."""
    transient = isinstance(error, LaunchFailed) and error.transient
    delay = env.backoff.failed(look_key(claim), error, longest=_BLIND if transient else math.inf)
    if transient and delay < _BLIND and claim.steps["launched"].reason in _UNDER_WAY:
        return Outcome.unchanged(requeue_after=delay)
    again = env.backoff.again(look_key(claim))
    return Outcome.refused(error, message=refusal_text(claim, error), requeue_after=delay, again=again)


def _check_ours(instance: Instance | None) -> None:
    if instance is not None and not instance.ours:
        raise PoolNameConflict(
            "PoolNameConflict", f"agent pool {instance.name} exists and was not made by this provisioner"
        )


def _follow(claim: Claim, instance: Instance, env: Environment) -> Outcome:
    if not instance.belongs_to(claim) or instance.state is State.DELETING:
        return _until_gone(claim, instance, env)
    if instance.state.broken:
        return _give_up(claim, instance, env)
    if instance.state is State.SUCCEEDED:
        return _find_node(claim, instance, env)
    return _creating(claim, instance, env)


def _order(claim: Claim, env: Environment) -> Outcome:
    env.backoff.forget(deletion_key(claim))
    refused, wait = env.backoff.last_error(claim.uid), env.backoff.remaining(claim.uid)
    if refused is not None and wait > 0:
        return _refusal(claim, refused, env, requeue_after=wait)
    try:
        wanted = env.cloud.order(claim, env.clock.now())
    except InvalidRequest as error:
        # Known without asking anybody: a Machine whose spec is mended is ordered at once, not after a back-off.
        return Outcome.refused(error, requeue_after=error.delay(1))
    _check_still_wanted(claim, env)
    instance = env.cloud.ensure(wanted)
    _check_ours(instance)
    if instance.created == wanted.created.replace(microsecond=0) and instance.claim_uid == claim.uid:
        env.metrics.claims_created.labels(claim.kind).inc()
        if wanted.warning:
            env.events.event(claim.object, "Warning", "UnknownNodeImageFamily", wanted.warning)
    return _follow(claim, instance, env)


def _check_still_wanted(claim: Claim, env: Environment) -> None:
    """The cache may be old; before money is spent the claim must be there, not deleting, and hold for us."""
    try:
        current = env.client.get(CLAIMS[claim.kind], claim.name)
    except NotFound:
        raise Conflict(f"{claim.kind} {claim.name} is gone", status=409, reason="Conflict") from None
    metadata = current["metadata"]
    if metadata["uid"] != claim.uid or metadata.get("deletionTimestamp") or not finalizer.present(current):
        raise Conflict(f"{claim.kind} {claim.name} has changed", status=409, reason="Conflict")


def _creating(claim: Claim, instance: Instance, env: Environment) -> Outcome:
    message = f"agent pool {instance.name} is being created"
    last = env.backoff.last_error(claim.uid)
    if last is not None:
        message += f"; the last try was refused with {last.reason}: {refusal_text(claim, last)}"
    return Outcome(Progress.WAITING, _CREATING, message, requeue_after=look_again(instance.created, env))


def _until_gone(claim: Claim, instance: Instance, env: Environment) -> Outcome:
    wait = look_again(claim.creation_timestamp, env)
    refused = env.backoff.last_error(claim.uid)
    if refused is not None and instance.belongs_to(claim):
        return _refusal(claim, refused, env, requeue_after=wait)
    whose = "" if instance.belongs_to(claim) else " of an older claim"
    return Outcome(
        Progress.WAITING,
        "AgentPoolDeleting",
        f"agent pool {instance.name}{whose} must be gone before it can be created",
        requeue_after=wait,
    )


def _give_up(claim: Claim, instance: Instance, env: Environment) -> Outcome:
    """A broken instance: its cause is on the claim before the instance, and with it the cause, is deleted."""
    outcome = _broken(claim, instance, env)
    if not outcome.is_recorded_in(claim.steps["launched"]):
        return outcome
    wait = env.backoff.remaining(deletion_key(claim))
    if wait > 0:
        return replace(outcome, requeue_after=wait)
    try:
        current = env.cloud.get(claim.name)
        if current is not None and current.state.broken and current.belongs_to(claim):
            env.cloud.delete(current)
            env.metrics.pools_failed.labels(outcome.reason).inc()
            # Accepted is not done: a deletion may fail later, and then it is not repeated at each look.
            still_there = LaunchFailed("", f"agent pool {instance.name} is still there after its deletion was accepted")
            env.backoff.failed(deletion_key(claim), still_there, longest=LONGEST_DELETION_RETRY)
            return outcome
    except CloudError as error:
        wait = env.backoff.failed(deletion_key(claim), error, longest=LONGEST_DELETION_RETRY)
        if not isinstance(error, OperationInProgress):
            message = f"agent pool {instance.name}, whose creation failed, cannot be deleted: {error.message}"
            env.events.event(claim.object, "Warning", "FailedTermination", message)
        return replace(outcome, requeue_after=wait)
    return _order(claim, env) if current is None else _follow(claim, current, env)


def _broken(claim: Claim, instance: Instance, env: Environment) -> Outcome:
    """The refusal of a broken instance. It is one loss, and its first cause counts: a deletion that fails brings
    another one.
    """
    found = instance.error or LaunchFailed("", f"the creation of agent pool {instance.name} failed without an error")
    env.backoff.failed(claim.uid, found, instance=instance.created or instance.etag)
    error = env.backoff.last_error(claim.uid) or found
    return _refusal(claim, error, env, requeue_after=env.settings.pool_poll_interval)


def _find_node(claim: Claim, instance: Instance, env: Environment) -> Outcome:
    named = [node for node in env.nodes.of_instance(claim) if nodes.provider_id(node) and not nodes.deleting(node)]
    machines = {nodes.provider_id(node) for node in named}
    if len(machines) == 1:
        env.backoff.forget(claim.uid)
        return Outcome(Progress.DONE, status={"providerID": machines.pop()}, labels=_merged_labels(claim, named[0]))
    annotations = {}
    if noted_at(claim, env.clock.now()) is None:
        annotations[labels.POOL_SUCCEEDED_AT] = format_time(env.clock.now())
    if machines:
        return Outcome(
            Progress.BROKEN,
            "MultipleNodesFound",
            f"agent pool {instance.name} has several Nodes: {', '.join(nodes.name(node) for node in named)}",
            requeue_after=env.settings.pool_poll_interval * PATIENCE,
            annotations=annotations,
        )
    return Outcome(
        Progress.WAITING,
        _WAITING_FOR_NODE,
        f"agent pool {instance.name} is ready, its Node has not joined yet",
        requeue_after=env.settings.pool_poll_interval * PATIENCE,
        annotations=annotations,
    )


def _merged_labels(claim: Claim, node: Obj) -> dict[str, str]:
    """Labels that the claim gains: from the cloud, then from its requirements; its own win over both."""
    found = nodes.labels_of(node)
    cloud = {key: found[key] for key in _CLOUD_LABELS if key in found}
    cloud[labels.CAPACITY_TYPE] = capacity_type(claim)
    if claim.encoding is MACHINE and labels.ZONE in found:
        cloud[AZURE_ZONE] = found[labels.ZONE]
    merged = {**cloud, **node_label_values(claim), **claim.labels}
    return {key: value for key, value in merged.items() if claim.labels.get(key) != value}


def _refused(claim: Claim, error: CloudError, env: Environment) -> Outcome:
    delay = env.backoff.failed(claim.uid, error)
    env.metrics.launch_errors.labels(error.reason).inc()
    return _refusal(claim, error, env, requeue_after=delay)


def _refusal(claim: Claim, error: CloudError, env: Environment, *, requeue_after: float) -> Outcome:
    """The outcome of the last order that was refused, or whose machine was broken, until the next one."""
    again = None if ends_claim(error, env) else env.backoff.again(claim.uid)
    return Outcome.refused(error, message=refusal_text(claim, error), requeue_after=requeue_after, again=again)


def ends_claim(error: CloudError, env: Environment) -> bool:
    """Karpenter's way with a type that cannot be had: the claim goes, and whoever made it chooses again."""
    return env.settings.delete_on_insufficient_capacity and isinstance(error, CAPACITY_ERRORS)
