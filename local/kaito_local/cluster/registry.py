"""The local cluster's registry: the `registry` program of the CNCF distribution project, twice over one storage folder.

One listener is anonymous and read-only: nodes and Pods use it as the mirror of the public registries. The other wants a
user and a password and takes pushes, as a user's own registry does. Images that this machine built are not pushed:
their blobs are linked into the storage folder, whose layout is that of distribution v3
(https://github.com/distribution/distribution/blob/main/registry/storage/paths.go).
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kaito_local.errors import StartError
from kaito_local.images.mirrors import Reference
from kaito_local.images.oci import Layout
from kaito_local.machine.pki import write_private
from kaito_local.machine.supervisor import Program

USER = "kaito"


@dataclass(frozen=True, slots=True)
class Registry:
    """The registry of the cluster in ``directory``, listening on ``address``."""

    directory: Path
    address: str
    mirror_port: int = 5000
    port: int = 5001

    @property
    def mirror(self) -> str:
        """``host:port`` of the anonymous, read-only listener."""
        return f"{self.address}:{self.mirror_port}"

    @property
    def host(self) -> str:
        """``host:port`` of the listener with basic authentication."""
        return f"{self.address}:{self.port}"

    @property
    def storage(self) -> Path:
        """The folder that holds all images."""
        return self.directory / "registry" / "storage"

    @property
    def password_file(self) -> Path:
        """Where the password of the user ``kaito`` lies."""
        return self.directory / "registry" / "password"

    def password(self) -> str:
        """The password of the user ``kaito``; chosen at the first call."""
        if not self.password_file.exists():
            write_private(self.password_file, secrets.token_urlsafe(18).encode())
        return self.password_file.read_text()

    def programs(self, program: Path) -> list[Program]:
        """Both listeners, for the supervisor of the cluster; writes their configuration."""
        folder = self.directory / "registry"
        self.storage.mkdir(parents=True, exist_ok=True)
        write_private(folder / "htpasswd", f"{USER}:{_bcrypt(self.password())}\n".encode())
        log_folder = self.directory / "log"
        log_folder.mkdir(parents=True, exist_ok=True)
        programs = []
        for name, config in (("registry-mirror", self._mirror_config()), ("registry", self._config())):
            file = folder / f"{name}.yaml"
            # The HTTP secret only signs upload URLs of this one process.
            write_private(file, json.dumps(config, indent=1).encode())
            programs.append(
                Program(
                    name=name,
                    command=(str(program), "serve", str(file)),
                    log=str(log_folder / f"{name}.log"),
                    # Without it, version 3 looks for a trace collector on this machine and complains for ever.
                    environment={"OTEL_TRACES_EXPORTER": "none"},
                )
            )
        return programs

    def publish(self, layout: Layout, images: Mapping[str, str]) -> None:
        """Makes images of ``layout`` (reference to manifest digest) appear in the registry, without the network.

        A tag that is there already is moved. Needs no running registry.
        """
        for text, digest in images.items():
            reference = Reference.parse(text)
            repository = self.storage / "docker/registry/v2/repositories" / reference.local_repository
            for blob in layout.parts(digest):
                self._take(layout.path(blob.digest), blob.digest)
                _write_link(repository / "_layers" / "sha256" / _hex(blob.digest), blob.digest)
            self._take(layout.path(digest), digest)
            manifests = repository / "_manifests"
            tag = manifests / "tags" / reference.tag
            _write_link(manifests / "revisions" / "sha256" / _hex(digest), digest)
            _write_link(tag / "index" / "sha256" / _hex(digest), digest)
            _write_link(tag / "current", digest)

    def _take(self, source: Path, digest: str) -> None:
        target = self.storage / "docker/registry/v2/blobs/sha256" / _hex(digest)[:2] / _hex(digest) / "data"
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # another file system
            partial = target.with_name(".partial")
            shutil.copyfile(source, partial)
            partial.rename(target)

    def _mirror_config(self) -> dict[str, object]:
        maintenance = {"readonly": {"enabled": True}, "uploadpurging": {"enabled": False}}
        return {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "maintenance": maintenance},
            "http": {"addr": self.mirror, "secret": secrets.token_hex(16)},
        }

    def _config(self) -> dict[str, object]:
        return {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": {"addr": self.host, "secret": secrets.token_hex(16), "relativeurls": True},
            "auth": {"htpasswd": {"realm": "kaito", "path": str(self.directory / "registry" / "htpasswd")}},
        }


def _write_link(folder: Path, digest: str) -> None:
    file = folder / "link"
    if file.exists() and file.read_text() == digest:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".link.{os.getpid()}"
    partial.write_text(digest)
    partial.rename(file)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _bcrypt(password: str) -> str:
    """The only hash that the registry takes in an htpasswd file; by the system's libcrypt (crypt(5))."""
    try:
        library = ctypes.CDLL("libcrypt.so.1")
    except OSError:
        library = ctypes.CDLL("libcrypt.so.2")
    library.crypt.restype = ctypes.c_char_p
    alphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    salt = "".join(secrets.choice(alphabet) for _ in range(21)) + "u"
    hashed = library.crypt(password.encode(), f"$2b$05${salt}".encode())
    if hashed is None or not hashed.startswith(b"$2b$"):
        raise StartError("this machine's libcrypt cannot hash with bcrypt, which the registry's password file needs")
    return str(hashed.decode())
