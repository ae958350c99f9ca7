"""Blobs that the builder's layout has are not pulled again when images are unpacked for nodes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kaito_local.images.oci import Layout
from kaito_local.nodes.golden import _link_blobs


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "layout")


def image(layout: Layout, name: str, *layers: bytes) -> str:
    """The digest of an image of these layers."""
    blobs = [layout.add_bytes(layer, media_type="text/plain") for layer in layers]
    return layout.add_image(name, blobs, config={"Env": [name]}).digest


def content(root: Path) -> Path:
    """Where containerd keeps blobs (https://github.com/containerd/containerd/blob/main/docs/content-flow.md)."""
    return root / "io.containerd.content.v1.content" / "blobs" / "sha256"


def test_an_images_manifest_config_and_layers_are_links_under_their_digests(layout: Layout, tmp_path: Path) -> None:
    digest = image(layout, "app", b"one", b"two")
    image(layout, "other", b"three")
    _link_blobs(layout, [digest], tmp_path / "root")
    expected = {
        layout.path(blob).name: layout.path(blob) for blob in [digest, *(p.digest for p in layout.parts(digest))]
    }
    assert len(expected) == 4
    assert {path.name for path in content(tmp_path / "root").iterdir()} == set(expected)
    assert all(path.samefile(expected[path.name]) for path in content(tmp_path / "root").iterdir())


def test_a_layer_that_images_share_and_a_second_call_are_no_trouble(layout: Layout, tmp_path: Path) -> None:
    digests = [image(layout, "one", b"shared"), image(layout, "two", b"shared")]
    for _ in range(2):
        _link_blobs(layout, digests, tmp_path / "root")
    assert len(list(content(tmp_path / "root").iterdir())) == 5


def test_a_blob_that_is_there_already_is_left_as_it_is(layout: Layout, tmp_path: Path) -> None:
    digest = image(layout, "app", b"layer")
    there = content(tmp_path / "root") / digest.removeprefix("sha256:")
    there.parent.mkdir(parents=True)
    there.write_bytes(layout.path(digest).read_bytes())
    _link_blobs(layout, [digest], tmp_path / "root")
    assert not there.samefile(layout.path(digest))
    assert len(list(there.parent.iterdir())) == 3


def test_what_the_layout_does_not_have_is_left_to_be_pulled(layout: Layout, tmp_path: Path) -> None:
    digest = image(layout, "app", b"here", b"gone")
    gone = layout.parts(digest)[-1]
    layout.path(gone.digest).unlink()
    _link_blobs(layout, [f"sha256:{'0' * 64}", digest], tmp_path / "root")
    names = {path.name for path in content(tmp_path / "root").iterdir()}
    assert len(names) == 3
    assert not names & {"0" * 64, layout.path(gone.digest).name}


def test_on_another_file_system_blobs_are_copied(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    digest = image(layout, "app", b"layer")
    monkeypatch.setattr(os, "link", refuse)
    _link_blobs(layout, [digest], tmp_path / "root")
    copied = content(tmp_path / "root") / digest.removeprefix("sha256:")
    assert copied.read_bytes() == layout.path(digest).read_bytes()
    assert copied.stat().st_nlink == 1
