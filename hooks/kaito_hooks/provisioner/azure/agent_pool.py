"""The agent pool of a claim: Claim -> Order, checked, and Order -> the body of ARM's PUT.

The sentences of the InvalidRequest errors are for the user.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from azure.mgmt.containerservice.models import AgentPool
from azure.mgmt.containerservice.models import AgentPoolManagedClusterAgentPoolProfileProperties as PoolProperties

from kaito_hooks.api import labels, node_labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.cloud import Order
from kaito_hooks.provisioner.errors import InvalidRequest
from kaito_hooks.provisioner.requirements import INVALID_CLAIM, SPOT, admits, capacity_type
from kaito_hooks.runtime import parse_quantity

NAME_PATTERN = "^[a-z][a-z0-9]{0,11}$"
DISK_KEYS = ("storage", "ephemeral-storage")
SMALLEST_DISK_GIB = 30
IMAGE_FAMILIES = {"ubuntu": "Ubuntu", "azurelinux": "AzureLinux"}
DEFAULT_IMAGE_FAMILY = "Ubuntu"
GPU_SIZES = "Standard_N"
TIMESTAMP_FORMAT = "%Y-%m-%dT%H-%M-%SZ"

_ZONE = re.compile(r"[a-z0-9]+-[1-9]")
# A p among the letters behind the number of CPUs, and NVIDIA's Grace:
# https://learn.microsoft.com/azure/virtual-machines/vm-naming-conventions
_ARM = re.compile(r"Standard_[A-Z]+\d+(-\d+)?([a-z]*p[a-z]*(_.*)?|.*_GB\d+(_.*)?)", re.IGNORECASE)
_GIB = 1 << 30
# https://learn.microsoft.com/azure/aks/spot-node-pool: AKS gives the Nodes of such a pool this taint.
SPOT_TAINT = "kubernetes.azure.com/scalesetpriority=spot:NoSchedule"


def order(claim: Claim, now: datetime, *, image_family: str = DEFAULT_IMAGE_FAMILY) -> Order:
    """The order for a claim; InvalidRequest says what is wrong with it. ``image_family`` boots unless it names one."""
    if not re.fullmatch(NAME_PATTERN, claim.name):
        raise InvalidRequest(
            INVALID_CLAIM, f"agentpool name({claim.name}) is invalid, must match regex pattern: {NAME_PATTERN}"
        )
    instance_type = claim.requirement(labels.INSTANCE_TYPE)
    if not instance_type:
        raise InvalidRequest(
            INVALID_CLAIM,
            f"{claim.kind} {claim.name} has no requirement for instance type: "
            f"exactly one value of {labels.INSTANCE_TYPE} with operator In is needed",
        )
    if not admits(claim, labels.OPERATING_SYSTEM, "linux"):
        raise InvalidRequest(
            INVALID_CLAIM,
            f"the requirements for {labels.OPERATING_SYSTEM} do not admit linux, and nodes have no other system",
        )
    _check_architecture(claim, instance_type)
    family, warning = _image_family(claim, image_family)
    return Order(
        name=claim.name,
        claim_uid=claim.uid,
        instance_type=instance_type,
        region=claim.requirement(labels.REGION) or "",
        zones=_zones(claim),
        spot=capacity_type(claim) == SPOT,
        image_family=family,
        labels=_pool_labels(claim, instance_type, now),
        taints=claim.taints,
        disk_gib=_disk(claim),
        created=now,
        warning=warning or "",
    )


def agent_pool(order: Order, *, fields: Mapping[str, Any] | None = None) -> AgentPool:
    """The body of the PUT: the order, over ``fields`` of the SDK's model. What neither has is AKS's default."""
    properties = PoolProperties(**(fields or {}))
    properties.count = 1
    properties.vm_size = order.instance_type
    properties.os_type = "Linux"
    properties.os_sku = order.image_family
    properties.type_properties_type = "VirtualMachineScaleSets"
    properties.node_labels = dict(order.labels)
    properties.node_taints = [f"{taint.key}={taint.value}:{taint.effect}" for taint in order.taints]
    if order.zones:
        properties.availability_zones = [zone.rpartition("-")[2] for zone in order.zones]
    if order.spot:
        properties.scale_set_priority = "Spot"
        properties.scale_set_eviction_policy = "Delete"
        properties.spot_max_price = -1.0
        if SPOT_TAINT not in (properties.node_taints or ()):
            properties.node_taints = [*(properties.node_taints or ()), SPOT_TAINT]
    if order.disk_gib is not None:
        properties.os_disk_size_gb = order.disk_gib
    return AgentPool(properties=properties)


def _image_family(claim: Claim, default: str) -> tuple[str, str | None]:
    """The node image to boot, and a warning if the claim names one that is not known."""
    wanted = claim.annotations.get(labels.NODE_IMAGE_FAMILY, "")
    known = IMAGE_FAMILIES.get(wanted.lower())
    if known or not wanted:
        return known or default, None
    return (
        default,
        f"annotation {labels.NODE_IMAGE_FAMILY} names {wanted!r}, which is not one of "
        f"{', '.join(IMAGE_FAMILIES)}: {default} is used",
    )


def _zones(claim: Claim) -> tuple[str, ...]:
    """The zones that all requirements admit, by name; none when the claim does not care."""
    concerned = [requirement for requirement in claim.requirements if requirement.key == labels.ZONE]
    named = sorted({value for requirement in concerned if requirement.operator == "In" for value in requirement.values})
    if not named and all(requirement.operator == "Exists" for requirement in concerned):
        return ()
    zones = tuple(zone for zone in named if admits(claim, labels.ZONE, zone))
    if not zones:
        raise InvalidRequest(
            INVALID_CLAIM,
            f"the requirements for {labels.ZONE} leave no zone: name at least one with operator In, as eastus-1",
        )
    for zone in zones:
        if not _ZONE.fullmatch(zone):
            raise InvalidRequest(
                INVALID_CLAIM, f"{labels.ZONE} {zone!r} is not a region and the number of a zone, as eastus-1"
            )
    return zones


def _check_architecture(claim: Claim, instance_type: str) -> None:
    found = "arm64" if _ARM.fullmatch(instance_type) else "amd64"
    if not admits(claim, labels.ARCHITECTURE, found):
        raise InvalidRequest(
            INVALID_CLAIM,
            f"instance type {instance_type} has architecture {found}, which the requirements for "
            f"{labels.ARCHITECTURE} do not admit",
        )


def _disk(claim: Claim) -> int | None:
    sizes = []
    for key in DISK_KEYS:
        text = claim.requests.get(key)
        if text is None:
            continue
        try:
            sizes.append(parse_quantity(text))
        except ValueError as error:
            raise InvalidRequest(INVALID_CLAIM, f"resources.requests.{key}: {error}") from None
    largest = max(sizes, default=0)
    if any(size < 0 for size in sizes):
        raise InvalidRequest(INVALID_CLAIM, "the requested disk is smaller than nothing")
    if largest == 0:
        return None
    gib = math.ceil(largest / _GIB)
    if gib < SMALLEST_DISK_GIB:
        raise InvalidRequest(
            INVALID_CLAIM, f"a disk of {gib} GiB is requested, the smallest is {SMALLEST_DISK_GIB} GiB"
        )
    return gib


def _pool_labels(claim: Claim, instance_type: str, now: datetime) -> dict[str, str]:
    # AKS refuses most reserved keys in a pool; a Node that does not have them by itself gets them when it registers.
    kept = {key: value for key, value in claim.labels.items() if not node_labels.is_reserved(key)}
    return {
        **kept,
        claim.encoding.owner_label: claim.labels.get(claim.encoding.owner_label, claim.encoding.owner),
        labels.MACHINE_TYPE: "gpu" if GPU_SIZES.lower() in instance_type.lower() else "cpu",
        labels.CREATION_TIMESTAMP: now.strftime(TIMESTAMP_FORMAT),
        labels.CLAIM_UID: claim.uid,
    }
