"""Building images out of Dockerfiles, by buildah, into one OCI layout.

An image is built again only when its Dockerfile, a file that the Dockerfile copies, or the image it stands on has
changed; buildah's layer cache keeps even that short, and one cache of pip's downloads serves all images. Everything
lies below ``<cache>/images``: ``storage`` (buildah's unpacked layers), ``oci`` (what registries link to), ``tmp``
(pip's downloads). buildah and mmdebstrap run in mount and process namespaces of their own, so that an interrupted
build leaves neither a mount nor a process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kaito_local.errors import BuildError
from kaito_local.images.oci import Layout, hash_file
from kaito_local.images.torch_index import certificates, chosen_index
from kaito_local.machine.locks import file_lock
from kaito_local.machine.processes import last_lines
from kaito_local.machine.progress import QUIET, Progress, Step

PART = "images"
# Program that building runs: the Debian package that brings it.
DEBIAN_PACKAGES = {
    "buildah": "buildah",
    "skopeo": "skopeo",
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "gpg": "gpg",
}
# How the folder begins in which buildah keeps cache mounts, below its TMPDIR.
_PIP_CACHE = "buildah-cache"
_STEP = re.compile(r"^(?:\[\d+/\d+\] )?STEP (\d+)/(\d+): ")
_PIP = re.compile(r"^\s*(Collecting|Downloading|Installing collected packages)[ :]+([^\s,(]*)")
_MMDEBSTRAP = re.compile(r"^I: ([a-z].*?)\.*$")
_TRAINING = re.compile(r"^step (\d+) of (\d+)")

# What pip, apt and curl say when they do not get as far as a server.
_UNREACHED = re.compile(
    r"Temporary failure (?:in name resolution|resolving '[^']*')|Name or service not known|Could not resolve host: \S+"
    r"|Failed to establish a new connection: .{0,60}|Connection to \S+ timed out|Connection timed out"
    r"|Could not connect to .{0,80}|Cannot initiate the connection to .{0,80}|Failed to connect to \S+ port .{0,80}"
    r"|Cannot connect to proxy.{0,80}"
)

Run = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Image:
    """An image to build.

    ``reference`` is the name that charts and manifests use; without one it is only what others stand on. ``base`` and
    ``variant`` become the build arguments BASE and VARIANT. ``prepare`` fills a fresh folder, which is then the
    context; ``context`` and ``facts`` are what it does that with. ``has_torch``: it is told where torch's wheels are.
    ``labels``: ``name=value`` each, beside those of its Dockerfile.
    """

    name: str
    dockerfile: Path
    context: Path
    reference: str = ""
    variant: str = ""
    base: Image | None = None
    facts: tuple[str, ...] = ()
    has_torch: bool = False
    labels: tuple[str, ...] = ()
    prepare: Callable[[Path, Run], None] | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """Its name in the cache, before the hash."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def built_name(self) -> str:
        """Its name in the cache: changes when anything changes that it is made of."""
        parts = [self.variant, self.base.built_name if self.base else "", *self.facts, *self.labels]
        parts.append(hash_file(self.dockerfile))
        sources = copied_files(self.dockerfile, self.context)
        parts += [f"{path.relative_to(self.context)} {hash_file(path)}" for path in sources]
        return f"{self.key}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Builder:
    """Builds images into the layout below ``cache``; ``wheels`` is a folder that pip may prefer to its index."""

    cache: Path
    wheels: Path | None = None
    progress: Progress = QUIET

    @property
    def folder(self) -> Path:
        """Where everything about images lies."""
        return self.cache / "images"

    @property
    def storage(self) -> Path:
        """Where buildah keeps its layers, unpacked."""
        return self.folder / "storage"

    @property
    def layout(self) -> Layout:
        """Where the built images lie."""
        return Layout.open(self.folder / "oci")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other builders of the same cache out: what is built in the block is not cleaned away by them."""
        lock = self.folder / ".building.lock"
        with file_lock(lock, waiting=lambda: self.progress.step("waiting for another build of images")):
            yield

    def missing(self, images: Sequence[Image]) -> list[Image]:
        """Those that `ensure` would build."""
        layout = self.layout
        return [image for image in images if layout.find(image.built_name) is None]

    def ensure(self, images: Sequence[Image]) -> dict[str, str]:
        """Builds what is missing; returns each image's manifest digest by its reference. Raises BuildError.

        To be called `alone`, as are `extract` and `clean`.
        """
        layout = self.layout
        with layout.locked():
            if self.missing(images):
                self._remove_leftovers()
            digests = {}
            for image in images:
                manifest = layout.find(image.built_name)
                if manifest is None:
                    self._in_storage(image)
                    self._export(image)
                    if layout.find(image.built_name) is None:
                        raise BuildError(f"building the image {image.key} left nothing in {layout.folder}")
                    manifest = layout.forget_builder(image.built_name)
                else:
                    self.progress.reused(PART, image.key)
                digests[image.reference] = manifest.digest
            return digests

    def extract(self, image: Image, folder: Path, *, step: Step | None = None) -> None:
        """Builds ``image`` and puts the files of its last stage into ``folder``. Raises BuildError."""
        with self.layout.locked():
            self._remove_leftovers()
            if image.base is not None:
                self._in_storage(image.base)
            self._bud(image, self._arguments(image), step=step, output=folder)

    def clean(self, images: Sequence[Image]) -> None:
        """Removes built images of the same kinds as ``images`` that are out of date; other images stay."""
        layout = self.layout
        with layout.locked():
            wanted: set[str] = set()
            for image in images:
                standing: Image | None = image
                while standing is not None:
                    wanted.add(standing.built_name)
                    standing = standing.base
            kinds = {_kind(name) for name in wanted}
            layout.keep_only({name for name in layout.names() if name in wanted or _kind(name) not in kinds})
            stale = [name for name in self._stored() if name not in wanted and _kind(name) in kinds]
            if stale:
                references = [f"localhost/{name}" for name in stale]
                self._run("clean", [*self._buildah("rmi"), "--force", *references])
                self._run("clean", [*self._buildah("rmi"), "--prune", "--force"])

    def size(self, image: Image) -> int:
        """The bytes of a built image's layers, unpacked."""
        manifest = self.layout.find(image.built_name)
        return sum(layer.size for layer in self.layout.parts(manifest.digest)[1:]) if manifest else 0

    def source(self, image: Image) -> str:
        """The built image as skopeo names it."""
        return f"oci:{self.layout.folder}:{image.built_name}"

    def _remove_leftovers(self) -> None:
        """Removes what interrupted builds left; pip's downloads stay."""
        for path in (self.folder / "tmp").glob("*"):
            if not path.name.startswith(_PIP_CACHE):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        shutil.rmtree(self.folder / "context", ignore_errors=True)
        for path in (*self.layout.folder.glob("oci-put-blob*"), *self.layout.folder.glob(".incoming-*")):
            path.unlink()
        if self.storage.exists():
            self._run("leftovers", [*self._buildah("rm"), "--all"])

    def _in_storage(self, image: Image) -> None:
        if image.built_name in self._stored():
            return
        if image.base is not None:
            self._in_storage(image.base)
        with self.progress.step(f"building the image {image.key}", part=PART, name=image.key) as step:
            self._bud(image, self._arguments(image), step=step)

    def _arguments(self, image: Image) -> list[str]:
        arguments = [f"--secret=id=ca,src={self._certificates()}"]
        if image.base is not None:
            arguments.append(f"--build-arg=BASE=localhost/{image.base.built_name}")
        if image.has_torch:
            empty = self.folder / "no-wheels"
            empty.mkdir(parents=True, exist_ok=True)
            index = chosen_index(image.variant, wheels=self.wheels, report=self.progress)
            arguments += [
                f"--build-arg=VARIANT={image.variant}",
                f"--build-arg=TORCH_INDEX={index}",
                f"--build-context=wheels={self.wheels or empty}",
            ]
        return arguments

    def _bud(
        self, image: Image, arguments: Sequence[str], *, step: Step | None = None, output: Path | None = None
    ) -> None:
        if not image.dockerfile.exists():
            raise BuildError(f"there is no {image.dockerfile}")
        context = image.context
        if image.prepare is not None:
            context = self.folder / "context" / image.key
            shutil.rmtree(context, ignore_errors=True)
            context.mkdir(parents=True)
            image.prepare(context, lambda command: self._run(image.key, command, step=step))
        target = f"--output=type=local,dest={output}" if output else f"--tag=localhost/{image.built_name}"
        self._run(
            image.key,
            [
                *self._buildah("bud"),
                # chroot: no cgroups, no bridges, no iptables rules on this machine.
                *("--isolation=chroot", "--network=host", "--layers", "--timestamp=0", "--pull-never"),
                *arguments,
                *(f"--label={label}" for label in image.labels),
                f"--file={image.dockerfile}",
                target,
                str(context),
            ],
            step=step,
        )
        if image.prepare is not None:
            shutil.rmtree(context)

    def _export(self, image: Image) -> None:
        with self.progress.step(f"packing the image {image.key}"):
            self._run(
                image.key,
                [
                    *("skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers"),
                    f"containers-storage:[overlay@{self.storage}+{self.folder}/run]localhost/{image.built_name}",
                    self.source(image),
                ],
            )

    def _stored(self) -> set[str]:
        """Names of the images in buildah's storage."""
        if not self.storage.exists():
            return set()
        command = self._confined([*self._buildah("images"), "--json"])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"buildah cannot read {self.storage}: {done.stderr.strip()}")
        names = {name for entry in json.loads(done.stdout) or [] for name in entry.get("names") or []}
        return {name.removeprefix("localhost/").removesuffix(":latest") for name in names}

    def _buildah(self, verb: str) -> list[str]:
        return ["buildah", f"--root={self.storage}", f"--runroot={self.folder}/run", verb]

    def _run(self, key: str, command: Sequence[str], *, step: Step | None = None) -> None:
        log = self.folder / "log" / f"{key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / "tmp"
        scratch.mkdir(exist_ok=True)
        with log.open("w") as written:
            process = subprocess.Popen(
                self._confined(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": str(scratch), "DEBIAN_FRONTEND": "noninteractive"},
                text=True,
                errors="replace",
            )
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    written.write(line)
                    if step is not None:
                        _follow(step, line)
                status = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                process.stdout.close()
        if status != 0:
            unreached = _UNREACHED.search(last_lines(log, count=12))
            if unreached:
                raise BuildError(
                    f"building the image {key} failed because a package registry could not be reached "
                    f"({unreached[0].strip()}); check the network and the proxy, then try again; all of it: {log}"
                )
            raise BuildError(
                f"building the image {key} failed ({command[0]}, exit {status}); {log} ends:\n"
                f"{last_lines(log, count=12)}"
            )

    def _confined(self, command: Sequence[str]) -> list[str]:
        """The command in namespaces that end with it; its host-wide cache of layers is ours for that time."""
        own = self.folder / "containers"
        own.mkdir(parents=True, exist_ok=True)
        script = 'if [ -d /var/lib/containers ]; then mount --bind "$0" /var/lib/containers; fi; exec "$@"'
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private"]
        return [*unshare, "sh", "-ec", script, str(own), *command]

    def _certificates(self) -> Path:
        """The authorities that pip must trust; an empty file where this machine names none."""
        named = certificates()
        if named is not None:
            return named
        empty = self.folder / "no-certificates"
        empty.touch()
        return empty


def copied_files(dockerfile: Path, context: Path) -> list[Path]:
    """All files below ``context`` that the Dockerfile's COPY and ADD lines take from there; byte code does not count.

    Where a copied name is not in the context (it is put there at build time), the whole context counts.
    """
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    files: set[Path] = set()
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].upper() not in ("COPY", "ADD") or any(word.startswith("--from=") for word in words):
            continue
        for source in [word for word in words[1:-1] if not word.startswith("--")]:
            paths = list(context.glob(source.strip("/"))) or [context]
            for path in paths:
                found = [path] if path.is_file() else path.rglob("*")
                files |= {file for file in found if file.is_file() and "__pycache__" not in file.parts}
    return sorted(files)


def _kind(name: str) -> str:
    return name.rsplit("-", 1)[0]


def _follow(step: Step, line: str) -> None:
    """Tells how far a build is, by a line of its log."""
    if match := _STEP.match(line):
        step.at(int(match[1]) - 1, of=int(match[2]), unit="layers", even=False)
    elif match := _PIP.match(line):
        verb, name = match[1], match[2]
        step.at(step.done, detail="installing" if verb.startswith("Installing") else f"{verb.lower()} {name}")
    elif match := _MMDEBSTRAP.match(line):
        step.at(step.done, detail=match[1])
    elif match := _TRAINING.match(line):
        step.at(int(match[1]), of=int(match[2]), unit="steps", even=True)
