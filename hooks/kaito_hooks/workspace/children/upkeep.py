"""Children of a Workspace: is one missing, changed by somebody, or not ours at all?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kaito_hooks.api import labels
from kaito_hooks.api.resources import WORKSPACE
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj, parse_quantity
from kaito_hooks.workspace.decision.actions import Action, ApplyChild, CreateChild, Delete, Note, Outcome
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.status import pods
from kaito_hooks.workspace.supply.placement import WORKLOADS

FINGERPRINT = "workspace.kaito.io/fingerprint"
"""Annotation on a child: what we wanted it to be, metadata aside. A field that we no longer want is found by it."""
_LIST_KEYS = ("name", "mountPath", "containerPort", "port", "key", "uid")
"""Fields by which Kubernetes merges lists of objects; others may add items to such a list."""
_SELECTORS = frozenset({"selector", "podSelector", "namespaceSelector", "matchLabels", "nodeSelector"})
"""Mappings that mean something else with an entry more, which an apply takes away: their type is atomic."""


def reference(child: Obj) -> str:
    """``Kind/name``."""
    return f"{child['kind']}/{child['metadata']['name']}"


def fingerprint(child: Obj) -> str:
    """16 hex digits that change when anything in the object changes."""
    return hashlib.sha256(json.dumps(child, sort_keys=True).encode()).hexdigest()[:16]


def sealed(child: Obj) -> Obj:
    """The child with the fingerprint of what it does as an annotation, unless it has one."""
    metadata = child["metadata"]
    if FINGERPRINT in (metadata.get("annotations") or {}):
        return child
    annotations = {**(metadata.get("annotations") or {}), FINGERPRINT: fingerprint(_body(child))}
    return {**child, "metadata": {**metadata, "annotations": annotations}}


def seal_of(child: Obj) -> str | None:
    """The fingerprint that the child carries."""
    return (child["metadata"].get("annotations") or {}).get(FINGERPRINT)


def is_owned(child: Obj, uid: str) -> bool:
    """Whether the Workspace with that uid is the object's controller."""
    return any(
        owner.get("uid") == uid and owner.get("controller") for owner in child["metadata"].get("ownerReferences") or ()
    )


def contains(live: Any, wanted: Any) -> bool:
    """Whether everything in ``wanted`` is so in ``live``; what the API server or others added does not count.

    Quantities compare by value ("1024Mi" is stored as "1Gi"); an empty value equals an absent one. Lists whose items
    have a key may hold more items, other lists must match item by item, and selectors must match as a whole.
    """
    if live == wanted:
        return True
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            (contains(live[key], value) and not (key in _SELECTORS and _has_more(live[key], value)))
            if key in live
            else _is_empty(value)
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and _list_contains(live, wanted)
    return _same_quantity(live, wanted)


def owned_by_apply(owners: list[Obj], *, applier: str) -> list[Obj]:
    """managedFields in which what our process wrote by POST belongs to the applier instead.

    Once the applier has an entry of its own, the older one is dropped: what it still names, the applier gave up.
    """
    posted = [o for o in owners if o.get("operation") == "Update" and not o.get("subresource") and _is_our_post(o)]
    if not posted:
        return owners
    applied = any(o.get("operation") == "Apply" and o.get("manager") == applier for o in owners)
    kept = [o for o in owners if o not in posted]
    return kept if applied else [*kept, {**posted[0], "operation": "Apply", "manager": applier}]


def _is_our_post(owner: Obj) -> bool:
    return str(owner.get("manager", "")).startswith("kaito-workspace")


def as_scaled(wanted: Obj, live: Obj) -> Obj:
    """A Deployment with the replicas that the live one has: after its creation they belong to whoever scales it."""
    replicas = (live.get("spec") or {}).get("replicas")
    if wanted["kind"] != "Deployment" or replicas is None:
        return wanted
    return {**wanted, "spec": {**wanted["spec"], "replicas": replicas}}


def outside(s: Snapshot, wanted: Collection[str]) -> list[Obj]:
    """Our children, by owner and label, whose ``Kind/name`` is not wanted; those that are going already, too."""
    return [
        child
        for name, child in sorted(s.children.items())
        if name not in wanted
        and is_owned(child, s.workspace.uid)
        and (child["metadata"].get("labels") or {}).get(labels.WORKSPACE) == s.workspace.name
    ]


def remove(found: Iterable[Obj]) -> list[Delete]:
    """The deletions of those that are not going already; a workload is gone when its Pods are."""
    return [
        Delete(
            child["kind"],
            child["metadata"]["namespace"],
            child["metadata"]["name"],
            child["metadata"]["uid"],
            foreground=child["kind"] not in ("Service", "NetworkPolicy"),
        )
        for child in found
        if not child["metadata"].get("deletionTimestamp")
    ]


def settled_as(live: Obj, wanted: Obj) -> str:
    """What is remembered of an object that the API server would not store as we wanted it."""
    return fingerprint({"live": _body(live), "wanted": wanted})


def keep(s: Snapshot, child: Obj) -> tuple[Action | None, Outcome | None]:
    """What to do so that the child exists as wanted, and what of it the user must know (None: all is well)."""
    wanted, name = sealed(child), reference(child)
    refusal = s.memory.refusals.get(name)
    if refusal is not None and s.now < refusal.retry_at:
        return None, Outcome("failed", refusal.message)
    live = s.children.get(name)
    if live is None:
        return CreateChild(wanted), Outcome("waiting", pods.WAITING)
    if live["metadata"].get("deletionTimestamp"):
        return None, Outcome("waiting", f"{name} is being deleted and comes again when it is gone")
    if not is_owned(live, s.workspace.uid):
        return None, Outcome("failed", foreign(live, s.workspace))
    wanted = as_scaled(wanted, live)
    seals = [seal_of(live), seal_of(wanted)]
    settled = name in s.memory.settled and s.memory.settled[name] == settled_as(live, wanted)
    current = seals[0] == seals[1] and (settled or contains(_body(live), _body(wanted)))
    if current and (settled or contains(live["metadata"], wanted["metadata"])):
        return None, None
    if wanted["kind"] == "StatefulSet" and seals[0] is not None and seals[0] != seals[1]:
        # A rolling update would wait for one changed Pod to be ready among unchanged ones.
        metadata = live["metadata"]
        deletion = Delete("StatefulSet", metadata["namespace"], metadata["name"], metadata["uid"], foreground=True)
        why = "its Pods only work together, so all of them start anew"
        return deletion, Outcome("waiting", f"{name} is being replaced: {why}")
    # What its controller reports of a workload is about the old one, until it has seen the new one.
    rolls_out = not current and wanted["kind"] in WORKLOADS
    outcome = Outcome("waiting", f"{name} is being brought up to date") if rolls_out else None
    return ApplyChild(wanted, live["metadata"]["uid"]), outcome


@dataclass(frozen=True, slots=True)
class Kept:
    """What to do for children, and the worst that is to be said of them."""

    problem: Outcome | None
    actions: tuple[Action, ...]
    notes: tuple[Note, ...]


def keep_all(s: Snapshot, wanted: Sequence[Obj], *, beside: Sequence[str]) -> Kept:
    """Create, repair and remove children until there are just the wanted ones, and those ``beside`` them."""
    surplus = outside(s, [*map(reference, wanted), *beside])
    actions: list[Action] = [*remove(surplus)]
    notes = [
        Note("Normal", "Deleted", f"deleted {deletion.kind}/{deletion.name}, which is wanted no longer")
        for deletion in actions
        if isinstance(deletion, Delete)
    ]
    going = next((reference(child) for child in surplus if child["kind"] in WORKLOADS), "")
    waits = [child for child in wanted if going and child["kind"] in WORKLOADS]
    problems = [Outcome("waiting", f"{going} is being removed before {reference(child)} comes") for child in waits]
    for child in wanted:
        if child in waits:
            continue
        action, problem = keep(s, child)
        if action is not None:
            actions.append(action)
        if problem is not None:
            problems.append(problem)
    created = [reference(a.child) for a in actions if isinstance(a, CreateChild)]
    if created:
        notes.append(Note("Normal", "Created", f"created {', '.join(created)}"))
    worst = next((p for p in problems if p.state == "failed"), problems[0] if problems else None)
    return Kept(worst, tuple(actions), tuple(notes))


def foreign(found: Obj, workspace: Workspace) -> str:
    """The sentence about an object in the way of that Workspace."""
    what = f"{reference(found)} in namespace {workspace.namespace} exists already"
    owners = found["metadata"].get("ownerReferences") or ()
    theirs = next((str(o.get("name")) for o in owners if o.get("kind") == WORKSPACE.kind and o.get("controller")), "")
    if theirs not in ("", workspace.name):
        return f"{what} and belongs to Workspace {theirs}; give one of the two another name"
    return f"{what} and does not belong to this Workspace; delete it or give the Workspace another name"


def unlabelled(found: Obj, workspace: Workspace) -> str:
    """The sentence about a Job of that Workspace which cannot be followed, as somebody took its label away."""
    name, label = found["metadata"]["name"], f"{labels.WORKSPACE}={workspace.name}"
    return (
        f"Job/{name} has lost its label {labels.WORKSPACE} and cannot be followed without it; "
        f"put it back: kubectl label --namespace {workspace.namespace} job {name} {label}"
    )


def _has_more(live: Any, wanted: Any) -> bool:
    return isinstance(live, dict) and isinstance(wanted, dict) and bool(live.keys() - wanted.keys())


def _list_contains(live: list[Any], wanted: list[Any]) -> bool:
    key = next((k for k in _LIST_KEYS if wanted and all(isinstance(w, dict) and k in w for w in wanted)), None)
    if key is None:
        return len(live) == len(wanted) and all(contains(have, want) for have, want in zip(live, wanted, strict=True))
    for want in wanted:
        same = [have for have in live if isinstance(have, dict) and have.get(key) == want[key]]
        if not any(contains(have, want) for have in same):
            return False
    return True


def _body(child: Obj) -> Obj:
    return {key: value for key, value in child.items() if key not in ("metadata", "status")}


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value is False or value == 0 or value == [] or value == {}


def _same_quantity(live: Any, wanted: Any) -> bool:
    if isinstance(live, (dict, list)) or live is None or wanted is None:
        return False
    try:
        return parse_quantity(live) == parse_quantity(wanted)
    except ValueError:
        return False
