"""The hash that says whether a Workspace's specification changed, and the ControllerRevisions that record it.

The hash is upstream's: SHA-256 over compact JSON of resource, inference and tuning, as Go's encoder writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj

HISTORY_LIMIT = 10
SHORT = 5


def hash_of(workspace: Mapping[str, Any]) -> str:
    """The hash of a Workspace object, 64 hex digits."""
    lines = (
        _resource(workspace.get("resource")),
        _inference(workspace.get("inference")),
        _tuning(workspace.get("tuning")),
    )
    digest = hashlib.sha256()
    for line in lines:
        digest.update(_encode(line).encode() + b"\n")
    return digest.hexdigest()


def _encode(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, escape)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _pick(source: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The named fields in this order, as given or, for ``...``, as in the source; empty ones are left out."""
    picked = {key: source.get(key) if value is ... else value for key, value in fields.items()}
    return {key: value for key, value in picked.items() if value not in (None, "", 0, False, [], {})}


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _resource(spec: Mapping[str, Any] | None) -> Any:
    if spec is None:
        return None
    selector = spec.get("labelSelector")
    ordered = _pick(spec, count=..., instanceType=...)
    # Not optional in the Go type: there even when it is empty, null when it is absent.
    ordered["labelSelector"] = selector and _pick(
        selector,
        matchLabels=_sorted(selector.get("matchLabels")),
        matchExpressions=[_pick(e, key=..., operator=..., values=...) for e in selector.get("matchExpressions") or ()],
    )
    if spec.get("preferredNodes"):
        ordered["preferredNodes"] = spec["preferredNodes"]
    return ordered


def _preset(spec: Mapping[str, Any] | None) -> Any:
    if spec is None:
        return None
    ordered = {"name": spec.get("name") or "", **_pick(spec, accessMode=...)}
    ordered["presetOptions"] = _pick(spec.get("presetOptions") or {}, image=..., imagePullSecrets=...)
    return ordered


def _source(spec: Mapping[str, Any] | None) -> Any:
    if spec is None:
        return None
    return _pick(
        spec, name=..., urls=..., volumeSource=_sorted(spec.get("volumeSource")), image=..., imagePullSecrets=...
    )


def _inference(spec: Mapping[str, Any] | None) -> Any:
    if spec is None:
        return None
    adapters = [
        {
            key: value
            for key, value in (("source", _source(a.get("source"))), ("strength", a.get("strength")))
            if value is not None
        }
        for a in spec.get("adapters") or ()
    ]
    return _pick(spec, preset=_preset(spec.get("preset")), template=_sorted(spec.get("template")), adapters=adapters)


def _tuning(spec: Mapping[str, Any] | None) -> Any:
    if spec is None:
        return None
    output = spec.get("output")
    ordered = _pick(spec, preset=_preset(spec.get("preset")), method=..., config=...)
    ordered["input"] = _source(spec.get("input"))
    ordered["output"] = output and _pick(
        output, volumeSource=_sorted(output.get("volumeSource")), image=..., imagePushSecret=...
    )
    return ordered


def tuning_hash_of(workspace: Mapping[str, Any]) -> str:
    """16 hex digits that change when a tuning job must run again: not with the nodes, the case of the method, or the
    order of URLs and Secrets."""
    spec = dict(workspace.get("tuning") or {})
    spec["method"] = str(spec.get("method") or "").lower()
    source = dict(spec.get("input") or {})
    source |= {key: sorted(source[key]) for key in ("urls", "imagePullSecrets") if source.get(key)}
    return hashlib.sha256(_encode(_tuning(spec | {"input": source})).encode()).hexdigest()[:16]


def workload_hash_of(workspace: Mapping[str, Any]) -> str:
    """16 hex digits that change when the Workspace itself asks for other Pods: not with its preferred nodes, and not
    with what the chart or the Catalog says.

    Another version of this program must give the same: where it does not, an upgrade rolls every workload at once.
    """
    inference, tuning = (workspace.get(part) or {} for part in ("inference", "tuning"))
    resource = {**(workspace.get("resource") or {}), "preferredNodes": None}
    annotations = (workspace.get("metadata") or {}).get("annotations") or {}
    asked = [_resource(resource), _inference(inference), _preset(tuning.get("preset"))]
    if not inference.get("template"):
        asked.append(annotations.get(labels.RUNTIME))
    if labels.TOLERATIONS in annotations:
        asked.append(annotations[labels.TOLERATIONS])
    return hashlib.sha256(_encode(asked).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Revision:
    """What to record: the hash, its number, the ControllerRevision to create and the one to drop.

    ``conflict``: a ControllerRevision of that name holds another hash.
    """

    hash: str
    number: int
    create: Obj | None = None
    drop: Obj | None = None
    conflict: str = ""


def revise(workspace: Workspace, history: Sequence[Obj], owner: Obj) -> Revision:
    """Compare the Workspace with its ControllerRevisions; content seen before keeps its number."""
    digest = hash_of(workspace.raw)
    name = f"{workspace.name}-{digest[:SHORT]}"
    recorded = next((r for r in history if r["metadata"]["name"] == name), None)
    last = max((int(r.get("revision") or 0) for r in history), default=0)
    if recorded is not None:
        number = int(recorded.get("revision") or 0)
        if (recorded["metadata"].get("annotations") or {}).get(labels.REVISION_HASH) != digest:
            return Revision(digest, number, conflict="revision name conflicts, the hash values are different")
        return Revision(digest, number)
    create = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": name,
            "namespace": workspace.namespace,
            "labels": {labels.REVISION_NAME: workspace.name},
            "annotations": {labels.REVISION_HASH: digest},
            "ownerReferences": [owner],
        },
        "revision": last + 1,
        "data": {part: workspace.raw.get(part) for part in ("resource", "inference", "tuning")},
    }
    return Revision(digest, last + 1, create=create, drop=_oldest(history, but=recorded_revision(workspace.raw)))


def recorded_revision(workspace: Mapping[str, Any]) -> str:
    """The revision of which ``status.tuning`` says how its job ended; "" if there is none."""
    return str(((workspace.get("status") or {}).get("tuning") or {}).get("revision") or "")


def _oldest(history: Sequence[Obj], *, but: str) -> Obj | None:
    """The one to drop; what a result was made of is kept, which is served, or comes again when an edit is reverted."""
    kept = sorted(history, key=lambda r: int(r.get("revision") or 0))
    doomed = [r for r in kept if str(r.get("revision")) != but]
    return doomed[0] if len(kept) >= HISTORY_LIMIT and doomed else None
