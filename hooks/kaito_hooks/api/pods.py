"""What the state of a Pod says, for every process that has to do with its node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def has_ended(pod: Mapping[str, Any]) -> bool:
    """Whether none of the Pod's containers runs any more, or will: it holds nothing of its node.

    https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-phase
    """
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
