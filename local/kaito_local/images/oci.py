"""A folder of container images: an OCI image layout (https://github.com/opencontainers/image-spec/blob/main/image-layout.md).

Layers lie in it uncompressed: on one machine, packing and unpacking costs more than the bytes. Blobs are named by their
SHA-256 and never change, so registries of any number of clusters link to them.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_NAME = "org.opencontainers.image.ref.name"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """Some bytes: ``sha256:<hex>``, their number and their media type."""

    digest: str
    size: int
    media_type: str

    def descriptor(self) -> dict[str, Any]:
        """As manifests refer to it."""
        return {"mediaType": self.media_type, "size": self.size, "digest": self.digest}


@dataclass(frozen=True, slots=True)
class Layout:
    """An OCI image layout at ``folder``."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Layout:
        """The layout in ``folder``; an empty one is made."""
        (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        marker = folder / "oci-layout"
        if not marker.exists():
            marker.write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
        return cls(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other writers out, of this process or another."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def path(self, digest: str) -> Path:
        """Where the blob lies, or would lie."""
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def find(self, name: str) -> Blob | None:
        """The manifest of the image called ``name``; None if it, or one of its blobs, is missing."""
        for entry in self._index():
            if entry.get("annotations", {}).get(_NAME) == name:
                manifest = Blob(entry["digest"], entry["size"], entry["mediaType"])
                if all(self.path(blob.digest).exists() for blob in (manifest, *self.parts(manifest.digest))):
                    return manifest
        return None

    def parts(self, digest: str) -> list[Blob]:
        """Config and layers of the manifest ``digest``; empty when the manifest is not there."""
        try:
            manifest = json.loads(self.path(digest).read_bytes())
        except FileNotFoundError:
            return []
        return [
            Blob(part["digest"], part["size"], part["mediaType"]) for part in (manifest["config"], *manifest["layers"])
        ]

    def add_bytes(self, data: bytes, *, media_type: str) -> Blob:
        """Stores ``data``."""
        with self._incoming() as file:
            file.write(data)
            return self._keep(file, hashlib.sha256(data).hexdigest(), media_type)

    def add_layer(self, files: Mapping[str, Path]) -> Blob:
        """A layer of regular files (path in the image: file here), root-owned and dateless: equal files, equal layers.

        Parent folders are in it too. Symbolic links are followed: Hugging Face's download cache is made of them.
        """
        with self._incoming() as file:
            hashing = _Hashing(file)
            with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                for folder in sorted({str(parent) for name in files for parent in Path(name).parents} - {".", "/"}):
                    archive.addfile(_entry(folder, kind=tarfile.DIRTYPE, mode=0o755))
                for name, source in sorted(files.items()):
                    with source.open("rb") as content:
                        archive.addfile(_entry(name, size=source.stat().st_size, mode=0o644), content)
            return self._keep(file, hashing.hexdigest(), LAYER_TYPE)

    def add_image(self, name: str, layers: Sequence[Blob], *, config: Mapping[str, Any]) -> Blob:
        """An image called ``name`` of uncompressed layers; ``config`` is the OCI config's own part ``config``."""
        described = {
            "architecture": _architecture(),
            "os": "linux",
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
        config_blob = self.add_bytes(json.dumps(described, sort_keys=True).encode(), media_type=CONFIG_TYPE)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config_blob.descriptor(),
            "layers": [layer.descriptor() for layer in layers],
        }
        blob = self.add_bytes(json.dumps(manifest).encode(), media_type=MANIFEST_TYPE)
        self._write_index([*self._without(name), {**blob.descriptor(), "annotations": {_NAME: name}}])
        return blob

    def forget_builder(self, name: str) -> Blob:
        """Takes out of an image what only the machine knows that built it, so that equal builds are equal images: the
        identifiers of the steps in between, and its base's name and digest there.
        """
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        manifest = json.loads(self.path(found.digest).read_bytes())
        config = json.loads(self.path(manifest["config"]["digest"]).read_bytes())
        for step in config.get("history", ()):
            step.pop("comment", None)
        notes = manifest.pop("annotations", {})
        kept = {key: value for key, value in notes.items() if not key.startswith("org.opencontainers.image.base.")}
        data = json.dumps(config, sort_keys=True).encode()
        manifest["config"] = self.add_bytes(data, media_type=manifest["config"]["mediaType"]).descriptor()
        manifest |= {"annotations": kept} if kept else {}
        blob = self.add_bytes(json.dumps(manifest, sort_keys=True).encode(), media_type=found.media_type)
        self._write_index([*self._without(name), {**blob.descriptor(), "annotations": {_NAME: name}}])
        return blob

    def names(self) -> list[str]:
        """All images."""
        return [entry.get("annotations", {}).get(_NAME, "") for entry in self._index()]

    def keep_only(self, names: set[str]) -> None:
        """Forgets all other images and removes the blobs that no image needs; what registries linked stays theirs."""
        kept = [entry for entry in self._index() if entry.get("annotations", {}).get(_NAME) in names]
        self._write_index(kept)
        needed = {self.path(entry["digest"]).name for entry in kept}
        needed |= {self.path(blob.digest).name for entry in kept for blob in self.parts(entry["digest"])}
        for file in (self.folder / "blobs" / "sha256").iterdir():
            if file.name not in needed:
                file.unlink()

    def _without(self, name: str) -> list[dict[str, Any]]:
        return [entry for entry in self._index() if entry.get("annotations", {}).get(_NAME) != name]

    def _index(self) -> list[dict[str, Any]]:
        try:
            manifests: list[dict[str, Any]] = json.loads((self.folder / "index.json").read_bytes())["manifests"]
        except FileNotFoundError:
            return []
        return manifests

    def _write_index(self, manifests: list[dict[str, Any]]) -> None:
        partial = self.folder / ".index.partial"
        partial.write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
        partial.rename(self.folder / "index.json")

    @contextmanager
    def _incoming(self) -> Iterator[Any]:
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".incoming-") as file:
            yield file

    def _keep(self, file: Any, digest: str, media_type: str) -> Blob:
        file.flush()
        target = self.path(digest)
        if not target.exists():
            os.chmod(file.name, 0o644)
            os.link(file.name, target)
        return Blob(f"sha256:{digest}", target.stat().st_size, media_type)


class _Hashing(io.RawIOBase):
    """A file to write to that also hashes what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(name: str, *, mode: int, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name.lstrip("/"))
    entry.size, entry.mode, entry.type = size, mode, kind
    return entry


def _architecture() -> str:
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
