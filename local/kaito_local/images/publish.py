"""Publishing built images: copied into a registry, each with its bill of materials, and both with a signature.

Bill and signatures are artifacts that refer to a digest, as OCI's referrers do
(https://github.com/opencontainers/distribution-spec): `oras discover` and `notation list` show them. Credentials are
those of `docker login`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kaito_local.errors import BuildError
from kaito_local.images.bill import MEDIA_TYPE, bill, packages
from kaito_local.images.build import Builder, Image

PROGRAMS = ("oras", "notation")
"""Of the module tools/signing."""


@dataclass(frozen=True, slots=True)
class Registry:
    """Where to: host and folder. ``plain_http``: without TLS. ``key``: the name of a key that notation knows."""

    place: str
    plain_http: bool = False
    key: str = ""

    def target(self, image: Image) -> str:
        """The image's reference there."""
        return f"{self.place.rstrip('/')}/{image.reference.rsplit('/', 1)[-1]}"


def publish(builder: Builder, images: Sequence[Image], registry: Registry, *, programs: dict[str, Path]) -> list[str]:
    """Copies built images, compressed, attaches their bills and signs both if there is a key; ``reference@digest``.

    ``programs``: those of ``PROGRAMS``. Raises BuildError.
    """
    published = []
    for image in images:
        target = registry.target(image)
        with builder.progress.step(f"pushing {target}"):
            digest = _copy(builder, image, registry)
            repository = target.rpartition(":")[0]
            attached = _attach(builder, image, f"{repository}@{digest}", registry, oras=programs["oras"])
        if registry.key:
            with builder.progress.step(f"signing {target} and its bill of materials"):
                _sign(target, f"{repository}@{digest}", registry, notation=programs["notation"])
                _sign(f"the bill of materials of {target}", attached, registry, notation=programs["notation"])
        published.append(f"{target}@{digest}")
    return published


def _copy(builder: Builder, image: Image, registry: Registry) -> str:
    """Compressing gives the image another digest than it has here."""
    target = registry.target(image)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "digest"
        options = ["--dest-tls-verify=false"] if registry.plain_http else []
        command = ["skopeo", "copy", *options, "--quiet", "--retry-times=3", f"--digestfile={written}"]
        _run("push", target, [*command, builder.source(image), f"docker://{target}"])
        return written.read_text().strip()


def _attach(builder: Builder, image: Image, at: str, registry: Registry, *, oras: Path) -> str:
    """The bill's own reference, with its digest."""
    layout = builder.layout
    manifest = layout.find(image.built_name)
    assert manifest is not None
    repository, _, digest = at.partition("@")
    version = image.reference.rpartition(":")[2]
    text = bill(repository.rsplit("/", 1)[-1], version, digest=digest, packages=packages(layout, manifest.digest))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bill.cdx.json").write_text(text)
        options = ["--plain-http"] if registry.plain_http else []
        command = [str(oras), "attach", *options, "--format", "json", "--artifact-type", MEDIA_TYPE]
        # A fixed date: the same bill is the same artifact, however often it is attached.
        command += ["--annotation", "org.opencontainers.image.created=1980-01-01T00:00:00Z"]
        said = _run("attach the bill of materials to", at, [*command, at, f"bill.cdx.json:{MEDIA_TYPE}"], folder=folder)
    return f"{repository}@{json.loads(said)['digest']}"


def _sign(target: str, at: str, registry: Registry, *, notation: Path) -> None:
    options = ["--insecure-registry"] if registry.plain_http else []
    _run("sign", target, [str(notation), "sign", *options, "--key", registry.key, at])


def _run(what: str, target: str, command: Sequence[str], *, folder: str | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        silence = f"{Path(command[0]).name} says nothing (exit {done.returncode})"
        reason = (done.stderr.strip().splitlines() or [silence])[-1]
        raise BuildError(f"cannot {what} {target}: {reason}")
    return done.stdout
