"""Labels of Nodes: which ones are not free to choose, and what a key, a value and a Node's name look like.

https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
"""

from __future__ import annotations

import re

from kaito_hooks.api import labels

RESERVED_DOMAINS = ("kubernetes.io", "k8s.io", "karpenter.sh", "kubernetes.azure.com")
"""With their subdomains: their labels say what kubelet, cloud and provisioner know of a Node. The first three are
those that Karpenter restricts, the last is AKS's.
"""

RESERVED_KEYS = (labels.AGENT_POOL, labels.ACCELERATOR)
"""What AKS says of a Node in labels without a domain."""

REQUESTABLE_KEYS = (labels.ZONE, labels.REGION, labels.ARCHITECTURE, labels.OPERATING_SYSTEM)
"""The reserved ones of which a claim may choose the value, by a requirement: of those that Karpenter knows well."""

_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}")
_VALUE = re.compile(rf"({_NAME})?")
_PART = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NODE_NAME = re.compile(rf"(?=.{{1,253}}$){_PART}(\.{_PART})*")


def is_reserved(key: str) -> bool:
    """Whether a label describes the Node itself, so that nobody can ask for a new Node with a value of their own."""
    domain = key.rpartition("/")[0]
    return key in RESERVED_KEYS or any(
        domain == reserved or domain.endswith(f".{reserved}") for reserved in RESERVED_DOMAINS
    )


def is_requestable(key: str) -> bool:
    """Whether a Node can be bought with a value of one's own for this label."""
    return key in REQUESTABLE_KEYS or not is_reserved(key)


def is_key(text: str) -> bool:
    """Whether a label may have this key."""
    return _KEY.fullmatch(text) is not None


def is_value(text: str) -> bool:
    """Whether a label may have this value."""
    return _VALUE.fullmatch(text) is not None


def is_node_name(text: str) -> bool:
    """Whether a Node may have this name."""
    return _NODE_NAME.fullmatch(text) is not None
