"""As much of an API server as the controllers use: versions, finalizers, preconditions, patches, evictions, owners."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from typing import Any

from tests.driven.clock import SteppedClock

from kaito_hooks.runtime import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    Key,
    NotFound,
    Obj,
    ObjectList,
    Resource,
    TooManyRequests,
    format_time,
)


class MemoryCluster:
    """Objects by resource.

    ``touch`` is called before (False) and after (True) every write of the product, as ``product_writes`` marks them; it
    may raise. ``revision`` grows with every change, ``requests`` with every request of the product.
    """

    def __init__(self, clock: SteppedClock) -> None:
        self.clock = clock
        self.objects: dict[tuple[str, str, str], Obj] = {}
        self.unserved: set[str] = set()
        self.protected_pods: set[str] = set()
        self.touch: Callable[[str, bool], None] = lambda what, after: None
        self.on_removed: Callable[[Obj], None] = lambda obj: None
        self.product_writes = False
        self.writes: list[tuple[str, str, str]] = []
        self.revision = 0
        self.requests = 0
        self._numbers = itertools.count(1)

    # What tests use

    def put(self, resource: Resource, obj: Obj) -> Obj:
        """Place an object as it is, without any rule."""
        stored = deepcopy(obj)
        stored.setdefault("apiVersion", resource.api_version)
        stored.setdefault("kind", resource.kind)
        metadata = stored["metadata"]
        metadata.setdefault("uid", f"uid-{next(self._numbers)}")
        metadata.setdefault("creationTimestamp", format_time(self.clock.now()))
        metadata.setdefault("generation", 1)
        self._store(resource, stored)
        return deepcopy(stored)

    def all(self, resource: Resource) -> list[Obj]:
        """Copies of all objects of the resource."""
        return [deepcopy(o) for (plural, _, _), o in sorted(self.objects.items()) if plural == resource.plural]

    def find(self, resource: Resource, name: str, namespace: str = "") -> Obj | None:
        """A copy, or None."""
        found = self.objects.get((resource.plural, namespace, name))
        return deepcopy(found) if found else None

    def select(
        self, resource: Resource, *, label_selector: str | None = None, field_selector: str | None = None
    ) -> list[Obj]:
        """Copies of the objects that both selectors take: labels that are there or have a value, fields by dots."""
        return [
            obj
            for obj in self.all(resource)
            if all(_has_label(obj, term) for term in (label_selector or "").split(",") if term)
            and all(_has_field(obj, term) for term in (field_selector or "").split(",") if term)
        ]

    def drop(self, resource: Resource, name: str, namespace: str = "") -> None:
        """Remove an object whatever holds it, and what it owned."""
        removed = self.objects.pop((resource.plural, namespace, name), None)
        if removed:
            self.revision += 1
            self.on_removed(removed)
            self._collect(removed["metadata"]["uid"])

    # What runtime.Client offers

    def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Obj:
        self._asked()
        return deepcopy(self._existing(resource, name, namespace))

    def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        page_size: int = 500,
    ) -> ObjectList:
        self._asked()
        self._check_served(resource)
        items = self.select(resource, label_selector=label_selector, field_selector=field_selector)
        return ObjectList(items=items, resource_version="1")

    def served(self, resource: Resource) -> bool:
        return resource.plural not in self.unserved

    def create(
        self,
        resource: Resource,
        obj: Obj,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        name: str | None = None,
    ) -> Obj:
        self._asked()
        if subresource == "eviction":
            assert name is not None
            return self._evict(resource, name, namespace or "", obj)
        key = (resource.plural, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        if key in self.objects:
            raise AlreadyExists("exists", status=409, reason="AlreadyExists")
        return self._write("create", resource, key[2], lambda: self.put(resource, obj))

    def update(self, resource: Resource, obj: Obj, *, subresource: str | None = None) -> Obj:
        self._asked()
        name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace", "")
        current = self._existing(resource, name, namespace)
        self._check_version(current, obj["metadata"])

        def store() -> Obj:
            if subresource == "status":
                changed = {**current, "status": deepcopy(obj.get("status") or {})}
            else:
                changed = {**deepcopy(obj), "status": current.get("status") or {}}
                self._check_finalizers(current, changed)
            return self._store(resource, changed)

        return self._write(f"update {subresource or ''}", resource, name, store)

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        kind: str = "merge",
    ) -> Obj:
        self._asked()
        current = self._existing(resource, name, namespace)
        if kind == "json":
            changed = _json_patch(current, patch)
        else:
            self._check_version(current, patch.get("metadata") or {})
            changed = _merge(current, patch)
            changed["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"]
        self._check_finalizers(current, changed)
        return self._write("patch", resource, name, lambda: self._store(resource, changed))

    def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str | None = None,
        grace_period_seconds: int | None = None,
    ) -> Obj | None:
        self._asked()
        current = self._existing(resource, name, namespace)
        if uid is not None and current["metadata"]["uid"] != uid:
            raise Conflict("another uid", status=409, reason="Conflict")

        def remove() -> Obj | None:
            changed = deepcopy(current)
            metadata = changed["metadata"]
            grace = 0
            if resource.kind == "Pod":
                grace = 30 if grace_period_seconds is None else grace_period_seconds
            if grace or metadata.get("finalizers"):
                when = format_time(self.clock.now() + timedelta(seconds=grace))
                if when < metadata.get("deletionTimestamp", "never"):
                    metadata["deletionTimestamp"] = when
                    metadata["generation"] = metadata.get("generation", 1) + 1
                return self._store(resource, changed)
            self.drop(resource, name, namespace or "")
            return None

        return self._write("delete", resource, name, remove)

    def apply(self, resource: Resource, obj: Obj, *, field_manager: str) -> Obj:
        self._asked()
        name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace", "")
        current = self._existing(resource, name, namespace)
        self._check_version(current, obj["metadata"])
        changed = _merge(current, obj)
        if changed.get("spec") != current.get("spec"):
            changed["metadata"]["generation"] = current["metadata"].get("generation", 1) + 1
        return self._write("apply", resource, name, lambda: self._store(resource, changed))

    # Rules

    def _asked(self) -> None:
        self.requests += self.product_writes

    def _collect(self, uid: str) -> None:
        """What an object that is gone has owned in a namespace goes, too."""
        for (plural, namespace, name), obj in list(self.objects.items()):
            if namespace and any(owner["uid"] == uid for owner in obj["metadata"].get("ownerReferences") or ()):
                self.drop(Resource("", "", plural, obj["kind"], True), name, namespace)

    def _existing(self, resource: Resource, name: str, namespace: str | None) -> Obj:
        self._check_served(resource)
        found = self.objects.get((resource.plural, namespace or "", name))
        if found is None:
            raise NotFound(f"{resource} {name} not found", status=404, reason="NotFound", details={"name": name})
        return found

    def _check_served(self, resource: Resource) -> None:
        if resource.plural in self.unserved:
            raise NotFound("the server could not find the requested resource", status=404, reason="NotFound")

    def _check_version(self, current: Obj, metadata: Obj) -> None:
        for field in ("resourceVersion", "uid"):
            if metadata.get(field) not in (None, current["metadata"][field]):
                raise Conflict(f"{field} is another", status=409, reason="Conflict")

    def _check_finalizers(self, current: Obj, changed: Obj) -> None:
        added = set(changed["metadata"].get("finalizers") or ()) - set(current["metadata"].get("finalizers") or ())
        if current["metadata"].get("deletionTimestamp") and added:
            raise Forbidden("no new finalizers can be added if the object is being deleted", status=403)

    def _store(self, resource: Resource, obj: Obj) -> Obj:
        """A write that changes nothing gives no new version, and watchers do not hear of it."""
        metadata = obj["metadata"]
        key = (resource.plural, metadata.get("namespace", ""), metadata["name"])
        before = self.objects.get(key)
        if before is not None and _content(before) == _content(obj):
            return deepcopy(before)
        metadata["resourceVersion"] = str(next(self._numbers))
        self.revision += 1
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers") and resource.kind != "Pod":
            self.objects[key] = obj
            self.drop(resource, key[2], key[1])
        else:
            self.objects[key] = obj
        return deepcopy(obj)

    def _write(self, verb: str, resource: Resource, name: str, effect: Callable[[], Any]) -> Any:
        if not self.product_writes:
            return effect()
        self.touch(f"{verb} {resource.kind} {name}", False)
        self.writes.append((verb, resource.kind, name))
        result = effect()
        self.touch(f"{verb} {resource.kind} {name}", True)
        return result

    def _evict(self, resource: Resource, name: str, namespace: str, request: Obj) -> Obj:
        pod = self._existing(resource, name, namespace)
        if name in self.protected_pods:
            raise TooManyRequests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                status=429,
                reason="TooManyRequests",
            )
        self.delete(resource, name, namespace=namespace, uid=request["deleteOptions"]["preconditions"]["uid"])
        return pod


class MemoryInformer:
    """A cache over a MemoryCluster that is as old as its last ``sync``, which tells subscribers what has changed."""

    def __init__(
        self,
        cluster: MemoryCluster,
        resource: Resource,
        indexes: Any = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        **_: Any,
    ) -> None:
        self._cluster = cluster
        self._resource = resource
        self._indexes = indexes or {}
        self._selectors = {"label_selector": label_selector, "field_selector": field_selector}
        self._items: dict[Key, Obj] = {}
        self._handlers: list[Callable[[Obj | None, Obj | None], None]] = []
        self.sync()

    def subscribe(self, handler: Callable[[Obj | None, Obj | None], None]) -> None:
        """Calls ``handler(old, new)`` for every change that a ``sync`` finds, and at once for what is there."""
        self._handlers.append(handler)
        for obj in self._items.values():
            handler(None, obj)

    def sync(self) -> None:
        found = self._cluster.select(self._resource, **self._selectors)
        before, self._items = self._items, {Key.of(obj): obj for obj in found}
        for key in sorted({*before, *self._items}):
            old, new = before.get(key), self._items.get(key)
            if old is None or new is None or _version(old) != _version(new):
                for handler in self._handlers:
                    handler(old, new)

    @property
    def served(self) -> bool:
        return self._cluster.served(self._resource)

    def get(self, key: Key) -> Obj | None:
        return self._items.get(key)

    def list(self) -> list[Obj]:
        return list(self._items.values())

    def by_index(self, index: str, value: str) -> list[Obj]:
        return [obj for obj in self._items.values() if value in self._indexes[index](obj)]


def _has_label(obj: Obj, term: str) -> bool:
    key, equals, value = term.partition("=")
    marks = obj["metadata"].get("labels") or {}
    return marks.get(key) == value if equals else key in marks


def _has_field(obj: Obj, term: str) -> bool:
    path, _, value = term.partition("=")
    found: Any = obj
    for part in path.split("."):
        found = (found or {}).get(part)
    return bool(found == value)


def _version(obj: Obj) -> str:
    return str(obj["metadata"]["resourceVersion"])


def _content(obj: Obj) -> Obj:
    return {**obj, "metadata": {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}}


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return deepcopy(patch)
    merged = deepcopy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _json_patch(target: Obj, patch: list[Obj]) -> Obj:
    changed = deepcopy(target)
    for operation in patch:
        *parents, last = operation["path"].strip("/").split("/")
        holder: Any = changed
        for part in parents:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        index: Any = int(last) if isinstance(holder, list) else last
        if operation["op"] == "test":
            if holder[index] != operation["value"]:
                raise Invalid("testing value failed", status=422, reason="Invalid")
        elif operation["op"] in ("add", "replace"):
            assert isinstance(holder, dict)
            holder[last] = deepcopy(operation["value"])
        else:
            assert operation["op"] == "remove"
            del holder[index]
    return changed
