"""The initialization phase: the registered Node is fit for Pods. Sticky: a Node that fails later is health.py's."""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim, read_taints
from kaito_hooks.provisioner import nodes
from kaito_hooks.provisioner.outcome import Outcome, Progress
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.provisioner.phases.registration import sizes
from kaito_hooks.runtime import Obj, parse_quantity

_EPHEMERAL_TAINTS = (
    labels.NOT_READY_TAINT,
    labels.UNREACHABLE_TAINT,
    labels.UNINITIALIZED_TAINT,
    labels.UNREGISTERED_TAINT,
)
# The size of a pool's disk is asked for under a name that no Node reports.
_NEVER_ALLOCATABLE = ("storage",)
_CACHE_LAG = 1.0


def initialization(claim: Claim, env: Environment) -> Outcome:
    """Events on the Node bring us back; nothing is polled."""
    found = env.nodes.of_provider_id(claim.provider_id)
    if len(found) != 1:
        return _waiting("NodeNotFound", f"there are {len(found)} Nodes with the providerID {claim.provider_id}")
    node = found[0]
    if not nodes.is_registered(node):
        # The cache has not caught up with the registration, whose taints this step must see.
        return Outcome.unchanged(requeue_after=_CACHE_LAG)
    waiting = _unfit(claim, node)
    if waiting is not None:
        return waiting

    def label(current: Obj) -> None:
        current["metadata"].setdefault("labels", {})[labels.INITIALIZED] = "true"

    if nodes.labels_of(node).get(labels.INITIALIZED) != "true" and nodes.change(env.client, node, label) is None:
        return _waiting("NodeNotFound", f"Node {nodes.name(node)} is gone")
    return Outcome(Progress.DONE, status=sizes(node))


def _unfit(claim: Claim, node: Obj) -> Outcome | None:
    """What the Node still lacks."""
    name = nodes.name(node)
    if not nodes.is_ready(node):
        return _waiting("NodeNotReady", f"Node {name} is not Ready")
    taints = read_taints((node.get("spec") or {}).get("taints"))
    for startup in claim.startup_taints:
        if any((taint.key, taint.effect) == (startup.key, startup.effect) for taint in taints):
            return _waiting("StartupTaintsExist", f"Node {name} still has the startup taint {startup}")
    for taint in taints:
        if taint.key in _EPHEMERAL_TAINTS:
            return _waiting("KnownEphemeralTaintsExist", f"Node {name} still has the taint {taint}")
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    for key, amount in sorted(claim.requests.items()):
        if key not in _NEVER_ALLOCATABLE and _positive(amount) and not _positive(allocatable.get(key, "0")):
            return _waiting("ResourceNotRegistered", f"Node {name} does not offer {key} yet")
    return None


def _positive(amount: str) -> bool:
    try:
        return parse_quantity(amount) > 0
    except ValueError:
        return False


def _waiting(reason: str, message: str) -> Outcome:
    return Outcome(Progress.WAITING, reason, message)
