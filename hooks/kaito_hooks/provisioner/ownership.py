"""Whose an agent pool or a Node is, by its labels only (AKS copies a pool's labels onto its Nodes).

Anything that is not ours is never written to and never deleted.
"""

from __future__ import annotations

from collections.abc import Mapping

from kaito_hooks.api import labels
from kaito_hooks.api.claim import ENCODINGS, Claim

_WORKLOAD_LABELS = (labels.WORKSPACE, labels.WORKSPACE_NAMESPACE, labels.RAG_ENGINE)


def is_ours(found: Mapping[str, str]) -> bool:
    """Whether this provisioner or upstream's gpu-provisioner made it.

    Upstream leaves no claim UID; it is recognised by machine type, owner label and workspace or ragengine together.
    """
    return bool(found.get(labels.CLAIM_UID)) or _made_by_upstream(found)


def belongs_to(found: Mapping[str, str], claim: Claim) -> bool:
    """Whether what carries these labels, and the claim's name, was made for this very claim.

    A claim of the same name with another UID is another claim. Upstream's pools are known by their workspace labels.
    """
    uid = found.get(labels.CLAIM_UID)
    if uid:
        return uid == claim.uid
    return _made_by_upstream(found) and all(found.get(key) == claim.labels.get(key) for key in _WORKLOAD_LABELS)


def _made_by_upstream(found: Mapping[str, str]) -> bool:
    return (
        labels.MACHINE_TYPE in found
        and any(found.get(encoding.owner_label) == encoding.owner for encoding in ENCODINGS.values())
        and (labels.WORKSPACE in found or labels.RAG_ENGINE in found)
    )
