"""Applies a chart's CRDs, because helm installs the files of ``crds/`` once and never upgrades them.

A CRD without our label belongs to somebody else, for example NodeClaim to a Karpenter of its own: it stays as it is,
unless the caller takes it over (as KAITO does with Workspace, whatever has installed it before).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from kaito_hooks.helm.errors import HookError, UnsafeUpgrade
from kaito_hooks.helm.resources import CUSTOM_RESOURCE_DEFINITION
from kaito_hooks.runtime import Client, NotFound, Obj

PART_OF = "app.kubernetes.io/part-of"
OWNER = "kaito"
FIELD_MANAGER = "kaito-helm"


def apply_crds(client: Client, folder: Path, *, take_over: bool, report: Callable[[str], None]) -> None:
    """Applies every CRD of the folder's YAML files by server-side apply.

    Raises UnsafeUpgrade before anything is written if objects are stored in a version that a new CRD lacks, HookError
    if the folder holds no CRD.
    """
    wanted = list(read(folder))
    if not wanted:
        raise HookError(f"{folder} holds no CustomResourceDefinition")
    found = {crd["metadata"]["name"]: _existing(client, crd["metadata"]["name"]) for crd in wanted}
    ours = [crd for crd in wanted if take_over or _is_ours(found[crd["metadata"]["name"]])]
    for crd in ours:
        _check_versions(crd, found[crd["metadata"]["name"]])
    for crd in wanted:
        name = crd["metadata"]["name"]
        if crd in ours:
            client.apply(CUSTOM_RESOURCE_DEFINITION, crd, field_manager=FIELD_MANAGER)
            report(f"applied {name}")
        else:
            report(f"left {name} as it is: it has no label {PART_OF}={OWNER}, so somebody else installed it")


def read(folder: Path) -> Iterator[Obj]:
    """The CRDs in the YAML files of a folder, in the order of their names."""
    for path in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document and document.get("kind") == CUSTOM_RESOURCE_DEFINITION.kind:
                yield document


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
