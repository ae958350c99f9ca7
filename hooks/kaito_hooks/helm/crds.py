"""Applies a chart's CRDs, because helm installs the files of ``crds/`` once and never upgrades them.

A CRD without our label belongs to somebody else. That of a Karpenter is as good as ours and stays as it is; a Workspace
of another operator is not one that this controller reads. Fields are taken back from whoever changed them by hand, and
never from somebody who applies the CRD himself and would take them back in turn. A CRD of a newer chart stays when an
older chart comes, as at a rollback: the older one's objects fit into it, and stored objects keep their fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from kaito_hooks.helm import schema_fields
from kaito_hooks.helm.errors import ContestedField, ForeignDefinition, HookError, UnsafeUpgrade
from kaito_hooks.helm.resources import CUSTOM_RESOURCE_DEFINITION
from kaito_hooks.runtime import Client, Conflict, NotFound, Obj

PART_OF = "app.kubernetes.io/part-of"
OWNER = "kaito"
FIELD_MANAGER = "kaito-helm"
# Field managers of appliers who come once: `kubectl apply --server-side`, which the charts' README names as the way by
# hand, and helm 4, which applies the files of crds/ at the installation and never again.
_ONCE = ("kubectl", "helm")
# Those who bring whole CRDs of a chart; others than these, and those who apply for ever, change something by hand.
_BRINGERS = (FIELD_MANAGER, *_ONCE, "kubectl-client-side-apply", "kubectl-create", "kubectl-replace")
_SCHEMAS = ".spec.versions"
_SHOWN = 5
_BY_HAND = "if they may go, kubectl apply --server-side --force-conflicts -f <the chart's folder crds>"
_HOLDER = re.compile(r'conflict with "([^"]+)"')


def apply_crds(client: Client, folder: Path, *, leave_foreign: bool, report: Callable[[str], None]) -> None:
    """Applies every CRD of the folder's YAML files by server-side apply.

    One that somebody else installed is left as it is (``leave_foreign``), or raises ForeignDefinition. Raises
    UnsafeUpgrade if objects are stored in a version that a new CRD lacks, or would lose fields to one that has others;
    ContestedField if somebody else applies a field that would change, HookError if the folder holds no CRD; all of them
    before anything is written. One that knows fewer fields than that of the cluster, and no others, is not applied.
    """
    wanted = list(read(folder))
    if not wanted:
        raise HookError(f"{folder} holds no CustomResourceDefinition")
    found = {crd["metadata"]["name"]: _existing(client, crd["metadata"]["name"]) for crd in wanted}
    foreign = [name for name, crd in found.items() if not _is_ours(crd)]
    if foreign and not leave_foreign:
        raise ForeignDefinition(
            f"{', '.join(foreign)} in this cluster has no label {PART_OF}={OWNER}, so another operator installed it, "
            "and two operators would act on the same objects: uninstall the other one, then give the CRD to this chart "
            "with kubectl apply --server-side --force-conflicts -f <the chart's folder crds>"
        )
    ours = [crd for crd in wanted if crd["metadata"]["name"] not in foreign]
    taken, newer = {}, {}
    for crd in ours:
        name = crd["metadata"]["name"]
        _check_versions(crd, found[name])
        taken[name] = _conflicts(client, crd, found[name])
        newer[name] = newer_fields(found[name], crd, held=taken[name])
    for crd in wanted:
        name = crd["metadata"]["name"]
        if newer.get(name):
            report(
                f"kept {name} as it is: it is of a newer chart, and stored objects would lose {_some(newer[name])}, "
                f"which this chart does not know; {_BY_HAND}"
            )
        elif name in taken:
            client.apply(CUSTOM_RESOURCE_DEFINITION, crd, field_manager=FIELD_MANAGER, force=True)
            report(f"applied {name}{_told(taken[name])}")
        else:
            report(f"left {name} as it is: it has no label {PART_OF}={OWNER}, so somebody else installed it")


def read(folder: Path) -> Iterator[Obj]:
    """The CRDs in the YAML files of a folder, in the order of their names."""
    for path in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document and document.get("kind") == CUSTOM_RESOURCE_DEFINITION.kind:
                yield document


def conflicts_of(error: Conflict) -> dict[str, list[str]]:
    """The fields that an apply without force would change and others hold, by the names of their managers.

    https://kubernetes.io/docs/reference/using-api/server-side-apply/#conflicts
    """
    held: dict[str, list[str]] = {}
    for cause in (error.details or {}).get("causes") or ():
        holder = _HOLDER.search(str(cause.get("message")))
        if cause.get("reason") == "FieldManagerConflict" and holder:
            held.setdefault(holder[1], []).append(str(cause.get("field")))
    return held


def contested(held: dict[str, list[str]], found: Obj | None) -> dict[str, list[str]]:
    """Of the fields that others hold, those whose manager applies the CRD and would take them back in turn."""
    entries = ((found or {}).get("metadata") or {}).get("managedFields") or ()
    appliers = {str(entry.get("manager")) for entry in entries if _applies(entry)} - {FIELD_MANAGER, *_ONCE}
    return {manager: fields for manager, fields in held.items() if manager in appliers}


def newer_fields(found: Obj | None, wanted: Obj, *, held: dict[str, list[str]]) -> list[str]:
    """Fields that the CRD of the cluster knows beyond ``wanted``, if a chart has brought it; none if somebody has
    changed it by hand (``held``: who holds fields that would change).

    Raises UnsafeUpgrade if ``wanted`` knows fields that are missing there: neither of the two could stand for both.
    """
    by_hand = any(_SCHEMAS in fields and manager.lower() not in _BRINGERS for manager, fields in held.items())
    if found is None or by_hand:
        return []
    more, fewer = schema_fields.lost(found, wanted), schema_fields.lost(wanted, found)
    if more and fewer:
        raise UnsafeUpgrade(
            f"stored objects of {wanted['metadata']['name']} would lose {_some(more)}, which this chart does not know, "
            f"and it brings {_some(fewer)}; install a chart that knows all of them, or, {_BY_HAND}, and upgrade again"
        )
    return more


def _some(fields: list[str]) -> str:
    more = f" and {len(fields) - _SHOWN} more" if len(fields) > _SHOWN else ""
    return f"{', '.join(fields[:_SHOWN])}{more}"


def _existing(client: Client, name: str) -> Obj | None:
    try:
        return client.get(CUSTOM_RESOURCE_DEFINITION, name)
    except NotFound:
        return None


def _is_ours(found: Obj | None) -> bool:
    return found is None or (found["metadata"].get("labels") or {}).get(PART_OF) == OWNER


def _check_versions(wanted: Obj, found: Obj | None) -> None:
    stored = ((found or {}).get("status") or {}).get("storedVersions") or []
    offered = {version["name"] for version in wanted["spec"]["versions"]}
    missing = [version for version in stored if version not in offered]
    if missing:
        raise UnsafeUpgrade(
            f"objects of {wanted['metadata']['name']} are stored as {', '.join(missing)}, which this chart "
            "does not know; upgrade to a chart that does, or migrate them first"
        )


def _conflicts(client: Client, wanted: Obj, found: Obj | None) -> dict[str, list[str]]:
    """The fields that are to be taken back, by who holds them; raises ContestedField where that would begin a fight."""
    try:
        client.apply(CUSTOM_RESOURCE_DEFINITION, wanted, field_manager=FIELD_MANAGER, force=False, dry_run=True)
    except Conflict as error:
        held = conflicts_of(error)
        if not held:
            raise
    else:
        return {}
    if fought_over := contested(held, found):
        whose = "; ".join(f"{manager} holds {', '.join(fields)}" for manager, fields in sorted(fought_over.items()))
        raise ContestedField(
            f"{wanted['metadata']['name']} is applied by somebody else, who would undo this upgrade: {whose}; let that "
            "one apply the files of this chart's folder crds, then upgrade with hooks.upgradeCRDs=false"
        )
    return held


def _applies(entry: Obj) -> bool:
    return entry.get("operation") == "Apply" and not entry.get("subresource")


def _told(taken: dict[str, list[str]]) -> str:
    """Whose changes are gone; helm's own creation is none."""
    others = {manager: fields for manager, fields in taken.items() if manager.lower() != "helm"}
    parts = (f"{', '.join(fields)} from {manager}" for manager, fields in sorted(others.items()))
    return f", and took back {'; '.join(parts)}" if others else ""
