"""The golden root: a containerd root folder with images already unpacked, which all nodes share, like a VM image.

A node's own containerd root begins as a copy of the golden one in which nothing is copied but two small databases:
the compressed blobs are hard links, the unpacked layers are bind mounts. Layers are only ever read (they are the
lower folders of overlays), so no node can change them for another, and the page cache holds them once.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from kaito_local.errors import BuildError, LocalError, StartError
from kaito_local.images.mirrors import Reference
from kaito_local.images.oci import Layout
from kaito_local.images.sharing import share_files
from kaito_local.machine.locks import file_lock
from kaito_local.machine.namespaces import bind, eventually, launch, mount_tmpfs, wait_for_release
from kaito_local.machine.processes import last_lines
from kaito_local.machine.progress import QUIET, Progress
from kaito_local.nodes.containerd import SOCKET, config, plugin_folder, program, write_hosts

_LOCK = ".lock"
_PULLED = "pulled"
_KEPT = "kept.invalid"  # a registry that does not exist (RFC 2606)
_CONTENT = "io.containerd.content.v1.content"
_METADATA = "io.containerd.metadata.v1.bolt"
_SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs"
_MANIFEST_TYPES = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)


def ensure_golden(
    directory: Path,
    images: Sequence[str],
    *,
    mirror: str,
    mirrored: Sequence[str] = (),
    sandbox_image: str = "registry.k8s.io/pause:3.10",
    layout: Layout | None = None,
    twins: Path | None = None,
    progress: Progress = QUIET,
) -> Path:
    """The golden root with ``images`` (full references such as ``docker.io/curlimages/curl:latest``), built if need be.

    ``directory`` holds the roots, one per content: the key is made of the images' digests in the registry
    ``mirror``, so nothing is pulled twice and a changed image makes a new root. It must lie on the file system of
    the nodes' state for speed. Blobs that ``layout`` has are linked from there instead of pulled; files that lie
    unpacked below ``twins`` (the storage of the builder that fills ``layout``), too, are kept once.
    Raises BuildError when an image is not in the registry.
    """
    wanted = sorted({str(Reference.parse(image)) for image in (sandbox_image, *images)})
    digests = {image: image_digest(image, mirror=mirror) for image in wanted}
    key = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]
    root = directory / key
    with file_lock(directory / _LOCK):
        if root.is_dir():
            progress.reused("nodes", "unpacked images")
            return root
        partial = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=directory))
        try:
            older = [path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")]
            if older:
                _begin_with(max(older, key=lambda path: path.stat().st_mtime), partial / "containerd")
            with progress.step(
                "unpacking images for nodes", part="nodes", name="unpacked images", total=len(wanted), unit="images"
            ) as step:
                if layout is not None:
                    _link_blobs(layout, digests.values(), partial / "containerd")
                pulled = partial / _PULLED
                _fill(
                    partial,
                    wanted,
                    mirror=mirror,
                    mirrored=mirrored,
                    sandbox_image=sandbox_image,
                    meanwhile=lambda: step.at(pulled.read_text().count("\n") if pulled.exists() else 0, even=False),
                )
                if layout is not None and twins is not None:
                    step.at(len(wanted), detail="sharing files with the builder")
                    with layout.locked():
                        share_files(partial / "containerd" / _SNAPSHOTS, twins)
            (partial / "containerd").rename(root)
        finally:
            shutil.rmtree(partial)
        return root


def prune_golden(directory: Path, *, keep: Sequence[Path]) -> None:
    """Removes roots that are neither in ``keep`` nor mounted by a running node of whatever cluster."""
    if not directory.is_dir():
        return
    with file_lock(directory / _LOCK):
        kept = {path.name for path in keep if path.resolve().parent == directory.resolve()}
        kept |= _mounted_below(directory.resolve()) | {_LOCK}
        for path in directory.iterdir():
            if path.name not in kept:
                shutil.rmtree(path)


def image_digest(image: str, *, mirror: str) -> str:
    """The digest that ``image`` has in the registry ``mirror``. Raises BuildError if it is not there."""
    reference = Reference.parse(image)
    address = urlsplit(mirror)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    try:
        connection.request(
            "HEAD", f"/v2/{reference.local_repository}/manifests/{reference.tag}", headers={"Accept": _MANIFEST_TYPES}
        )
        response = connection.getresponse()
        digest = response.getheader("Docker-Content-Digest")
    except (OSError, http.client.HTTPException) as error:
        raise BuildError(f"the registry {mirror} does not answer: {error}") from error
    finally:
        connection.close()
    if response.status != 200 or not digest:
        raise BuildError(f"image {image} is not in the local registry {mirror} (status {response.status})")
    return digest


def link_content(golden: Path, root: Path) -> None:
    """Makes ``root``, a node's new containerd root, out of ``golden``; `bind_layers` must follow at every boot."""
    partial = root.with_name(f".{root.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    (partial / _SNAPSHOTS / "snapshots").mkdir(parents=True, mode=0o700)
    (partial / _METADATA).mkdir(mode=0o700)
    shutil.copytree(golden / _CONTENT, partial / _CONTENT, copy_function=_link_or_copy)
    shutil.copy2(golden / _METADATA / "meta.db", partial / _METADATA / "meta.db")
    shutil.copy2(golden / _SNAPSHOTS / "metadata.db", partial / _SNAPSHOTS / "metadata.db")
    partial.rename(root)


def bind_layers(golden: Path, root: Path) -> None:
    """Mounts the golden layers read-only where the node's containerd looks for them; in the node's mount namespace."""
    for layer in (golden / _SNAPSHOTS / "snapshots").iterdir():
        target = root / _SNAPSHOTS / "snapshots" / layer.name
        target.mkdir(exist_ok=True)
        bind(layer, target, read_only=True)


def _begin_with(older: Path, root: Path) -> None:
    """Makes ``root`` out of another golden root, so that only layers that are new are pulled and unpacked.

    Files are hard links, as blobs and unpacked layers are never written again; the databases are, so they are copied.
    """
    subprocess.run(["cp", "--archive", "--link", str(older), str(root)], check=True)
    for database in (root / _METADATA / "meta.db", root / _SNAPSHOTS / "metadata.db"):
        original = older / database.relative_to(root)
        database.unlink()
        shutil.copy2(original, database)
    shutil.rmtree(root / _CONTENT / "ingest", ignore_errors=True)


def _link_blobs(layout: Layout, digests: Iterable[str], root: Path) -> None:
    """Puts the images' blobs where containerd's content store keeps them; it takes what it finds there as fetched."""
    blobs = root / _CONTENT / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest in digests:
        for blob in (digest, *(part.digest for part in layout.parts(digest))):
            source, target = layout.path(blob), blobs / blob.removeprefix("sha256:")
            if source.exists() and not target.exists():
                _link_or_copy(str(source), str(target))


def _fill(
    folder: Path,
    images: Sequence[str],
    *,
    mirror: str,
    mirrored: Sequence[str],
    sandbox_image: str,
    meanwhile: Callable[[], None],
) -> None:
    hosts, network, settings = folder / "certs.d", folder / "cni", folder / "containerd.toml"
    network.mkdir()
    write_hosts(hosts, mirror=mirror, mirrored=[*mirrored, *(Reference.parse(image).registry for image in images)])
    settings.write_text(
        config(
            root=folder / "containerd",
            network_config=network,
            hosts=hosts,
            sandbox_image=sandbox_image,
            plugin_folder=plugin_folder(),
        )
    )
    (folder / "images.json").write_text(json.dumps(list(images)))
    log = folder / "log"
    launched = launch("kaito_local.nodes.golden", [str(folder)], log=log, own_network=False)
    try:
        launched.release()
        if launched.wait(meanwhile=meanwhile) != 0:
            raise BuildError(f"cannot unpack images for nodes; the end of {log}:\n{last_lines(log)}")
    except BaseException:
        launched.abandon()
        raise


def _pull_all(folder: Path) -> None:
    """Runs in namespaces of its own, so that the throw-away containerd leaves no mount and no process."""
    mount_tmpfs(Path("/run"))
    containerd = subprocess.Popen([program(), "--config", str(folder / "containerd.toml")])
    try:
        if not eventually(lambda: SOCKET.exists() or containerd.poll() is not None, seconds=30.0):
            raise StartError("containerd did not start within 30 s")
        ctr = ["ctr", "--address", str(SOCKET), "--namespace", "k8s.io", "images"]
        wanted = json.loads((folder / "images.json").read_text())
        # containerd gives a name to the new image before it unpacks that one. Until then nothing but the older image
        # refers to the layers that both have, and its garbage collection would remove them in between.
        for number, image in enumerate(_listed(ctr)):
            subprocess.run([*ctr, "tag", "--force", image, f"{_KEPT}/{number}"], capture_output=True, check=True)
        for image in wanted:
            pull = [*ctr, "pull", "--hosts-dir", str(folder / "certs.d"), image]
            done = subprocess.run(pull, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BuildError(f"cannot pull {image}: {done.stderr.strip()}")
            with (folder / _PULLED).open("a") as pulled:
                pulled.write(f"{image}\n")
        stale = sorted(set(_listed(ctr)) - set(wanted))
        if stale:
            subprocess.run([*ctr, "remove", "--sync", *stale], capture_output=True, check=False)
    finally:
        containerd.terminate()
        containerd.wait()
    for leftover in (folder / "containerd").glob("io.containerd.runtime*"):
        shutil.rmtree(leftover)


def _listed(ctr: Sequence[str]) -> list[str]:
    return subprocess.run([*ctr, "list", "--quiet"], capture_output=True, text=True, check=True).stdout.split()


def _mounted_below(directory: Path) -> set[str]:
    """Names of the folders of ``directory`` out of which any process has something mounted.

    A bind mount's line in mountinfo (proc_pid_mountinfo(5)) names the folder by its path on its own file system.
    """
    seen: set[str] = set()
    names: set[str] = set()
    below = re.compile(rf"/{re.escape(directory.parent.name)}/{re.escape(directory.name)}/([^/\s]+)/")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            namespace = os.readlink(process / "ns" / "mnt")
            if namespace not in seen:
                seen.add(namespace)
                names |= set(below.findall((process / "mountinfo").read_text()))
    return names


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def main() -> None:
    """``python -m kaito_local.nodes.golden FOLDER``: what `ensure_golden` launches."""
    wait_for_release()
    try:
        _pull_all(Path(sys.argv[1]))
    except (LocalError, OSError, subprocess.SubprocessError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
