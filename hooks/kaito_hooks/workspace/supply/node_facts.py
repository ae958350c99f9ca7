"""What Nodes say of their own GPUs, for clusters whose nodes no cloud has named a size for.

The device plugin announces how many there are; NVIDIA's GPU feature discovery labels a Node with their product and
memory (https://github.com/NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery).
"""

from __future__ import annotations

import math
import re

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import InstanceType
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.purchases.alternatives import holds
from kaito_hooks.workspace.purchases.claims import may_have_gpus
from kaito_hooks.workspace.supply import nodes

_MODEL = re.compile(r"[A-Z]+\d+[A-Z]*")
_STEP = 4 * 1024
"""MiB. GPUs report less memory than they are sold with, which is what the Catalog counts: a T4 has 15 of 16 GiB."""


def facts(node: Obj) -> InstanceType | None:
    """The Node's GPUs as the Catalog would list them; None unless their number and memory are both known."""
    marks = nodes.labels_of(node)
    count = nodes.gpu_capacity(node) or _whole(marks.get(labels.GPU_COUNT))
    memory = _whole(marks.get(labels.GPU_MEMORY))
    if not count or not memory:
        return None
    product = marks.get(labels.GPU_PRODUCT, "")
    models = [part for part in product.split("-") if _MODEL.fullmatch(part)]
    return InstanceType(
        name=marks.get(labels.INSTANCE_TYPE) or nodes.name_of(node),
        gpu_count=count,
        total_gpu_memory_gib=count * math.ceil(memory / _STEP) * 4,
        gpu_model=models[0] if models else product,
    )


def may_use(s: Snapshot, node: Obj) -> bool:
    """Whether a Node of whatever instance type may be used: only where nodes are not bought, and its GPUs must do."""
    resource = s.workspace.resource
    if s.settings.node_api != "none" or resource is None:
        return False
    found = facts(node)
    if found is not None and s.workspace.preset is not None and s.catalog is not None:
        return holds(s.workspace, s.catalog, found)
    if not nodes.needs_gpus(s.workspace, resource, s.catalog):
        return True
    return nodes.gpu_capacity(node) > 0 or may_have_gpus(nodes.labels_of(node).get(labels.INSTANCE_TYPE, ""))


def _whole(text: str | None) -> int:
    return int(text) if text and re.fullmatch(r"[0-9]{1,9}", text) else 0
