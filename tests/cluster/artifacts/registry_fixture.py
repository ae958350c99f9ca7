"""Pushing to a real registry, byte by byte, so that tests choose every digest, media type and defect."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from tests.conftest import ROOT
from tests.eventually import eventually

from kaito_local.cluster.registry import Registry
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.ports import free_ports

CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def tar(files: dict[str, bytes | None], *, links: dict[str, str] | None = None, mode: int = 0o644) -> bytes:
    """An archive of files (None: a folder) and symbolic links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.mode = mode
            if data is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.SYMTYPE
            member.linkname = target
            archive.addfile(member)
    return buffer.getvalue()


@dataclass
class RunningRegistry:
    """A registry on loopback with basic authentication."""

    host: str
    user: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        headers = urllib3.make_headers(basic_auth=f"{self.user}:{self.password}")
        self._pool = urllib3.PoolManager(headers=headers, retries=False)

    def docker_config(self, *, password: str | None = None) -> str:
        return json.dumps({"auths": {self.host: {"username": self.user, "password": password or self.password}}})

    def blob(self, repository: str, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        started = self._pool.request("POST", f"http://{self.host}/v2/{repository}/blobs/uploads/")
        assert started.status == 202, started.data
        location = started.headers["Location"]
        url = location if location.startswith("http") else f"http://{self.host}{location}"
        headers = {**self._pool.headers, "Content-Type": "application/octet-stream"}
        done = self._pool.request(
            "PUT", f"{url}{'&' if '?' in url else '?'}digest={digest}", body=data, headers=headers
        )
        assert done.status == 201, done.data
        return {"mediaType": media_type, "size": len(data), "digest": digest, **more}

    def manifest(self, repository: str, tag: str, document: dict[str, Any]) -> str:
        body = json.dumps(document).encode()
        headers = {**self._pool.headers, "Content-Type": document["mediaType"]}
        done = self._pool.request(
            "PUT", f"http://{self.host}/v2/{repository}/manifests/{tag}", body=body, headers=headers
        )
        assert done.status == 201, done.data
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def read_bytes(self, repository: str, path: str) -> bytes:
        headers = {**self._pool.headers, "Accept": MANIFEST}
        found = self._pool.request("GET", f"http://{self.host}/v2/{repository}/{path}", headers=headers)
        assert found.status == 200, found.data
        return bytes(found.data)

    def read(self, repository: str, path: str) -> Any:
        return json.loads(self.read_bytes(repository, path))

    def with_layer(self, repository: str, base: str, tag: str, layer: bytes) -> str:
        """Pushes what the repository has as `base` with one more tar layer and returns the manifest's digest."""
        document = self.read(repository, f"manifests/{base}")
        config = self.read(repository, f"blobs/{document['config']['digest']}")
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
        config.pop("history", None)
        document["layers"].append(self.blob(repository, layer, LAYER))
        document["config"] = self.blob(repository, json.dumps(config).encode(), document["config"]["mediaType"])
        return self.manifest(repository, tag, document)

    def image(self, repository: str, tag: str, *layers: bytes, compress: str = "gzip") -> str:
        """Pushes an image of these tar layers and returns the manifest's digest."""
        pushed = []
        for layer in layers:
            if compress == "gzip":
                pushed.append(self.blob(repository, gzip.compress(layer, mtime=0), f"{LAYER}+gzip"))
            elif compress == "zstd":
                import zstandard

                pushed.append(self.blob(repository, zstandard.ZstdCompressor().compress(layer), f"{LAYER}+zstd"))
            else:
                pushed.append(self.blob(repository, layer, LAYER))
        config = self.blob(repository, b'{"architecture":"amd64","os":"linux"}', CONFIG)
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": pushed}
        return self.manifest(repository, tag, document)


class RegistryServer:
    """The registry of a local cluster as a process that can be stopped and started again, with what it holds."""

    def __init__(self, folder: Path) -> None:
        program = gotools.ensure(["registry"], tools=ROOT / "tools", cache=cache_folder())["registry"]
        mirror_port, port = free_ports(2)
        described = Registry(folder, "127.0.0.1", mirror_port=mirror_port, port=port)
        self._program = next(p for p in described.programs(program) if p.name == "registry")
        self._process: subprocess.Popen[bytes] | None = None
        self.running = RunningRegistry(described.host, "kaito", described.password())

    def start(self) -> None:
        """Answers when this returns."""
        with open(self._program.log, "ab") as log:
            environment = os.environ | dict(self._program.environment)
            self._process = subprocess.Popen(self._program.command, env=environment, stdout=log, stderr=log)
        eventually(
            lambda: urllib3.request("GET", f"http://{self.running.host}/v2/", retries=False).status == 401,
            what=Path(self._program.log).read_text,
            despite=urllib3.exceptions.HTTPError,
        )

    def stop(self) -> None:
        """Nobody listens when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
