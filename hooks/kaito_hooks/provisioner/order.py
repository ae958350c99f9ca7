"""What a claim asks for, checked: Claim -> Order. The sentences of its InvalidRequest errors are for the user."""

from __future__ import annotations

import math
import re
from datetime import datetime

from kaito_hooks.api import labels, node_labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.cloud import Order
from kaito_hooks.provisioner.errors import InvalidRequest
from kaito_hooks.runtime import parse_quantity

NAME_PATTERN = "^[a-z][a-z0-9]{0,11}$"
DISK_KEYS = ("storage", "ephemeral-storage")
SMALLEST_DISK_GIB = 30
IMAGE_FAMILIES = {"ubuntu": "Ubuntu", "azurelinux": "AzureLinux"}
DEFAULT_IMAGE_FAMILY = "Ubuntu"
GPU_SIZES = "Standard_N"
TIMESTAMP_FORMAT = "%Y-%m-%dT%H-%M-%SZ"

ON_DEMAND, SPOT = "on-demand", "spot"

_ZONE = re.compile(r"[a-z0-9]+-[1-9]")
# A p among the letters behind the number of CPUs, and NVIDIA's Grace:
# https://learn.microsoft.com/azure/virtual-machines/vm-naming-conventions
_ARM = re.compile(r"Standard_[A-Z]+\d+(-\d+)?([a-z]*p[a-z]*(_.*)?|.*_GB\d+(_.*)?)", re.IGNORECASE)
_GIB = 1 << 30
_CODE = "InvalidClaim"


def order(claim: Claim, now: datetime) -> Order:
    """The order for a claim; InvalidRequest says what is wrong with it."""
    if not re.fullmatch(NAME_PATTERN, claim.name):
        raise InvalidRequest(
            _CODE, f"agentpool name({claim.name}) is invalid, must match regex pattern: {NAME_PATTERN}"
        )
    instance_type = claim.requirement(labels.INSTANCE_TYPE)
    if not instance_type:
        raise InvalidRequest(
            _CODE,
            f"{claim.kind} {claim.name} has no requirement for instance type: "
            f"exactly one value of {labels.INSTANCE_TYPE} with operator In is needed",
        )
    if not _admits(claim, labels.OPERATING_SYSTEM, "linux"):
        system = claim.requirement(labels.OPERATING_SYSTEM)
        raise InvalidRequest(_CODE, f"operating system {system or 'linux'} is not supported, only linux is")
    _check_architecture(claim, instance_type)
    return Order(
        name=claim.name,
        claim_uid=claim.uid,
        instance_type=instance_type,
        region=claim.requirement(labels.REGION) or "",
        zones=_zones(claim),
        spot=capacity_type(claim) == SPOT,
        image_family=image_family(claim)[0],
        labels=_pool_labels(claim, instance_type, now),
        taints=claim.taints,
        disk_gib=_disk(claim),
        created=now,
    )


def image_family(claim: Claim) -> tuple[str, str | None]:
    """The node image to boot, and a warning if the claim names one that is not known."""
    wanted = claim.annotations.get(labels.NODE_IMAGE_FAMILY, "")
    known = IMAGE_FAMILIES.get(wanted.lower())
    if known or not wanted:
        return known or DEFAULT_IMAGE_FAMILY, None
    return (
        DEFAULT_IMAGE_FAMILY,
        f"annotation {labels.NODE_IMAGE_FAMILY} names {wanted!r}, which is not one of "
        f"{', '.join(IMAGE_FAMILIES)}: {DEFAULT_IMAGE_FAMILY} is used",
    )


def capacity_type(claim: Claim) -> str:
    """How the machine is paid for: on demand wherever the claim admits it. InvalidRequest if it admits neither."""
    for kind in (ON_DEMAND, SPOT):
        if _admits(claim, labels.CAPACITY_TYPE, kind):
            return kind
    raise InvalidRequest(
        _CODE,
        f"the requirements for {labels.CAPACITY_TYPE} admit neither {ON_DEMAND} nor {SPOT}, and there is no other",
    )


def node_label_values(claim: Claim) -> dict[str, str]:
    """Labels that requirements with a single value imply for the Node; values that no label may have imply none."""
    keys = {requirement.key for requirement in claim.requirements if node_labels.is_key(requirement.key)}
    found = {key: value for key in sorted(keys) if (value := claim.requirement(key)) is not None}
    return {key: value for key, value in found.items() if node_labels.is_value(value)}


def _zones(claim: Claim) -> tuple[str, ...]:
    """The zones that all requirements admit, by name; none when the claim does not care."""
    concerned = [requirement for requirement in claim.requirements if requirement.key == labels.ZONE]
    named = sorted({value for requirement in concerned if requirement.operator == "In" for value in requirement.values})
    if not named and all(requirement.operator == "Exists" for requirement in concerned):
        return ()
    zones = tuple(zone for zone in named if _admits(claim, labels.ZONE, zone))
    if not zones:
        raise InvalidRequest(
            _CODE, f"the requirements for {labels.ZONE} leave no zone: name at least one with operator In, as eastus-1"
        )
    for zone in zones:
        if not _ZONE.fullmatch(zone):
            raise InvalidRequest(_CODE, f"{labels.ZONE} {zone!r} is not a region and the number of a zone, as eastus-1")
    return zones


def _check_architecture(claim: Claim, instance_type: str) -> None:
    found = "arm64" if _ARM.fullmatch(instance_type) else "amd64"
    if not _admits(claim, labels.ARCHITECTURE, found):
        raise InvalidRequest(
            _CODE,
            f"instance type {instance_type} has architecture {found}, which the requirements for "
            f"{labels.ARCHITECTURE} do not admit",
        )


def _admits(claim: Claim, key: str, value: str) -> bool:
    """Whether all requirements for the key are met by a Node whose label has this value."""
    return all(
        {
            "In": value in requirement.values,
            "NotIn": value not in requirement.values,
            "Exists": True,
        }.get(requirement.operator, False)
        for requirement in claim.requirements
        if requirement.key == key
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
            raise InvalidRequest(_CODE, f"resources.requests.{key}: {error}") from None
    largest = max(sizes, default=0)
    if any(size < 0 for size in sizes):
        raise InvalidRequest(_CODE, "the requested disk is smaller than nothing")
    if largest == 0:
        return None
    gib = math.ceil(largest / _GIB)
    if gib < SMALLEST_DISK_GIB:
        raise InvalidRequest(_CODE, f"a disk of {gib} GiB is requested, the smallest is {SMALLEST_DISK_GIB} GiB")
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
