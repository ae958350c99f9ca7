"""The images: those of the product out of its Dockerfiles, and the few that the local cluster needs besides.

    python -m kaito_local.images.build build [--variants cpu,cu126] [NAME ...]
    python -m kaito_local.images.build push --registry registry.example.com/kaito [--variants ...] [--plain-http]

An image is built again only when its Dockerfile, a file that the Dockerfile copies, or its base image has changed;
buildah's layer cache keeps even that short. No public image registry is asked: the base image is made out of Debian
packages. Everything lies below ``<cache>/images``. buildah and mmdebstrap run in mount and process namespaces of their
own, so that an interrupted build leaves neither a mount nor a process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from kaito_local.errors import BuildError, LocalError, MissingPrerequisite, UsageError
from kaito_local.images.oci import Layout, hash_file
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder
from kaito_local.machine.processes import last_lines

COREDNS_IMAGE = "registry.k8s.io/coredns/coredns:v1.14.5"
PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
CURL_IMAGE = "docker.io/curlimages/curl:latest"
BASE = "kaito-base"
DEBIAN_SUITE = "bookworm"
BASE_PACKAGES = ("ca-certificates", "curl", "python3", "python3-venv")
VARIANTS = ("cpu", "cu126")
DEBIAN_PACKAGES = {
    "buildah": "buildah",
    "skopeo": "skopeo",
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "gpg": "gpg",
}

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Image:
    """An image to build. ``reference`` is the name that charts and manifests use; ``variant`` a build argument."""

    name: str
    reference: str
    dockerfile: Path
    context: Path
    variant: str = ""
    needs_base: bool = True
    prepare: Callable[[Path], None] | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """Its name in the cache, before the hash."""
        return f"{self.name}-{self.variant}" if self.variant else self.name


def product_images(variants: Iterable[str] = ("cpu",), *, root: Path = ROOT) -> list[Image]:
    """kaito-hooks, kaito-serving and kaito-tuning under the names that the chart's default values give them."""
    chart = root / "charts" / "kaito"
    registry = yaml.safe_load((chart / "values.yaml").read_text())["image"]["registry"]
    version = yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"]
    images = [Image("kaito-hooks", f"{registry}/kaito-hooks:{version}", root / "hooks" / "Dockerfile", root)]
    for name in ("kaito-serving", "kaito-tuning"):
        dockerfile = root / name.removeprefix("kaito-") / "Dockerfile"
        images += [
            Image(name, f"{registry}/{name}:{version}-{variant}", dockerfile, root, variant=variant)
            for variant in variants
            if dockerfile.exists()
        ]
    return images


def preset_registry(*, root: Path = ROOT) -> str:
    """Registry and folder of model images, by the chart's default values."""
    values = yaml.safe_load((root / "charts" / "kaito" / "values.yaml").read_text())
    return str(values["presetRegistryName"])


def cluster_images(*, cache: Path, root: Path = ROOT) -> list[Image]:
    """What the local cluster itself runs: pause, CoreDNS, and a small image with curl."""
    folder = root / "local" / "images"

    def stage_pause(context: Path) -> None:
        _go_build(folder / "pause", context / "pause")

    def stage_coredns(context: Path) -> None:
        program = gotools.ensure(["coredns"], tools=root / "tools", cache=cache)["coredns"]
        shutil.copy2(program, context / "coredns")

    return [
        Image(
            "pause", PAUSE_IMAGE, folder / "pause/Dockerfile", folder / "pause", needs_base=False, prepare=stage_pause
        ),
        Image(
            "coredns",
            COREDNS_IMAGE,
            folder / "coredns/Dockerfile",
            root / "tools" / "coredns",
            needs_base=False,
            prepare=stage_coredns,
        ),
        Image("curl", CURL_IMAGE, folder / "curl/Dockerfile", folder / "curl"),
    ]


@dataclass(frozen=True, slots=True)
class Builder:
    """Builds images into the layout below ``cache``; ``wheels`` is a folder that pip may prefer to its index."""

    cache: Path
    wheels: Path | None = None
    report: Report = lambda line: None

    @property
    def folder(self) -> Path:
        """Where everything about images lies."""
        return self.cache / "images"

    @property
    def layout(self) -> Layout:
        """Where the built images lie."""
        return Layout.open(self.folder / "oci")

    def ensure(self, images: Sequence[Image]) -> dict[str, str]:
        """Builds what is missing; returns each image's manifest digest by its reference. Raises BuildError."""
        layout = self.layout
        with layout.locked():
            base_name = self._base_name()
            digests = {}
            for image in images:
                name = self._name(image, base_name)
                manifest = layout.find(name)
                if manifest is None:
                    if image.needs_base:
                        self._ensure_base(base_name)
                    self._build(image, name, base_name)
                    manifest = layout.find(name)
                    if manifest is None:
                        raise BuildError(f"building the image {image.key} left nothing in {layout.folder}")
                digests[image.reference] = manifest.digest
            return digests

    def clean(self, images: Sequence[Image]) -> None:
        """Removes built images of the same kinds as ``images`` that are out of date; other images stay."""
        layout = self.layout
        with layout.locked():
            current = {self._name(image, self._base_name()) for image in images} | {self._base_name()}
            kinds = {name.rsplit("-", 1)[0] for name in current}
            layout.keep_only(
                {name for name in layout.names() if name in current or name.rsplit("-", 1)[0] not in kinds}
            )

    def source(self, image: Image) -> str:
        """The built image as skopeo names it."""
        return f"oci:{self.layout.folder}:{self._name(image, self._base_name())}"

    def _ensure_base(self, name: str) -> None:
        if self._in_storage(name):
            return
        self.report("building the base image out of Debian packages")
        context = self._fresh_context(BASE)
        self._run(
            BASE,
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                f"--include={','.join(BASE_PACKAGES)}",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                DEBIAN_SUITE,
                str(context / "root.tar"),
            ],
        )
        dockerfile = ROOT / "local" / "images" / "base" / "Dockerfile"
        self._bud(name, BASE, dockerfile=dockerfile, context=context)
        shutil.rmtree(context)

    def _build(self, image: Image, name: str, base_name: str) -> None:
        if not image.dockerfile.exists():
            raise BuildError(f"there is no {image.dockerfile}")
        self.report(f"building the image {image.key}")
        context = image.context
        if image.prepare is not None:
            context = self._fresh_context(image.key)
            image.prepare(context)
        arguments = [f"--build-arg=BASE=localhost/{base_name}"] if image.needs_base else []
        if image.variant:
            arguments.append(f"--build-arg=VARIANT={image.variant}")
        empty = self.folder / "no-wheels"
        empty.mkdir(exist_ok=True)
        arguments.append(f"--build-context=wheels={self.wheels or empty}")
        arguments.append(f"--secret=id=ca,src={self._certificates()}")
        self._bud(name, image.key, dockerfile=image.dockerfile, context=context, arguments=arguments)
        self._run(
            image.key,
            [
                *("skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers"),
                f"containers-storage:[overlay@{self.folder}/storage+{self.folder}/run]localhost/{name}",
                f"oci:{self.layout.folder}:{name}",
            ],
        )
        if image.prepare is not None:
            shutil.rmtree(context)

    def _bud(self, name: str, key: str, *, dockerfile: Path, context: Path, arguments: Sequence[str] = ()) -> None:
        self._run(
            key,
            [
                *self._buildah("bud"),
                # chroot: no cgroups, no bridges, no iptables rules on this machine.
                *("--isolation=chroot", "--network=host", "--layers", "--timestamp=0", "--pull-never"),
                *arguments,
                f"--file={dockerfile}",
                f"--tag=localhost/{name}",
                str(context),
            ],
        )

    def _in_storage(self, name: str) -> bool:
        command = [*self._buildah("inspect"), "--type=image", f"localhost/{name}"]
        return subprocess.run(self._confined(command), capture_output=True, check=False).returncode == 0

    def _buildah(self, verb: str) -> list[str]:
        return ["buildah", f"--root={self.folder}/storage", f"--runroot={self.folder}/run", verb]

    def _run(self, key: str, command: Sequence[str]) -> None:
        log = self.folder / "log" / f"{key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / "tmp"
        scratch.mkdir(exist_ok=True)
        with log.open("wb") as output:
            done = subprocess.run(
                self._confined(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"TMPDIR": str(scratch), "DEBIAN_FRONTEND": "noninteractive"},
                check=False,
            )
        if done.returncode != 0:
            raise BuildError(
                f"building the image {key} failed ({command[0]}, exit {done.returncode}); {log} ends:\n"
                f"{last_lines(log, count=12)}"
            )

    def _confined(self, command: Sequence[str]) -> list[str]:
        """The command in namespaces that end with it; its host-wide cache of layers is ours for that time."""
        own = self.folder / "containers"
        own.mkdir(parents=True, exist_ok=True)
        script = 'if [ -d /var/lib/containers ]; then mount --bind "$0" /var/lib/containers; fi; exec "$@"'
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private"]
        return [*unshare, "sh", "-ec", script, str(own), *command]

    def _fresh_context(self, key: str) -> Path:
        context = self.folder / "context" / key
        shutil.rmtree(context, ignore_errors=True)
        context.mkdir(parents=True)
        return context

    def _certificates(self) -> Path:
        """The authorities that pip must trust behind a proxy of this machine; an empty file where there are none."""
        for variable in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            file = os.environ.get(variable)
            if file and Path(file).is_file():
                return Path(file)
        empty = self.folder / "no-certificates"
        empty.touch()
        return empty

    def _name(self, image: Image, base_name: str) -> str:
        parts = [image.variant, base_name if image.needs_base else "", hash_file(image.dockerfile)]
        sources = copied_files(image.dockerfile, image.context)
        parts += [f"{path.relative_to(image.context)} {hash_file(path)}" for path in sources]
        return f"{image.key}-{_digest(parts)}"

    def _base_name(self) -> str:
        dockerfile = ROOT / "local" / "images" / "base" / "Dockerfile"
        return f"{BASE}-{_digest([DEBIAN_SUITE, *BASE_PACKAGES, hash_file(dockerfile)])}"


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


def wheels_folder(environment: Mapping[str, str] = os.environ, *, root: Path = ROOT) -> Path | None:
    """``KAITO_WHEELS``, else ``../shared/wheels`` beside the project where it exists."""
    named = environment.get("KAITO_WHEELS")
    if named:
        if not Path(named).is_dir():
            raise MissingPrerequisite(f"KAITO_WHEELS names {named}, which is not a folder")
        return Path(named)
    beside = root.parent / "shared" / "wheels"
    return beside if beside.is_dir() else None


def push(builder: Builder, images: Sequence[Image], *, registry: str, plain_http: bool = False) -> list[str]:
    """Copies built images to ``registry`` (host and folder), compressed; returns their references there.

    Credentials are those of `skopeo login`, `podman login` or `docker login`. Raises BuildError.
    """
    pushed = []
    for image in images:
        target = f"{registry.rstrip('/')}/{image.reference.rsplit('/', 1)[-1]}"
        builder.report(f"pushing {target}")
        command = ["skopeo", "copy", "--quiet", "--retry-times=3", builder.source(image), f"docker://{target}"]
        if plain_http:
            command.insert(2, "--dest-tls-verify=false")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"cannot push {target}: {done.stderr.strip().splitlines()[-1]}")
        pushed.append(target)
    return pushed


def require_tools() -> None:
    """Raises MissingPrerequisite when this machine cannot build images."""
    if os.geteuid() != 0:
        raise MissingPrerequisite(
            "building images needs root (mmdebstrap and buildah make file systems); run it with sudo"
        )
    missing = sorted({package for program, package in DEBIAN_PACKAGES.items() if shutil.which(program) is None})
    if missing:
        raise MissingPrerequisite(
            f"missing Debian packages: {' '.join(missing)}; run: apt-get install {' '.join(missing)}"
        )


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _go_build(folder: Path, output: Path) -> None:
    done = subprocess.run(
        ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(output), "main.go"],
        cwd=folder,
        env=os.environ | {"CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"building {folder.name} failed (go build): {done.stderr.strip()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 0, or 1 with a sentence."""
    parser = argparse.ArgumentParser(prog="python -m kaito_local.images.build", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    building = verbs.add_parser("build", help="build the product's images")
    pushing = verbs.add_parser("push", help="build them and copy them to a registry")
    pushing.add_argument("--registry", required=True, help="host and folder, such as registry.example.com/kaito")
    pushing.add_argument("--plain-http", action="store_true", help="speak to the registry without TLS")
    for verb in (building, pushing):
        verb.add_argument("--variants", default="cpu", help="of serving and tuning: cpu, cu126 or both, with a comma")
        verb.add_argument("names", nargs="*", help="kaito-hooks, kaito-serving, kaito-tuning; all without it")
    options = parser.parse_args(arguments)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        require_tools()
        variants = options.variants.split(",")
        if not set(variants) <= set(VARIANTS):
            raise UsageError(f"--variants {options.variants}: there are {', '.join(VARIANTS)}")
        images = product_images(variants)
        unknown = set(options.names) - {image.name for image in images}
        if unknown:
            raise UsageError(f"there is no image {', '.join(sorted(unknown))}")
        images = [image for image in images if not options.names or image.name in options.names]
        builder = Builder(cache_folder(), wheels=wheels_folder(), report=report)
        built = builder.ensure(images)
        if options.verb == "push":
            for target in push(builder, images, registry=options.registry, plain_http=options.plain_http):
                print(target)
        else:
            for reference, digest in built.items():
                print(f"{reference} {digest}")
    except LocalError as error:
        report(str(error))
        return 1
    except KeyboardInterrupt:
        report("interrupted; what is built stays in the cache")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
