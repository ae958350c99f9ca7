"""The registration phase: the claim's one Node is found by providerID and made the claim's."""

from __future__ import annotations

from functools import partial

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner import nodes
from kaito_hooks.provisioner.outcome import Outcome, Progress
from kaito_hooks.provisioner.phases import finalizer
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.runtime import Obj

_REQUEUE = 15.0


def registration(claim: Claim, env: Environment) -> Outcome:
    """Finalizer, owner, taints, annotations and labels go onto the Node in one write.

    What the Node says of itself stays: its pool, zone and size are no claim's to change.
    """
    found = env.nodes.of_provider_id(claim.provider_id)
    if not found:
        return Outcome(
            Progress.WAITING,
            "NodeNotFound",
            f"no Node has the providerID {claim.provider_id}",
            requeue_after=_REQUEUE,
        )
    if len(found) > 1:
        return Outcome(
            Progress.BROKEN,
            "MultipleNodesFound",
            f"several Nodes have the providerID {claim.provider_id}: {', '.join(nodes.name(node) for node in found)}",
            requeue_after=_REQUEUE,
        )
    node = found[0]
    if nodes.deleting(node):
        return Outcome(
            Progress.WAITING, "NodeNotFound", f"Node {nodes.name(node)} is being deleted", requeue_after=_REQUEUE
        )
    if claim.startup_taints and not nodes.is_registered(node) and not _has_taint(node, labels.UNREGISTERED_TAINT):
        env.events.event(
            claim.object,
            "Warning",
            "UnregisteredTaintMissing",
            f"Node {nodes.name(node)} joined without taint {labels.UNREGISTERED_TAINT}: "
            "Pods may have started before the claim's startup taints were there",
        )
    written = nodes.change(env.client, node, partial(_adopt, claim=claim))
    if written is None:
        return Outcome(Progress.WAITING, "NodeNotFound", f"Node {nodes.name(node)} is gone", requeue_after=_REQUEUE)
    if not nodes.is_registered(node):
        env.metrics.nodes_created.inc()
    return Outcome(Progress.DONE, status={"nodeName": nodes.name(node), **sizes(written)})


def sizes(node: Obj) -> Obj:
    """Capacity and allocatable of a Node, as fields of a claim's status."""
    status = node.get("status") or {}
    return {key: status[key] for key in ("capacity", "allocatable") if status.get(key)}


def _adopt(node: Obj, *, claim: Claim) -> None:
    metadata = node["metadata"]
    first_time = not nodes.is_registered(node)
    if not finalizer.present(node) and not nodes.deleting(node):
        metadata["finalizers"] = [*(metadata.get("finalizers") or ()), labels.TERMINATION_FINALIZER]
    owners = metadata.setdefault("ownerReferences", [])
    if all(owner.get("uid") != claim.uid for owner in owners):
        owners.append(
            {
                "apiVersion": claim.encoding.api_version,
                "kind": claim.kind,
                "name": claim.name,
                "uid": claim.uid,
                "blockOwnerDeletion": True,
            }
        )
    metadata["labels"] = {**claim.labels, **(metadata.get("labels") or {}), labels.REGISTERED: "true"}
    # What explains the claim's own life is not a property of its Node.
    own = (
        labels.POOL_SUCCEEDED_AT,
        labels.TERMINATION_TIMESTAMP,
        labels.FITTING_INSTANCE_TYPES,
        "kubectl.kubernetes.io/last-applied-configuration",
    )
    annotations = {key: value for key, value in claim.annotations.items() if key not in own}
    if annotations:
        metadata["annotations"] = {**annotations, **(metadata.get("annotations") or {})}
    if metadata["labels"].get(labels.DO_NOT_SYNC_TAINTS) != "true":
        # Startup taints are lifted by whoever prepares the Node; putting them on again would undo that.
        wanted = (*claim.taints, *claim.startup_taints) if first_time else claim.taints
        nodes.add_taints(node, [taint.to_json() for taint in wanted])
    taints = [t for t in node["spec"].get("taints") or () if t.get("key") != labels.UNREGISTERED_TAINT]
    if taints or "taints" in node["spec"]:
        node["spec"]["taints"] = taints


def _has_taint(node: Obj, key: str) -> bool:
    return any(taint.get("key") == key for taint in (node.get("spec") or {}).get("taints") or ())
