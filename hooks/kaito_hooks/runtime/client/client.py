"""The API server's verbs on plain dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kaito_hooks.runtime.client.connection import Connection, Observer
from kaito_hooks.runtime.client.resource import Obj, Resource
from kaito_hooks.runtime.client.watch import WatchStream
from kaito_hooks.runtime.errors import Gone, NotFound

Propagation = Literal["Foreground", "Background", "Orphan"]
PatchKind = Literal["json", "merge", "strategic"]
Fence = Callable[[], float]
"""Asked before every write: seconds for which this process may still write; raises LeadershipLost when it may not."""

_PATCH_TYPES: Mapping[str, str] = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
_APPLY_TYPE = "application/apply-patch+yaml"
_WATCH_SILENCE = 90.0


@dataclass(frozen=True, slots=True)
class ObjectList:
    """The answer of a list: all objects, and the resourceVersion from which a watch goes on."""

    items: list[Obj]
    resource_version: str


class Client:
    """Reads and writes objects as plain JSON. Thread-safe; errors are ApiErrors; every call ends within its timeout."""

    def __init__(self, connection: Connection, *, timeout: float = 30.0, fence: Fence | None = None) -> None:
        self._connection = connection
        self._timeout = timeout
        self._fence = fence

    @classmethod
    def load(cls, *, kubeconfig: str | None = None, user_agent: str = "kaito", timeout: float = 30.0) -> Client:
        """A client for ``kubeconfig``, else for the Pod it runs in, else for $KUBECONFIG or ~/.kube/config.

        ``timeout`` (seconds) bounds every call but a watch. Raises ConnectionFailed without a usable configuration.
        """
        return cls(Connection.load(kubeconfig=kubeconfig, user_agent=user_agent), timeout=timeout)

    def with_timeout(self, timeout: float) -> Client:
        """The same client with another bound per call, in seconds."""
        return Client(self._connection, timeout=timeout, fence=self._fence)

    def fenced(self, fence: Fence) -> Client:
        """The same client that asks ``fence`` before every write."""
        return Client(self._connection, timeout=self._timeout, fence=fence)

    def observe(self, observer: Observer) -> None:
        """Tells ``observer`` of every request of this client and of those made from it."""
        self._connection.observe(observer)

    def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Obj:
        """The object as it is at this moment; NotFound when there is none."""
        return self._read(resource.path(namespace=namespace, name=name))

    def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        page_size: int = 500,
        on_page: Callable[[], None] | None = None,
    ) -> ObjectList:
        """All objects, read page by page from one consistent state; ``on_page`` is called after each page."""
        path = resource.path(namespace=namespace)
        query: dict[str, Any] = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "limit": page_size or None,
        }
        items: list[Obj] = []
        while True:
            try:
                page = self._read(path, query)
            except Gone:
                if "continue" not in query:
                    raise
                # The state that the pages came from is compacted; one page with everything is consistent.
                items.clear()
                query.pop("continue")
                query["limit"] = None
                continue
            if on_page is not None:
                on_page()
            for item in page.get("items") or ():
                item.setdefault("apiVersion", resource.api_version)
                item.setdefault("kind", resource.kind)
                items.append(item)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return ObjectList(items=items, resource_version=metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    def watch(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        resource_version: str,
        timeout_seconds: int,
        silence: float = _WATCH_SILENCE,
    ) -> WatchStream:
        """Events after ``resource_version``, until the server ends the watch after ``timeout_seconds``.

        With bookmarks, which the server sends about once a minute: a stream that says nothing for ``silence`` seconds
        is dead and raises ConnectionFailed.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": timeout_seconds,
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        path = resource.path(namespace=namespace)
        return WatchStream(self._connection.open_stream(path, query=query, read_timeout=silence))

    def served(self, resource: Resource) -> bool:
        """Whether discovery lists the resource at this moment."""
        try:
            found = self._read(resource.root)
        except NotFound:
            return False
        return any(entry.get("name") == resource.plural for entry in found.get("resources") or ())

    def create(
        self,
        resource: Resource,
        obj: Obj,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        name: str | None = None,
    ) -> Obj:
        """POST; AlreadyExists when the name is taken. For a subresource such as "eviction", ``name`` is the object it
        belongs to.
        """
        namespace = namespace or _namespace(obj)
        path = resource.path(namespace=namespace, name=name if subresource else None, subresource=subresource)
        body = obj if subresource else _typed(resource, obj)
        return self._write("POST", path, body=body)

    def update(self, resource: Resource, obj: Obj, *, subresource: str | None = None) -> Obj:
        """PUT of the whole object; Conflict when its resourceVersion is not the newest. ``subresource`` is "status" or
        "scale".
        """
        path = resource.path(namespace=_namespace(obj), name=obj["metadata"]["name"], subresource=subresource)
        return self._write("PUT", path, body=_typed(resource, obj))

    def apply(
        self,
        resource: Resource,
        obj: Obj,
        *,
        field_manager: str,
        force: bool = True,
        dry_run: bool = False,
        subresource: str | None = None,
    ) -> Obj:
        """Server-side apply of exactly the fields in ``obj``; Conflict when another manager owns one and ``force`` is
        off. ``dry_run``: answered as if it were done.

        https://kubernetes.io/docs/reference/using-api/server-side-apply/
        """
        path = resource.path(namespace=_namespace(obj), name=obj["metadata"]["name"], subresource=subresource)
        body = _typed(resource, obj)
        if "managedFields" in body["metadata"]:
            body["metadata"] = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        return self._write("PATCH", path, body=body, query=query, content_type=_APPLY_TYPE)

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        kind: PatchKind = "merge",
    ) -> Obj:
        """PATCH; a JSON patch is a list of operations, the other kinds are partial objects.

        A failed "test" of a JSON patch is Invalid.
        """
        path = resource.path(namespace=namespace, name=name, subresource=subresource)
        return self._write("PATCH", path, body=patch, content_type=_PATCH_TYPES[kind])

    def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Propagation | None = None,
        grace_period_seconds: int | None = None,
    ) -> Obj | None:
        """Deletes the object, if it still has that uid and resourceVersion (else Conflict). NotFound when there is
        none.

        Returns the object when something (finalizers, a grace period) keeps it for now, None when it is gone.
        """
        options: Obj = {"kind": "DeleteOptions", "apiVersion": "v1"}
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if uid is not None or resource_version is not None:
            options["preconditions"] = {field: value for field, value in preconditions.items() if value is not None}
        if propagation is not None:
            options["propagationPolicy"] = propagation
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        answer = self._write("DELETE", resource.path(namespace=namespace, name=name), body=options)
        return None if answer.get("kind") == "Status" else answer

    def _read(self, path: str, query: Mapping[str, Any] | None = None) -> Obj:
        answer: Obj = self._connection.request("GET", path, query=query, timeout=self._timeout)
        return answer

    def _write(
        self,
        method: str,
        path: str,
        *,
        body: Any,
        query: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Obj:
        timeout = self._timeout
        if self._fence is not None:
            timeout = min(timeout, self._fence())
        answer: Obj = self._connection.request(
            method, path, query=query, body=body, content_type=content_type, timeout=timeout
        )
        return answer


def _namespace(obj: Obj) -> str | None:
    namespace: str | None = (obj.get("metadata") or {}).get("namespace")
    return namespace


def _typed(resource: Resource, obj: Obj) -> Obj:
    return {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
