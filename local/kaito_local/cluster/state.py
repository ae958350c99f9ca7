"""Where a local cluster keeps its files, and what it remembers about itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kaito_local.errors import UsageError
from kaito_local.machine.folders import state_home

DEFAULT_NAME = "kaito"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def cluster_folder(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The state folder of the cluster ``name``; raises UsageError for a name that cannot be a folder's and a host's."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a cluster's name: use up to 32 small letters, digits and hyphens")
    return (state_home(environment) / name).resolve()


@dataclass(frozen=True, slots=True)
class State:
    """What a cluster remembers between commands (``kaito.json`` in its folder).

    ``ports``: those of a control plane without nodes (API server, etcd, etcd's peers). ``weights``: the user's own
    folders by preset. ``charts``: digest of what helm installed last; empty when nothing is.
    """

    control_plane_only: bool = False
    ports: tuple[int, int, int] | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    charts: str = ""

    @classmethod
    def load(cls, directory: Path) -> State | None:
        """The state of the cluster in ``directory``; None if there is none."""
        try:
            data: dict[str, Any] = json.loads(_file(directory).read_text())
        except FileNotFoundError:
            return None
        return cls(
            control_plane_only=data["control_plane_only"],
            ports=tuple(data["ports"]) if data["ports"] else None,
            weights=data["weights"],
            charts=data["charts"],
        )

    def save(self, directory: Path, **changes: Any) -> State:
        """Writes this state, with ``changes``, in one step; returns what was written."""
        state = replace(self, **changes)
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / ".kaito.json.partial"
        partial.write_text(json.dumps(asdict(state), indent=1))
        partial.rename(_file(directory))
        return state


def register_cluster(directory: Path, *, cache: Path) -> None:
    """Notes in the cache that the cluster in ``directory`` uses it, so that nobody tidies away what it needs."""
    note = cache / "clusters" / hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(str(directory))


def registered_clusters(*, cache: Path) -> list[Path]:
    """State folders of all clusters, of whatever home, that use the cache; notes about gone folders are dropped."""
    found = []
    for note in sorted((cache / "clusters").glob("*")):
        directory = Path(note.read_text())
        if directory.is_dir():
            found.append(directory)
        else:
            note.unlink()
    return found


def _file(directory: Path) -> Path:
    return directory / "kaito.json"
