"""Which images there are: those of the product, what they stand on, and the few that the local cluster needs."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from kaito_local.images.build import Image, Run
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT

COREDNS_IMAGE = "registry.k8s.io/coredns/coredns:v1.14.1"
PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
CURL_IMAGE = "docker.io/curlimages/curl:latest"
VARIANTS = ("cpu", "cu126", "vllm")
_BOOTSTRAP = (
    # Byte code that tells by content whether it is up to date: layers carry no dates.
    *("env", "SOURCE_DATE_EPOCH=315532800"),
    *("mmdebstrap", "--variant=minbase", "--include=ca-certificates,curl,python3,python3-venv,usr-is-merged"),
    # Without it, usrmerge would bring all of Perl.
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    *(f"--dpkgopt=path-exclude={path}/*" for path in ("/usr/share/man", "/usr/share/info", "/usr/share/locale")),
    # Encodings of C programs; Python brings its own.
    *("--dpkgopt=path-exclude=/usr/lib/*/gconv/*", "--dpkgopt=path-exclude=/usr/share/doc/*"),
    *("--dpkgopt=path-include=/usr/share/doc/*/copyright", "bookworm"),
)


def base_image(*, root: Path = ROOT) -> Image:
    """Debian with Python out of its packages: no public image registry is asked."""

    def bootstrap(context: Path, run: Run) -> None:
        run([*_BOOTSTRAP, str(context / "root.tar")])

    folder = root / "local" / "images" / "base"
    return Image("kaito-base", folder / "Dockerfile", folder, prepare=bootstrap, facts=_BOOTSTRAP)


def torch_image(variant: str, *, root: Path = ROOT) -> Image:
    """What the serving and the tuning image of a variant share."""
    dockerfile = root / "images" / "torch" / "Dockerfile"
    return Image("kaito-torch", dockerfile, root, variant=variant, base=base_image(root=root), has_torch=True)


def product_images(variants: Iterable[str] = ("cpu",), *, root: Path = ROOT, revision: str = "") -> list[Image]:
    """kaito-hooks, kaito-serving and kaito-tuning under the names that the chart's default values give them.

    With a trainer comes the image ``check`` of its data, which has no torch. ``revision``: the commit, for a label.
    """
    chart = root / "charts" / "kaito"
    registry = yaml.safe_load((chart / "values.yaml").read_text())["image"]["registry"]
    version = yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"]
    hooks, dockerfile = f"{registry}/kaito-hooks:{version}", root / "hooks" / "Dockerfile"
    images = [Image("kaito-hooks", dockerfile, root, reference=hooks, base=base_image(root=root))]

    def image(room: str, variant: str) -> Image:
        reference = f"{registry}/kaito-{room}:{version}-{variant}"
        dockerfile, base = root / room / "Dockerfile", torch_image(variant, root=root)
        return Image(f"kaito-{room}", dockerfile, root, reference=reference, variant=variant, base=base)

    for variant in variants:
        if variant == "vllm":  # a trainer has no use for it
            reference = f"{registry}/kaito-serving:{version}-vllm"
            dockerfile, base = root / "serving" / "vllm" / "Dockerfile", image("serving", "cu126")
            images.append(Image("kaito-serving", dockerfile, root, reference=reference, variant=variant, base=base))
        else:
            images += [image("serving", variant), image("tuning", variant)]
    if any(image.name == "kaito-tuning" for image in images):
        # What a tuning Workspace runs before it has a GPU, whichever variant trains on it.
        reference, dockerfile = f"{registry}/kaito-tuning:{version}-check", root / "tuning" / "check" / "Dockerfile"
        base = base_image(root=root)
        images.append(Image("kaito-tuning", dockerfile, root, reference=reference, variant="check", base=base))
    # Those that never change are in the Dockerfiles; https://github.com/opencontainers/image-spec/blob/main/annotations.md
    labels = [f"org.opencontainers.image.version={version}"]
    labels += [f"org.opencontainers.image.revision={revision}"] if revision else []
    return [dataclasses.replace(image, labels=tuple(labels)) for image in images]


def revision_of(root: Path = ROOT) -> str:
    """The commit of a checkout that has no changes beside it; "" of any other folder."""
    git = ["git", "-C", str(root)]
    try:
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return "" if changed else head


def tiny_model_image(*, root: Path = ROOT) -> Image:
    """Trains the tiny model and holds its files."""
    dockerfile = root / "local" / "images" / "tinymodel" / "Dockerfile"
    return Image("tinymodel", dockerfile, root, base=torch_image("cpu", root=root))


def preset_registry(*, root: Path = ROOT) -> str:
    """Registry and folder of model images, by the chart's default values."""
    values = yaml.safe_load((root / "charts" / "kaito" / "values.yaml").read_text())
    return str(values["presetRegistryName"])


def cluster_images(*, cache: Path, root: Path = ROOT) -> list[Image]:
    """What the local cluster itself runs: pause, CoreDNS, and a small image with curl."""
    folder = root / "local" / "images"

    def program(name: str) -> Callable[[Path, Run], None]:
        def stage(context: Path, run: Run) -> None:
            built = gotools.ensure([name], tools=root / "tools", cache=cache)[name]
            shutil.copy2(built, context / name)

        return stage

    own = [
        Image(
            name,
            folder / name / "Dockerfile",
            root / "tools" / name,
            reference=reference,
            prepare=program(name),
        )
        for name, reference in (("pause", PAUSE_IMAGE), ("coredns", COREDNS_IMAGE))
    ]
    curl = Image("curl", folder / "curl/Dockerfile", folder / "curl", reference=CURL_IMAGE, base=base_image(root=root))
    return [*own, curl]
