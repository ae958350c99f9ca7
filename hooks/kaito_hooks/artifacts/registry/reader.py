"""Reading an OCI registry: manifests by tag or digest, blobs as verified streams.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kaito_hooks.artifacts.errors import (
    AccessDenied,
    ArtifactNotFound,
    Damaged,
    Unreachable,
    UnsupportedArtifact,
)
from kaito_hooks.artifacts.registry.access import Access
from kaito_hooks.artifacts.registry.credentials import Credentials
from kaito_hooks.artifacts.registry.endpoints import Registries
from kaito_hooks.artifacts.registry.reference import Reference
from kaito_hooks.artifacts.transfer.http import Transfer

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_DOCUMENT_LIMIT = 8 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob of an image or artifact. ``title`` is its file name, if it is a file."""

    digest: str
    size: int
    media_type: str
    title: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image or artifact, with the digest of the manifest that was asked for."""

    digest: str
    config_media_type: str
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


class RegistryReader:
    """Reads one repository: from a mirror if there is one, and from the registry itself what the mirror lacks."""

    _actions: Sequence[str] = ("pull",)

    def __init__(
        self,
        reference: Reference,
        *,
        registries: Registries,
        transfer: Transfer,
        credentials: Sequence[Credentials] = (),
    ) -> None:
        self._reference = reference
        self._has_credentials = bool(credentials)
        self._transfer = transfer
        self._endpoints = [
            Access(endpoint, credentials=credentials, actions=self._actions, transfer=transfer)
            for endpoint in registries.endpoints(reference)
        ]
        self._passed: list[str] = []

    def manifest(self) -> Manifest:
        """The manifest; of an index, the one for linux/amd64 if there is one. Digests are verified."""
        document, digest = self._document(self._reference.version)
        if document.get("mediaType") in _INDEXES or "manifests" in document:
            document, _ = self._document(_entry(document, self._reference))
        if "layers" not in document:
            raise UnsupportedArtifact(f"{self._reference} is neither an image nor an artifact with files")
        try:
            return Manifest(
                digest=digest,
                config_media_type=str((document.get("config") or {}).get("mediaType", "")),
                layers=tuple(_descriptor(layer) for layer in document["layers"]),
                annotations=document.get("annotations") or {},
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UnsupportedArtifact(f"{self._reference} has a manifest that names no usable layers") from None

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes. Raises Damaged after the last byte if they are not what the digest says."""
        digest = hashlib.sha256()
        received = 0
        while True:
            try:
                for chunk in self._stream(self._access, descriptor):
                    digest.update(chunk)
                    received += len(chunk)
                    yield chunk
                break
            except (AccessDenied, ArtifactNotFound, Unreachable) as error:
                if received or self._is_last():
                    raise
                self._pass_over(str(error))
        if f"sha256:{digest.hexdigest()}" != descriptor.digest or received != descriptor.size:
            raise Damaged(f"{self._reference}: blob {descriptor.digest[:19]} arrived damaged ({received} bytes)")

    def _stream(self, access: Access, descriptor: Descriptor) -> Iterator[bytes]:
        def renew(challenge: str) -> Mapping[str, str] | None:
            return access.headers if access.answer(challenge) else None

        url = f"{access.base}/blobs/{descriptor.digest}"
        return self._transfer.stream(url, headers=access.headers, size=descriptor.size, renew=renew)

    def _document(self, version: str) -> tuple[dict[str, Any], str]:
        status, body = self._get_manifest(version)
        if status in (401, 403):
            known = "no pull secret is given for it"
            if self._has_credentials:
                known = "the pull secret's credentials are not accepted"
            where = f"{self._reference.registry} refuses access to {self._reference.repository}"
            raise AccessDenied(f"{where} ({status}): {known}{self._via()}")
        if status == 404:
            raise ArtifactNotFound(f"there is no image {self._reference}{self._via()}")
        if status != 200:
            raise Unreachable(f"{self._reference.registry} answered {status} for {self._reference}{self._via()}")
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if version.startswith("sha256:") and digest != version:
            raise Damaged(f"{self._reference}: the manifest does not match its digest {version[:19]}")
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Unreachable(f"{self._reference.registry} answered with something that is no manifest{self._via()}")
        return document, digest

    def _get_manifest(self, version: str) -> tuple[int, bytes]:
        while True:
            access = self._access
            try:
                status, _, body = access.request(partial(self._ask, f"{access.base}/manifests/{version}"))
            except Unreachable as error:
                if self._is_last():
                    raise Unreachable(f"{error}{self._via()}", retry_after=error.retry_after) from error
                self._pass_over(str(error))
            else:
                if status == 200 or self._is_last():
                    return status, body
                self._pass_over(f"{access.endpoint.url} answered {status}")

    def _ask(self, url: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        accept = {"Accept": ", ".join((*_MANIFESTS, *_INDEXES))}
        return self._transfer.get(url, headers={**headers, **accept}, limit=_DOCUMENT_LIMIT)

    @property
    def _access(self) -> Access:
        return self._endpoints[0]

    def _is_last(self) -> bool:
        return len(self._endpoints) == 1

    def _pass_over(self, reason: str) -> None:
        """From here on the next endpoint is asked."""
        self._passed.append(reason)
        del self._endpoints[0]

    def _via(self) -> str:
        return f" (asked its mirror before: {'; '.join(self._passed)})" if self._passed else ""


def _descriptor(layer: Mapping[str, Any]) -> Descriptor:
    digest = str(layer["digest"])
    if not _DIGEST.fullmatch(digest):
        raise ValueError(digest)
    return Descriptor(
        digest=digest,
        size=int(layer["size"]),
        media_type=str(layer.get("mediaType", "")),
        title=(layer.get("annotations") or {}).get("org.opencontainers.image.title"),
    )


def _entry(index: Mapping[str, Any], reference: Reference) -> str:
    """The digest of an index's manifest: best for linux/amd64, but only files are wanted, and they have no platform."""

    def rank(entry: Mapping[str, Any]) -> tuple[bool, ...]:
        platform = entry.get("platform") or {}
        named = (platform.get("os"), platform.get("architecture"))
        return named != ("linux", "amd64"), named != (None, None), named[0] != "linux"

    try:
        entries = [
            entry
            for entry in index["manifests"]
            # What was attested of an image stands beside it: https://docs.docker.com/build/metadata/attestations/
            if (entry.get("platform") or {}).get("os") != "unknown" and _DIGEST.fullmatch(entry["digest"])
        ]
        return str(min(entries, key=rank)["digest"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnsupportedArtifact(f"{reference} is an index that names no image") from None
