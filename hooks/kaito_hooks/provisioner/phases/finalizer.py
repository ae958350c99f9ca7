"""The finalizer phase: karpenter.sh/termination goes on before a machine is bought and comes off when none is left."""

from __future__ import annotations

from kaito_hooks.api.labels import TERMINATION_FINALIZER
from kaito_hooks.runtime import Client, Conflict, Invalid, NotFound, Obj, Resource


def present(obj: Obj) -> bool:
    """Whether the object waits for us."""
    return TERMINATION_FINALIZER in (obj["metadata"].get("finalizers") or ())


def add(client: Client, resource: Resource, obj: Obj) -> Obj:
    """The object with the finalizer; Conflict if it is not any more what was read."""
    if present(obj):
        return obj
    metadata = obj["metadata"]
    return client.patch(
        resource,
        metadata["name"],
        {
            "metadata": {
                "resourceVersion": metadata["resourceVersion"],
                "uid": metadata["uid"],
                "finalizers": [*(metadata.get("finalizers") or ()), TERMINATION_FINALIZER],
            }
        },
    )


def held(client: Client, resource: Resource, obj: Obj) -> bool:
    """Whether exactly this object still waits for us at this moment."""
    return _held(client, resource, obj) is not None


def remove(client: Client, resource: Resource, obj: Obj) -> bool:
    """Take the finalizer off exactly this object; False if it, or its finalizer, is gone already.

    A JSON patch with tests, so that other finalizers, fields that no schema allows any more and a successor of the same
    name stay as they are.
    """
    metadata = obj["metadata"]
    current = _held(client, resource, obj)
    if current is None:
        return False
    path = f"/metadata/finalizers/{current['metadata']['finalizers'].index(TERMINATION_FINALIZER)}"
    try:
        client.patch(
            resource,
            metadata["name"],
            [
                {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
                {"op": "test", "path": path, "value": TERMINATION_FINALIZER},
                {"op": "remove", "path": path},
            ],
            kind="json",
        )
    except NotFound:
        return False
    except Invalid as error:
        raise Conflict(error.message, status=409, reason="Conflict") from error
    return True


def _held(client: Client, resource: Resource, obj: Obj) -> Obj | None:
    try:
        current = client.get(resource, obj["metadata"]["name"])
    except NotFound:
        return None
    return current if current["metadata"]["uid"] == obj["metadata"]["uid"] and present(current) else None
