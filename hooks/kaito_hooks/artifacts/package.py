"""An adapter as one layer that is image and artifact at once, the same bytes for the same files.

Image tools see a layer with the folder ``data``; artifact tools unpack a folder titled ``data``; our puller reads both.
https://github.com/opencontainers/image-spec/blob/main/manifest.md
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_FOLDER = "data"


@dataclass(frozen=True, slots=True)
class Package:
    """What is pushed: the packed layer as a file, and the two documents that describe it."""

    layer: Path
    layer_digest: str
    config: bytes
    manifest: bytes

    @property
    def config_digest(self) -> str:
        """Of the image's configuration."""
        return sha256(self.config)

    @property
    def digest(self) -> str:
        """Of the manifest: what the adapter is pulled by."""
        return sha256(self.manifest)


def pack(folder: Path, *, work: Path, annotations: Mapping[str, str] | None = None) -> Package:
    """Packs the regular files of ``folder`` into ``work``/layer.tar.gz."""
    layer = work / "layer.tar.gz"
    with layer.open("wb") as file:
        packed = _Hashing(file)
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=6, mtime=0) as zipped:
            plain = _Hashing(zipped)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                archive.addfile(_entry(_FOLDER, kind=tarfile.DIRTYPE, mode=0o755))
                for path in sorted(folder.rglob("*")):
                    if path.is_symlink() or not (path.is_file() or path.is_dir()):
                        continue
                    name = f"{_FOLDER}/{path.relative_to(folder).as_posix()}"
                    if path.is_dir():
                        archive.addfile(_entry(name, kind=tarfile.DIRTYPE, mode=0o755))
                        continue
                    with path.open("rb") as content:
                        archive.addfile(_entry(name, size=path.stat().st_size, mode=0o644), content)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [plain.digest]},
    }
    config_bytes = _encoded(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "size": len(config_bytes), "digest": sha256(config_bytes)},
        "layers": [
            {
                "mediaType": LAYER_TYPE,
                "size": layer.stat().st_size,
                "digest": packed.digest,
                "annotations": {"org.opencontainers.image.title": _FOLDER, "io.deis.oras.content.unpack": "true"},
            }
        ],
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    return Package(layer=layer, layer_digest=packed.digest, config=config_bytes, manifest=_encoded(manifest))


def sha256(data: bytes) -> str:
    """As registries write digests."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _entry(name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 0, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.mode = kind, size, mode
    return member


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


class _Hashing(io.RawIOBase):
    """A file to write to that knows the digest of what was written."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        super().__init__()
        self._file = file
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)
