"""Stops an uninstall while there is something that only the controller can clean up.

``undo`` is the command that brings helm's release back to where it was.
"""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.helm.errors import StillInUse
from kaito_hooks.helm.resources import MACHINE, NODE_CLAIM, WORKSPACE
from kaito_hooks.runtime import Client, Key, NotFound, Obj, Resource

_SHOWN = 5


def guard_workspaces(client: Client, *, undo: str) -> None:
    """Raises StillInUse if there is a Workspace: its nodes would stay, its finalizer would hold it for ever."""
    found = _list(client, WORKSPACE)
    if found:
        raise StillInUse(
            f"{_names(found, 'Workspace')} still there, and without the controller nobody gives their nodes back: "
            "delete them first (kubectl delete workspaces --all --all-namespaces), or uninstall with --no-hooks. "
            f"{_way_back(undo)}"
        )


def guard_claims(client: Client, *, undo: str) -> None:
    """Raises StillInUse if there is a claim of KAITO: its agent pool would go on billing."""
    for resource in (MACHINE, NODE_CLAIM):
        found = [
            claim
            for claim in _list(client, resource)
            if {labels.WORKSPACE, labels.RAG_ENGINE} & set(claim["metadata"].get("labels") or {})
        ]
        if found:
            raise StillInUse(
                f"{_names(found, resource.kind)} still there, and without this controller nobody deletes "
                f"their agent pools: delete their Workspaces first, or uninstall with --no-hooks. {_way_back(undo)}"
            )


def _way_back(undo: str) -> str:
    """Helm marks a release before its hooks run, and upgrades none that is marked."""
    return f"Nothing is uninstalled, but helm holds the release for half gone: {undo} makes it whole"


def _list(client: Client, resource: Resource) -> list[Obj]:
    try:
        return client.list(resource).items
    except NotFound:
        return []


def _names(found: list[Obj], kind: str) -> str:
    shown = ", ".join(str(Key.of(obj)) for obj in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} {kind}{'' if len(found) == 1 else 's'} ({shown}{more}) {'is' if len(found) == 1 else 'are'}"
