"""Registry credentials from mounted ``.dockerconfigjson`` files. Never logged, never in an error's text."""

from __future__ import annotations

import base64
import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kaito_hooks.artifacts.errors import InvalidReference
from kaito_hooks.artifacts.reference import Reference

_DOCKER_HUB = ("index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password or token."""

    username: str
    password: str = field(repr=False)


def find(reference: Reference, files: Iterable[Path]) -> Credentials | None:
    """The credentials whose registry, or registry and path, is the longest prefix of the reference.

    A label of the registry may be a pattern (``*.azurecr.io``), as the kubelet reads it:
    https://kubernetes.io/docs/concepts/containers/images/#config-json. Raises InvalidReference for a file that is no
    .dockerconfigjson, naming the file and nothing of its content.
    """
    wanted = f"{reference.registry}/{reference.repository}"
    best: tuple[int, Credentials] | None = None
    for path in files:
        for key, entry in _entries(path).items():
            prefix = _normal(key)
            if not _covers(prefix, wanted):
                continue
            found = _decode(entry)
            if found is not None and (best is None or len(prefix) > best[0]):
                best = (len(prefix), found)
    return best[1] if best else None


def _covers(prefix: str, wanted: str) -> bool:
    host, _, path = prefix.partition("/")
    wanted_host, _, wanted_path = wanted.partition("/")
    labels, wanted_labels = host.split("."), wanted_host.split(".")
    if len(labels) != len(wanted_labels):
        return False
    if not all(fnmatch.fnmatchcase(label, pattern) for label, pattern in zip(wanted_labels, labels, strict=True)):
        return False
    return not path or wanted_path == path or wanted_path.startswith(f"{path}/")


def _entries(path: Path) -> Mapping[str, Mapping[str, str]]:
    try:
        document = json.loads(path.read_text())
        auths = document.get("auths", document) if isinstance(document, dict) else None
        if isinstance(auths, dict) and all(isinstance(entry, dict) for entry in auths.values()):
            return auths
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        pass
    raise InvalidReference(
        f"the secret mounted at {path.parent} holds no usable {path.name} (is its type kubernetes.io/dockerconfigjson?)"
    )


def _decode(entry: Mapping[str, str]) -> Credentials | None:
    if entry.get("username") and entry.get("password"):
        return Credentials(entry["username"], entry["password"])
    try:
        username, colon, password = base64.b64decode(entry.get("auth", "")).decode().partition(":")
    except ValueError:
        return None
    return Credentials(username, password) if colon else None


def _normal(key: str) -> str:
    host = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    for suffix in ("/v1", "/v2"):
        host = host.removesuffix(suffix)
    first, slash, rest = host.partition("/")
    return ("docker.io" if first in _DOCKER_HUB else first) + slash + rest
