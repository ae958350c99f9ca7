"""Nodes: which of them are a claim's, how they are, and how one is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Protocol

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.api.conditions import find
from kaito_hooks.provisioner import ownership, resources
from kaito_hooks.runtime import Client, Conflict, Key, NotFound, Obj, parse_time

PROVIDER_ID = "providerID"
INSTANCE = "instance"

_HEAVY_STATUS = ("images", "volumesInUse", "volumesAttached", "nodeInfo", "daemonEndpoints")


class Cache(Protocol):
    """The part of an Informer over Nodes that is used here."""

    def list(self) -> Sequence[Obj]:
        """All Nodes."""

    def by_index(self, index: str, value: str) -> Sequence[Obj]:
        """The Nodes that the index holds under ``value``."""


class Nodes:
    """Nodes as the cache has them; a moment old, never to be changed in place."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def of_provider_id(self, provider_id: str) -> list[Obj]:
        """Nodes of that machine: one, unless something is wrong."""
        return sorted(self._cache.by_index(PROVIDER_ID, provider_id), key=name) if provider_id else []

    def of_instance(self, claim: Claim) -> list[Obj]:
        """Nodes that carry the name of the claim's instance and were made for this very claim."""
        found = self._cache.by_index(INSTANCE, claim.name)
        return sorted((node for node in found if ownership.belongs_to(labels_of(node), claim)), key=name)

    def of_claim(self, claim: Claim) -> list[Obj]:
        """All Nodes of the claim, found either way."""
        found = {name(node): node for node in (*self.of_provider_id(claim.provider_id), *self.of_instance(claim))}
        return [found[key] for key in sorted(found)]

    def provider_ids(self) -> list[str]:
        """The providerIDs of all Nodes, whoever's they are."""
        return sorted(filter(None, map(provider_id, self._cache.list())))

    def ours(self) -> list[Obj]:
        """Nodes that a provisioner of ours bought."""
        return sorted((node for node in self._cache.list() if ownership.is_ours(labels_of(node))), key=name)


def indexes(instance_label: str) -> Mapping[str, Callable[[Obj], Iterable[str]]]:
    """The indexes that an Informer over Nodes must have; ``instance_label`` is the cloud's ``node_label``."""
    return {
        PROVIDER_ID: lambda node: filter(None, (provider_id(node),)),
        INSTANCE: lambda node: filter(None, (labels_of(node).get(instance_label),)),
    }


def slim(node: Obj) -> Obj:
    """The Node without what nobody here reads: an informer's transform."""
    metadata = {key: value for key, value in node["metadata"].items() if key != "managedFields"}
    status = {key: value for key, value in (node.get("status") or {}).items() if key not in _HEAVY_STATUS}
    return {**node, "metadata": metadata, "status": status}


def name(node: Obj) -> str:
    """Its name."""
    return str(node["metadata"]["name"])


def labels_of(node: Obj) -> Mapping[str, str]:
    """Its labels."""
    return node["metadata"].get("labels") or {}


def provider_id(node: Obj) -> str:
    """The machine's id in the cloud; "" until it is known."""
    return (node.get("spec") or {}).get("providerID") or ""


def deleting(node: Obj) -> bool:
    """Whether somebody asked for its deletion."""
    return bool(node["metadata"].get("deletionTimestamp"))


def is_ready(node: Obj) -> bool:
    """Whether its kubelet says, and lately said, that it is Ready."""
    return _condition(node).get("status") == "True"


def unready_since(node: Obj, now: datetime) -> datetime | None:
    """Since when it is not Ready, by our clock, or was made, without the condition; None if it is, or nothing tells.

    A kubelet whose clock is ahead tells by its heartbeats how long that has lasted.
    """
    found = _condition(node)
    if found.get("status") == "True":
        return None
    since = _time(found.get("lastTransitionTime") if found else node["metadata"].get("creationTimestamp"))
    if since is None or since <= now:
        return since
    return now - max((_time(found.get("lastHeartbeatTime")) or since) - since, timedelta(0))


def _condition(node: Obj) -> Obj:
    """Ready, as it is; empty if there is none."""
    return find((node.get("status") or {}).get("conditions"), "Ready") or {}


def _time(text: str | None) -> datetime | None:
    return parse_time(text) if text else None


def change(client: Client, node: Obj, edit: Callable[[Obj], None]) -> Obj | None:
    """Edit the Node as it is at this moment and write it if that changed anything; None if it is gone.

    ``edit`` changes its argument in place. Conflict when somebody else wrote in between, or the name is another Node's.
    """
    try:
        current = client.get(resources.NODE, name(node))
        if current["metadata"]["uid"] != node["metadata"]["uid"]:
            raise Conflict(f"Node {name(node)} was replaced by another of its name", status=409, reason="Conflict")
        edited = deepcopy(current)
        edit(edited)
        return current if edited == current else client.update(resources.NODE, edited)
    except NotFound:
        return None


def add_taints(node: Obj, taints: Iterable[Obj]) -> None:
    """Put taints on a Node (in place) unless it has one with the same key and effect."""
    present = node.setdefault("spec", {}).setdefault("taints", [])
    for taint in taints:
        if not any(t.get("key") == taint["key"] and t.get("effect") == taint["effect"] for t in present):
            present.append(dict(taint))
    if not present:
        del node["spec"]["taints"]


def instance_name(node: Obj, instance_label: str) -> str | None:
    """The name of the instance (and so of the claim) that the Node is, by its label."""
    return labels_of(node).get(instance_label)


def claim_keys(node: Obj, instance_label: str) -> list[Key]:
    """The claims that a change of the Node wakes, of either kind: the one whose name it carries."""
    found = instance_name(node, instance_label)
    return [Key("", found)] if found else []


def is_registered(node: Obj) -> bool:
    """Whether registration has taken it over."""
    return labels_of(node).get(labels.REGISTERED) == "true"
