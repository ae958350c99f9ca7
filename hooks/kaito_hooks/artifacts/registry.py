"""Reading an OCI registry: manifests by tag or digest, blobs as verified streams.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md; token authentication as registries do it:
https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from kaito_hooks.artifacts.credentials import Credentials
from kaito_hooks.artifacts.errors import (
    AccessDenied,
    ArtifactError,
    ArtifactNotFound,
    Damaged,
    Unreachable,
    UnsupportedArtifact,
)
from kaito_hooks.artifacts.reference import Reference
from kaito_hooks.artifacts.registries import Endpoint, Registries
from kaito_hooks.artifacts.transfer import Transfer

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_DOCUMENT_LIMIT = 8 << 20


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob of an image or artifact. ``title`` is its file name, if it is a file."""

    digest: str
    size: int
    media_type: str
    title: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image or artifact for this platform, with the digest of the manifest that was asked for."""

    digest: str
    config_media_type: str
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


class RegistryReader:
    """Reads one repository. The first endpoint that answers is used for everything that follows."""

    def __init__(
        self, reference: Reference, *, registries: Registries, transfer: Transfer, credentials: Credentials | None
    ) -> None:
        self._reference = reference
        self._endpoints = registries.endpoints(reference)
        self._endpoint: Endpoint | None = None
        self._transfer = transfer
        self._credentials = credentials
        self._authorization: str | None = None

    def manifest(self) -> Manifest:
        """The manifest; of an index, the one for linux/amd64. Digests are verified."""
        document, digest = self._document(self._reference.version)
        if document.get("mediaType") in _INDEXES or "manifests" in document:
            entry = _for_linux_amd64(document, self._reference)
            document, _ = self._document(str(entry["digest"]))
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
        url = f"{self._base()}/blobs/{descriptor.digest}"
        chunks = self._transfer.stream(url, headers=self._headers(), size=descriptor.size, renew=self._renew)
        for chunk in chunks:
            digest.update(chunk)
            received += len(chunk)
            yield chunk
        if f"sha256:{digest.hexdigest()}" != descriptor.digest or received != descriptor.size:
            raise Damaged(f"{self._reference}: blob {descriptor.digest[:19]} arrived damaged ({received} bytes)")

    def _document(self, version: str) -> tuple[dict[str, Any], str]:
        status, body = self._get_manifest(version)
        if status in (401, 403):
            raise AccessDenied(
                f"{self._reference.registry} refuses access to {self._reference.repository} ({status}): "
                + (
                    "the pull secret's credentials are not accepted"
                    if self._credentials
                    else "no pull secret is given for it"
                )
            )
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
        accept = {"Accept": ", ".join((*_MANIFESTS, *_INDEXES))}
        remaining = [self._endpoint] if self._endpoint else list(self._endpoints)
        while True:
            self._endpoint = remaining.pop(0)
            url = f"{self._base()}/manifests/{version}"
            try:
                status, headers, body = self._transfer.get(url, headers=self._headers() | accept, limit=_DOCUMENT_LIMIT)
                if status == 401 and self._authenticate(headers.get("WWW-Authenticate", "")):
                    status, _, body = self._transfer.get(url, headers=self._headers() | accept, limit=_DOCUMENT_LIMIT)
                return status, body
            except Unreachable:
                if not remaining:
                    raise

    def _renew(self, challenge: str) -> Mapping[str, str] | None:
        return self._headers() if self._authenticate(challenge) else None

    def _authenticate(self, challenge: str) -> bool:
        """Answers a Basic or Bearer challenge; whether there is something new to try."""
        assert self._endpoint is not None
        scheme, _, rest = challenge.partition(" ")
        basic = self._basic()
        if scheme.lower() == "basic":
            self._authorization = basic
            return basic is not None
        if scheme.lower() != "bearer":
            return False
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if "realm" not in fields:
            return False
        scope = fields.get("scope") or f"repository:{self._endpoint.repository}:pull"
        url = fields["realm"] + "?" + urlencode({"service": fields.get("service", ""), "scope": scope})
        if basic and url.startswith("http:") and self._endpoint.url.startswith("https:"):
            raise AccessDenied(f"{self._reference.registry} wants its password sent to a server without TLS")
        headers = {"Authorization": basic} if basic else {}
        status, _, body = self._transfer.get(url, headers=headers, limit=_DOCUMENT_LIMIT)
        if status != 200:
            return False
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError):
            token = None
        self._authorization = f"Bearer {token}" if token else None
        return token is not None

    def _basic(self) -> str | None:
        if self._credentials is None or (self._endpoint is not None and self._endpoint.is_mirror):
            return None
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._authorization} if self._authorization else {}

    def _base(self) -> str:
        if self._endpoint is None:
            raise ArtifactError("the manifest is read before its blobs")
        return f"{self._endpoint.url}/v2/{self._endpoint.repository}"

    def _via(self) -> str:
        mirrored = self._endpoint is not None and self._endpoint.is_mirror
        return f" (asked the mirror {self._endpoint.url})" if mirrored and self._endpoint else ""


def _descriptor(layer: Mapping[str, Any]) -> Descriptor:
    digest = str(layer["digest"])
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(digest)
    return Descriptor(
        digest=digest,
        size=int(layer["size"]),
        media_type=str(layer.get("mediaType", "")),
        title=(layer.get("annotations") or {}).get("org.opencontainers.image.title"),
    )


def _for_linux_amd64(index: Mapping[str, Any], reference: Reference) -> Mapping[str, Any]:
    entries = index.get("manifests") or []
    for entry in entries:
        platform = entry.get("platform") or {}
        if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64"):
            found: Mapping[str, Any] = entry
            return found
    offered = sorted(
        {f"{(e.get('platform') or {}).get('os')}/{(e.get('platform') or {}).get('architecture')}" for e in entries}
    )
    raise UnsupportedArtifact(f"{reference} has no linux/amd64 variant; it offers {', '.join(offered) or 'nothing'}")
