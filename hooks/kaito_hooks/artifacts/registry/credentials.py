"""Registry credentials from mounted ``.dockerconfigjson`` files. Never logged, never in an error's text."""

from __future__ import annotations

import base64
import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaito_hooks.artifacts.errors import AccessDenied
from kaito_hooks.artifacts.registry.reference import Reference

_DOCKER_HUB = ("index.docker.io", "registry-1.docker.io")
_FIELDS = ("username", "password", "auth", "identitytoken", "credsStore")
_OLD_NAME = ".dockercfg"  # of Secrets of type kubernetes.io/dockercfg


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password, or an identity token, which a token server takes instead of a password."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


def find(reference: Reference, files: Iterable[Path]) -> list[Credentials]:
    """All credentials whose registry, or registry and path, is a prefix of the reference, the longest prefix first.

    A label of the registry may be a pattern (``*.azurecr.io``). Like the kubelet, try them in turn:
    https://kubernetes.io/docs/concepts/containers/images/#config-json. Raises AccessDenied for a Secret that holds
    nothing usable for this registry although it should, naming the Secret's folder and nothing of its content.
    """
    wanted = f"{reference.registry}/{reference.repository}"
    found: list[tuple[int, Credentials]] = []
    unusable = ""
    for path in files:
        for key, entry in _read(path).items():
            prefix = _normal(key)
            if not _covers(prefix, wanted):
                continue
            try:
                credentials = _decode(entry)
            except ValueError:
                unusable = f"the Secret mounted at {path.parent} has an auth for {prefix} that is no user:password"
                continue
            if credentials is not None:
                found.append((len(prefix), credentials))
            elif entry["credsStore"]:
                unusable = (
                    f"the Secret mounted at {path.parent} leaves the credentials for {prefix} to the credential store "
                    f"{entry['credsStore']}; create it with `kubectl create secret docker-registry`"
                )
    if unusable and not found:
        raise AccessDenied(unusable)
    found.sort(key=lambda entry: -entry[0])
    return list(dict.fromkeys(credentials for _, credentials in found))


def _covers(prefix: str, wanted: str) -> bool:
    host, _, path = prefix.partition("/")
    wanted_host, _, wanted_path = wanted.partition("/")
    labels, wanted_labels = host.split("."), wanted_host.split(".")
    if len(labels) != len(wanted_labels):
        return False
    if not all(fnmatch.fnmatchcase(label, pattern) for label, pattern in zip(wanted_labels, labels, strict=True)):
        return False
    return not path or wanted_path == path or wanted_path.startswith(f"{path}/")


def _read(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The entries by registry; ``credsStore`` of one is the program that keeps its credentials outside of the file."""
    try:
        document = json.loads((path if path.exists() else path.with_name(_OLD_NAME)).read_text())
        if {"auths", "credsStore", "credHelpers"}.isdisjoint(document):
            document = {"auths": document}
        auths = document.get("auths") or {}
        stores = {**dict.fromkeys(auths, document.get("credsStore")), **(document.get("credHelpers") or {})}
        entries = {key: {**(auths.get(key) or {}), "credsStore": store} for key, store in stores.items()}
        if all(isinstance(entry.get(name), str | None) for entry in entries.values() for name in _FIELDS):
            return entries
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    raise AccessDenied(
        f"the Secret mounted at {path.parent} holds no usable {path.name} (is its type kubernetes.io/dockerconfigjson?)"
    )


def _decode(entry: Mapping[str, Any]) -> Credentials | None:
    """Raises ValueError for an ``auth`` that is none."""
    username, password, auth, identity_token, _ = (entry.get(name) or "" for name in _FIELDS)
    if auth and not (username and password):
        # The kubelet takes base64 with and without its padding.
        packed = "".join(auth.split()).rstrip("=")
        pair = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True).decode()
        username, colon, password = pair.partition(":")
        if not colon:
            raise ValueError(f"{len(pair)} characters without a colon")
    return Credentials(username, password, identity_token) if password or identity_token else None


def _normal(key: str) -> str:
    host = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    for suffix in ("/v1", "/v2"):
        host = host.removesuffix(suffix)
    first, slash, rest = host.partition("/")
    return ("docker.io" if first in _DOCKER_HUB else first) + slash + rest
