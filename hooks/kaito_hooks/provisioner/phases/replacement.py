"""What AKS does to a machine that we hold: an upgrade reimages it and has its Node register anew.

AKS deletes the Node object before it reimages the machine, and the new kubelet takes over a Node that a finalizer still
holds instead of registering. So our finalizer must go at once, and the new Node gets what the old one had. See
https://learn.microsoft.com/azure/aks/upgrade-aks-node-pools-rolling.
"""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.phases import finalizer
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.provisioner.phases.initialization import initialization
from kaito_hooks.provisioner.phases.registration import registration
from kaito_hooks.runtime import NotFound, Obj


def let_go(claim: Claim, node: Obj, env: Environment) -> bool:
    """Take our finalizer off a Node that is being deleted, if the cloud is replacing it; False if it is not.

    Raises CloudError when the cloud does not say.
    """
    instance = env.cloud.get(claim.name)
    if instance is None or not instance.may_belong_to(claim) or not instance.state.replaces_nodes:
        return False
    if finalizer.remove(env.client, resources.NODE, node):
        env.events.event(
            claim.object,
            "Normal",
            "NodeReplaced",
            f"Node {nodes.name(node)} was deleted while agent pool {instance.name} is {instance.state.value}: "
            "it is expected to register anew",
        )
    return True


def take_over(claim: Claim, env: Environment) -> float | None:
    """Register and initialize a Node that joined in place of the registered claim's first one.

    Seconds until the next look; None = an event will tell, or nothing is to do.
    """
    found = env.nodes.of_provider_id(claim.provider_id)
    if len(found) != 1 or nodes.deleting(found[0]):
        return None
    node = found[0]
    if not nodes.is_registered(node):
        return None if _registered_by_now(node, env) else registration(claim, env).requeue_after
    if claim.steps["initialized"].done and nodes.labels_of(node).get(labels.INITIALIZED) != "true":
        return initialization(claim, env).requeue_after
    return None


def _registered_by_now(node: Obj, env: Environment) -> bool:
    """Whether the cache has not caught up with a registration, or the Node is gone."""
    try:
        return nodes.is_registered(env.client.get(resources.NODE, nodes.name(node)))
    except NotFound:
        return True
