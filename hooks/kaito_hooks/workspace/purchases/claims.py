"""Claims: their names, how many to buy, what to say of those that are not ready.

A claim's name is a function of the Workspace and a slot number, so buying the same node twice is AlreadyExists,
whatever crashed in between and however stale a cache is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from kaito_hooks.api import labels, node_labels
from kaito_hooks.api.catalog import Catalog
from kaito_hooks.api.claim import OUR_CLASS, Claim, ClaimSpec, Requirement
from kaito_hooks.api.workspace import ResourceSpec, Workspace
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.purchases.alternatives import alternatives
from kaito_hooks.workspace.rules import formats

MAX_SALT = 3
"""How many other names a slot may take when its first belongs to somebody else."""

FAILURES = frozenset(
    {
        "QuotaExceeded",
        "InstanceTypeUnavailable",
        "InsufficientCapacity",
        "InsufficientCapacityError",
        "ClusterFull",
        "NotAllowed",
        "AuthenticationFailed",
        "ConfigurationError",
        "InvalidRequest",
        "PoolNameConflict",
        "LaunchFailed",
        "MultipleNodesFound",
        "NodeClassNotReady",
        "NodeClassReadinessUnknown",
        "UnhealthyDependents",
    }
)
"""Reasons on a claim's steps that mean: this will not become a node by waiting."""
UNANSWERED = "the provisioner has not answered yet"
NO_CAPACITY = "all requested instance types were unavailable during launch"


def claim_name(workspace: Workspace, slot: int, salt: int = 0) -> str:
    """``ws`` and 9 hex digits: 11 characters, AKS's limit for a pool name is 12."""
    identity = f"{workspace.namespace}/{workspace.name}/{workspace.uid}/{slot}" + (f"/{salt}" if salt else "")
    return "ws" + hashlib.sha256(identity.encode()).hexdigest()[:9]


def slot_names(workspace: Workspace, slot: int) -> tuple[str, ...]:
    """All names that the slot's claim may have."""
    return tuple(claim_name(workspace, slot, salt) for salt in range(MAX_SALT + 1))


def slots_by_name(workspace: Workspace, *, count: int) -> dict[str, int]:
    """Every name that a claim of one of ``count`` slots may have, and its slot."""
    return {name: slot for slot in range(count) for name in slot_names(workspace, slot)}


def next_name(workspace: Workspace, slot: int, salts: Mapping[int, int]) -> str:
    """The name of the slot's next claim; ``salts``: how many of its names belong to somebody else, by slot."""
    return claim_name(workspace, slot, min(salts.get(slot, 0), MAX_SALT))


def claim_spec(
    name: str,
    workspace: Workspace,
    resource: ResourceSpec,
    *,
    disk_gib: int,
    catalog: Catalog | None,
    settings: Settings,
) -> ClaimSpec:
    """What to ask for; the instance type is spelt as the Catalog spells it."""
    others = alternatives(workspace, catalog)
    return ClaimSpec(
        name=name,
        labels={
            **resource.match_labels,
            labels.WORKSPACE: workspace.name,
            labels.WORKSPACE_NAMESPACE: workspace.namespace,
        },
        instance_type=_bought_type(resource, catalog),
        gpu=_is_listed(resource, catalog) or may_have_gpus(resource.instance_type),
        disk_gib=disk_gib,
        # Without them the Node would come with a zone, say, of the cloud's choice, and never match.
        requirements=tuple(
            Requirement(key, "In", (resource.match_labels[key],))
            for key in node_labels.REQUESTABLE_KEYS
            if key in resource.match_labels
        ),
        annotations={labels.FITTING_INSTANCE_TYPES: ", ".join(others)} if others else {},
        cloud=catalog.cloud if catalog else settings.cloud,
        node_class=settings.node_claims.node_class,
        extra_requirements=settings.node_claims.extra_requirements,
        disk_request_key=settings.node_claims.disk_request_key,
    )


def _bought_type(resource: ResourceSpec, catalog: Catalog | None) -> str:
    listed = catalog.find_instance_type(resource.instance_type) if catalog else None
    return listed.name if listed else resource.instance_type


def _is_listed(resource: ResourceSpec, catalog: Catalog | None) -> bool:
    return catalog is not None and catalog.find_instance_type(resource.instance_type) is not None


def unobtainable(resource: ResourceSpec, catalog: Catalog | None) -> str:
    """Why no node that is bought can have the labels that the Workspace's selector wants; "" if one can.

    The type that is bought may be among them, as its nodes spell it.
    """
    own = (labels.INSTANCE_TYPE, _bought_type(resource, catalog))
    wanted = sorted(key for key, value in resource.match_labels.items() if (key, value) != own)
    key = next((key for key in wanted if not node_labels.is_requestable(key)), "")
    if not key:
        return ""
    return (
        f"invalid value: no node can be bought with a label {formats.shown(key)} of your own, it describes the node "
        "itself; choose another label, or name resource.count nodes that have it in resource.preferredNodes"
    )


def may_have_gpus(unlisted: str) -> bool:
    """Of the sizes that no Catalog lists only Azure's are known to have none, unless they begin with N."""
    name = unlisted.lower()
    return name.startswith("standard_n") or not name.startswith("standard_")


def is_failure(reason: str, message: str) -> bool:
    """Whether a step's condition says more than that it is waited for."""
    return reason in FAILURES or NO_CAPACITY in message


@dataclass(frozen=True, slots=True)
class Finding:
    """What there is to say of a claim that is not ready, and when it will change by itself."""

    claim: str
    kind: Literal["waiting", "failed", "late"]
    text: str
    look_at: datetime | None = None


def examine(claim: Claim, *, settings: Settings, now: datetime) -> Finding:
    """Judge one claim that is not ready yet.

    ``failed``: its provisioner gave a reason, or none answers. ``late``: longer than ``claim_ready``.
    """
    created = claim.creation_timestamp or now
    deaf_at = created + timedelta(seconds=settings.timeouts.claim_without_condition)
    late_at = created + timedelta(seconds=settings.timeouts.claim_ready)
    said = claim.first_waiting()
    if said is not None:
        text = f"{said[0]}: {said[1]}" if said[0] else said[1]
        if is_failure(*said):
            return Finding(claim.name, "failed", text)
    elif not claim.conditions and now >= deaf_at:
        return Finding(claim.name, "failed", f"no provisioner answers for {claim.kind}s; {_who_should(claim)}?")
    else:
        text = "its node is on the way" if claim.conditions else UNANSWERED
    if now >= late_at:
        return Finding(claim.name, "late", text)
    upcoming = [moment for moment in (None if claim.conditions else deaf_at, late_at) if moment and moment > now]
    return Finding(claim.name, "waiting", text, min(upcoming))


def _who_should(claim: Claim) -> str:
    wanted = claim.node_class
    if wanted is None or (wanted.group, wanted.kind) == (OUR_CLASS.group, OUR_CLASS.kind):
        return f"is gpu-provisioner installed with nodeAPI={claim.kind}"
    return f"is a Karpenter installed that serves {wanted.kind}.{wanted.group}"
