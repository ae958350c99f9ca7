"""Which images there are: those of the product, what they stand on, and the few that the local cluster needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

from kaito_local.errors import BuildError
from kaito_local.images.build import Image, Run
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT

COREDNS_IMAGE = "registry.k8s.io/coredns/coredns:v1.14.1"
PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
CURL_IMAGE = "docker.io/curlimages/curl:latest"
VARIANTS = ("cpu", "cu126")
_DEBIAN_SUITE = "bookworm"
_BASE_PACKAGES = ("ca-certificates", "curl", "python3", "python3-venv")


def base_image(*, root: Path = ROOT) -> Image:
    """Debian with Python out of its packages: no public image registry is asked."""

    def bootstrap(context: Path, run: Run) -> None:
        run(
            [
                "mmdebstrap",
                "--variant=minbase",
                f"--include={','.join(_BASE_PACKAGES)}",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                _DEBIAN_SUITE,
                str(context / "root.tar"),
            ]
        )

    folder = root / "local" / "images" / "base"
    facts = (_DEBIAN_SUITE, *_BASE_PACKAGES)
    return Image("kaito-base", folder / "Dockerfile", folder, prepare=bootstrap, facts=facts)


def torch_image(variant: str, *, root: Path = ROOT) -> Image:
    """What the serving and the tuning image of a variant share."""
    dockerfile = root / "images" / "torch" / "Dockerfile"
    return Image("kaito-torch", dockerfile, root, variant=variant, base=base_image(root=root), has_torch=True)


def product_images(variants: Iterable[str] = ("cpu",), *, root: Path = ROOT) -> list[Image]:
    """kaito-hooks, kaito-serving and kaito-tuning under the names that the chart's default values give them."""
    chart = root / "charts" / "kaito"
    registry = yaml.safe_load((chart / "values.yaml").read_text())["image"]["registry"]
    version = yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"]
    hooks = f"{registry}/kaito-hooks:{version}"
    images = [Image("kaito-hooks", root / "hooks" / "Dockerfile", root, reference=hooks, base=base_image(root=root))]
    for variant in variants:
        base = torch_image(variant, root=root)
        for room in ("serving", "tuning"):
            name = f"kaito-{room}"
            reference = f"{registry}/{name}:{version}-{variant}"
            dockerfile = root / room / "Dockerfile"
            images.append(Image(name, dockerfile, root, reference=reference, variant=variant, base=base))
    return images


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

    def stage_pause(context: Path, run: Run) -> None:
        _go_build(folder / "pause", context / "pause")

    def stage_coredns(context: Path, run: Run) -> None:
        program = gotools.ensure(["coredns"], tools=root / "tools", cache=cache)["coredns"]
        shutil.copy2(program, context / "coredns")

    return [
        Image("pause", folder / "pause/Dockerfile", folder / "pause", reference=PAUSE_IMAGE, prepare=stage_pause),
        Image(
            "coredns",
            folder / "coredns/Dockerfile",
            root / "tools" / "coredns",
            reference=COREDNS_IMAGE,
            prepare=stage_coredns,
        ),
        Image("curl", folder / "curl/Dockerfile", folder / "curl", reference=CURL_IMAGE, base=base_image(root=root)),
    ]


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
