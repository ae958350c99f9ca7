"""What a claim's requirements ask of any cloud."""

from __future__ import annotations

from kaito_hooks.api import labels, node_labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.errors import InvalidRequest

ON_DEMAND, SPOT = "on-demand", "spot"
INVALID_CLAIM = "InvalidClaim"


def admits(claim: Claim, key: str, value: str) -> bool:
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


def capacity_type(claim: Claim) -> str:
    """How the machine is paid for: on demand wherever the claim admits it. InvalidRequest if it admits neither."""
    for kind in (ON_DEMAND, SPOT):
        if admits(claim, labels.CAPACITY_TYPE, kind):
            return kind
    raise InvalidRequest(
        INVALID_CLAIM,
        f"the requirements for {labels.CAPACITY_TYPE} admit neither {ON_DEMAND} nor {SPOT}, and there is no other",
    )


def node_label_values(claim: Claim) -> dict[str, str]:
    """Labels that requirements with a single value imply for the Node; values that no label may have imply none."""
    keys = {requirement.key for requirement in claim.requirements if node_labels.is_key(requirement.key)}
    found = {key: value for key in sorted(keys) if (value := claim.requirement(key)) is not None}
    return {key: value for key, value in found.items() if node_labels.is_value(value)}
