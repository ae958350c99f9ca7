"""Writing to an OCI registry: blobs, a manifest, and whether one may write at all.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push. Mirrors are never written to, and nothing is
sent to another origin than the registry's own, wherever it says that an upload belongs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlencode

from kaito_hooks.artifacts.errors import AccessDenied, ArtifactNotFound, InvalidReference, NotPushed, Unreachable
from kaito_hooks.artifacts.package import MANIFEST_TYPE, Package, sha256
from kaito_hooks.artifacts.registry.access import Answer
from kaito_hooks.artifacts.registry.credentials import Credentials
from kaito_hooks.artifacts.registry.endpoints import Registries
from kaito_hooks.artifacts.registry.reader import RegistryReader
from kaito_hooks.artifacts.registry.reference import Reference
from kaito_hooks.artifacts.transfer.http import Transfer, follow, origin

# Refusals that another try may end: what another push holds, what comes too early, what was damaged on its way.
_PASSING = (409, 423, 425)
_PASSING_CODES = frozenset({"BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "SIZE_INVALID"})
_MEANINGS = {405: "it takes no pushes", 413: "it, or a proxy before it, takes nothing so large"}
_LONGEST_REASON = 500


class RegistryWriter(RegistryReader):
    """Writes one repository. Every call is one try; the caller decides about another."""

    _actions = ("pull", "push")

    def __init__(
        self,
        reference: Reference,
        *,
        registries: Registries,
        transfer: Transfer,
        credentials: Sequence[Credentials] = (),
    ) -> None:
        if reference.tag is None:
            raise InvalidReference(f"{reference} has no tag to push to")
        direct = replace(registries, mirrors={})
        super().__init__(reference, registries=direct, transfer=transfer, credentials=credentials)

    def probe(self) -> None:
        """Opens an upload and cancels it. Raises AccessDenied, NotPushed, Unreachable."""
        location = self._begin_upload()
        # A registry that cannot cancel forgets the upload by itself.
        self._send("DELETE", location)

    def push(self, package: Package) -> str:
        """Pushes and returns the manifest's digest; nothing is sent that is there already. Raises ArtifactError."""
        if self._present() == package.digest:
            return package.digest
        self._put_blob(package.config_digest, package.config)
        self._put_blob(package.layer_digest, package.layer)
        url = f"{self._access.base}/manifests/{self._reference.tag}"
        self._expect(201, self._send("PUT", url, body=package.manifest, headers={"Content-Type": MANIFEST_TYPE}))
        return package.digest

    def _present(self) -> str | None:
        try:
            status, body = self._get_manifest(str(self._reference.tag))
        except ArtifactNotFound:
            return None
        return sha256(body) if status == 200 else None

    def _put_blob(self, digest: str, content: bytes | Path) -> None:
        if self._send("HEAD", f"{self._access.base}/blobs/{digest}")[0] == 200:
            return
        location = self._begin_upload()
        url = f"{location}{'&' if '?' in location else '?'}{urlencode({'digest': digest})}"
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if isinstance(content, bytes):
            answer = self._send("PUT", url, body=content, headers=headers)
        else:
            with content.open("rb") as file:
                answer = self._send("PUT", url, body=file, headers=headers)
        self._expect(201, answer)

    def _begin_upload(self) -> str:
        url = f"{self._access.base}/blobs/uploads/"
        answer = self._send("POST", url, headers={"Content-Length": "0"})
        self._expect(202, answer)
        location = follow(url, answer[1].get("Location", url))
        if origin(location) != origin(url):
            raise Unreachable(
                f"{self._reference.registry} wants the upload of {self._reference} sent to {origin(location)}; "
                f"nothing is sent anywhere but to {origin(url)}"
            )
        return location

    def _send(
        self, method: str, url: str, *, body: bytes | BinaryIO | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        more = dict(headers or {})

        def ask(authorization: Mapping[str, str]) -> Answer:
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            return self._transfer.send(method, url, headers={**authorization, **more}, body=body)

        return self._access.request(ask)

    def _expect(self, wanted: int, answer: Answer) -> None:
        status, _, body = answer
        if status == wanted:
            return
        where = f"{self._reference.registry}/{self._reference.repository}"
        if status in (401, 403):
            known = (
                "the push secret's credentials are not accepted" if self._has_credentials else "no push secret is given"
            )
            raise AccessDenied(f"pushing to {where} is refused ({status}): {known}")
        if status == 404:
            raise ArtifactNotFound(f"{where} cannot be pushed to (404): does the repository exist?")
        errors = _errors(body)
        reason = "; ".join(f"{code} {message}" for code, message in errors.items()) or _MEANINGS.get(status, "")
        message = f"{self._reference.registry} answered {status} to a push of {self._reference}"
        passes = not 300 <= status < 500 or status in _PASSING or not _PASSING_CODES.isdisjoint(errors)
        raise (Unreachable if passes else NotPushed)(f"{message}: {reason[:_LONGEST_REASON]}" if reason else message)


def _errors(body: bytes) -> dict[str, str]:
    """What a registry says of its refusal, by code; nothing if it is not in the form of the specification.

    https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes
    """
    try:
        return {str(error["code"]): str(error.get("message", "")) for error in json.loads(body)["errors"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
