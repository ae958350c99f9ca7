"""What an image's bill of materials says of its layers."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from kaito_local.images.bill import Package, bill, packages
from kaito_local.images.oci import LAYER_TYPE, Blob, Layout

STATUS = """\
Package: libc6
Status: install ok installed
Version: 2.36-9+deb12u10
Architecture: amd64
Description: GNU C Library
 Package: none
 Status: install ok installed

Package: perl
Status: deinstall ok config-files
Version: 5.36.0-7
Architecture: amd64
"""
SITE = "opt/venv/lib/python3.11/site-packages"
CFFI = f"{SITE}/cffi-2.0.0.dist-info"


def metadata(name: str, version: str, more: str = "") -> str:
    return f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{more}\nA text with a line\n\nName: none\n"


def layer(layout: Layout, files: dict[str, str]) -> Blob:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return layout.add_bytes(data.getvalue(), media_type=LAYER_TYPE)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path)


@pytest.fixture
def image(layout: Layout) -> Blob:
    below = {
        "./var/lib/dpkg/status": STATUS,
        f"{CFFI}/METADATA": metadata("cffi", "2.0.0", "License-Expression: MIT\n"),
        f"{SITE}/aiohttp-3.14.5.dist-info/METADATA": metadata("aiohttp", "3.14.5"),
        f"{SITE}/aiohttp/METADATA": metadata("aiohttp", "1"),
    }
    above = {
        f"{SITE}/.wh.aiohttp-3.14.5.dist-info": "",
        f"{SITE}/PyYAML-6.0.3.dist-info/METADATA": metadata("PyYAML", "6.0.3"),
        f"{SITE}/ruamel.yaml-1.dist-info/METADATA": metadata("ruamel.yaml", "1"),
    }
    return layout.add_image("app", [layer(layout, below), layer(layout, above)], config={})


def test_installed_packages_of_all_layers_are_found_and_removed_ones_are_not(layout: Layout, image: Blob) -> None:
    assert packages(layout, image.digest) == [
        Package("deb", "libc6", "2.36-9+deb12u10", "amd64"),
        Package("pypi", "cffi", "2.0.0", licence="MIT"),
        Package("pypi", "pyyaml", "6.0.3"),
        Package("pypi", "ruamel-yaml", "1"),
    ]


def test_the_bill_names_the_image_and_each_package_as_others_look_it_up(layout: Layout, image: Blob) -> None:
    said = json.loads(bill("app", "1.2.3", digest=image.digest, packages=packages(layout, image.digest)))
    assert (said["bomFormat"], said["specVersion"]) == ("CycloneDX", "1.6")
    subject = said["metadata"]["component"]
    assert (subject["type"], subject["name"], subject["version"]) == ("container", "app", "1.2.3")
    assert subject["purl"].startswith("pkg:oci/app@sha256")
    found = {component["purl"]: component for component in said["components"]}
    # https://github.com/package-url/purl-spec
    assert found.keys() == {
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64",
        "pkg:pypi/cffi@2.0.0",
        "pkg:pypi/pyyaml@6.0.3",
        "pkg:pypi/ruamel-yaml@1",
    }
    assert found["pkg:pypi/cffi@2.0.0"]["licenses"] == [{"acknowledgement": "declared", "expression": "MIT"}] or (
        found["pkg:pypi/cffi@2.0.0"]["licenses"] == [{"expression": "MIT"}]
    )


def test_the_same_image_has_the_same_bill(layout: Layout, image: Blob) -> None:
    found = packages(layout, image.digest)
    first = bill("app", "1", digest=image.digest, packages=found)
    assert bill("app", "1", digest=image.digest, packages=reversed(found)) == first
    assert bill("app", "1", digest="sha256:" + "0" * 64, packages=found) != first


def test_an_image_of_one_program_has_an_empty_bill(layout: Layout) -> None:
    image = layout.add_image("pause", [layer(layout, {"pause": "x"})], config={})
    assert packages(layout, image.digest) == []
    assert "components" not in json.loads(bill("pause", "1", digest=image.digest, packages=[]))
