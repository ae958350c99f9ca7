"""The taints that a Workspace's Pods tolerate: those of GPU and spot nodes, the platform's, and the user's own.

The annotation ``kaito.sh/tolerations`` names taints as ``kubectl taint`` writes them, with commas in between:
``team=a:NoSchedule,dedicated:NoExecute,maintenance``. Without a value any value is tolerated, without an effect any
effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kaito_hooks.api import labels, node_labels
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.configuration.settings import Settings

OF_GPU_NODES: tuple[Obj, ...] = (
    {"key": labels.GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"},
    {"key": labels.SKU, "operator": "Equal", "value": labels.SKU_GPU, "effect": "NoSchedule"},
    {"key": labels.SPOT_TAINT, "operator": "Equal", "value": "spot", "effect": "NoSchedule"},
)
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
WRONG = (
    "write taints as kubectl does, key=value:effect, with commas in between; "
    f"value and effect may be left out, and an effect is {', '.join(EFFECTS)}"
)

_TAINT = re.compile(rf"(?P<key>[^=:,]+)(=(?P<value>[^=:,]*))?(:(?P<effect>{'|'.join(EFFECTS)}))?")


def of(workspace: Workspace, settings: Settings) -> list[Obj]:
    """All tolerations of the Workspace's Pods, each once."""
    found: list[Obj] = []
    for toleration in (*OF_GPU_NODES, *map(dict, settings.workloads.tolerations), *_of_annotation(workspace)):
        if toleration not in found:
            found.append(toleration)
    return found


def problem(workspace: Workspace) -> str | None:
    """What in the annotation is no taint; None if all are."""
    return next((text for text in _texts(workspace) if _read(text) is None), None)


def _of_annotation(workspace: Workspace) -> Iterator[Obj]:
    for text in _texts(workspace):
        if (toleration := _read(text)) is not None:
            yield toleration


def _texts(workspace: Workspace) -> list[str]:
    value = workspace.annotations.get(labels.TOLERATIONS)
    return value.split(",") if value else []


def _read(text: str) -> Obj | None:
    found = _TAINT.fullmatch(text)
    if found is None or not node_labels.is_key(found["key"]) or not node_labels.is_value(found["value"] or ""):
        return None
    has_value: Mapping[str, Any] = (
        {"operator": "Equal", "value": found["value"]} if found["value"] is not None else {"operator": "Exists"}
    )
    return {"key": found["key"], **has_value, **({"effect": found["effect"]} if found["effect"] else {})}
