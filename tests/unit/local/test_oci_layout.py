from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from kaito_local.errors import BuildError
from kaito_local.images.models import ensure_model_image
from kaito_local.images.oci import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, Layout, hash_file


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "layout")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    return folder


def files_of(layout: Layout, digest: str) -> dict[str, bytes]:
    found = {}
    for layer in layout.parts(digest)[1:]:
        with tarfile.open(layout.path(layer.digest)) as archive:
            for entry in archive:
                if entry.isfile():
                    content = archive.extractfile(entry)
                    assert content is not None
                    found[entry.name] = content.read()
                assert (entry.uid, entry.gid, entry.mtime) == (0, 0, 0)
    return found


def test_every_blob_is_named_by_its_content(layout: Layout, weights: Path) -> None:
    digest = ensure_model_image(layout, weights, path="/workspace/tfs/weights")
    for blob in layout.parts(digest):
        file = layout.path(blob.digest)
        assert f"sha256:{hash_file(file)}" == blob.digest
        assert file.stat().st_size == blob.size


def test_diff_ids_are_the_digests_of_the_uncompressed_layers(layout: Layout, weights: Path) -> None:
    config, *layers = layout.parts(ensure_model_image(layout, weights, path="/w"))
    described = json.loads(layout.path(config.digest).read_bytes())
    assert described["rootfs"]["diff_ids"] == [layer.digest for layer in layers]


def test_a_model_image_holds_nothing_but_the_weights_in_their_folder(layout: Layout, weights: Path) -> None:
    digest = ensure_model_image(layout, weights, path="/workspace/tfs/weights")
    assert files_of(layout, digest) == {
        "workspace/tfs/weights/config.json": b"{}",
        "workspace/tfs/weights/model.safetensors": b"\0" * 1000,
    }


def test_hidden_files_and_links_of_a_download_cache_do_not_matter(
    layout: Layout, weights: Path, tmp_path: Path
) -> None:
    (weights / ".cache").mkdir()
    (weights / ".cache" / "junk").write_text("junk")
    (tmp_path / "blob").write_text("vocabulary")
    (weights / "tokenizer.json").symlink_to(tmp_path / "blob")
    digest = ensure_model_image(layout, weights, path="/w")
    assert files_of(layout, digest)["w/tokenizer.json"] == b"vocabulary"
    assert "w/.cache/junk" not in files_of(layout, digest)


def test_the_same_folder_makes_the_same_image_and_a_changed_one_another(layout: Layout, weights: Path) -> None:
    first = ensure_model_image(layout, weights, path="/w")
    assert ensure_model_image(layout, weights, path="/w") == first
    (weights / "config.json").write_text('{"a": 1}')
    assert ensure_model_image(layout, weights, path="/w") != first


def test_an_empty_folder_is_no_model(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match="holds no file"):
        ensure_model_image(layout, tmp_path / "empty", path="/w")


def test_an_image_whose_blob_is_gone_counts_as_missing(layout: Layout) -> None:
    layer = layout.add_bytes(b"layer", media_type="text/plain")
    layout.add_image("a", [layer], config={})
    assert layout.find("a") is not None
    layout.path(layer.digest).unlink()
    assert layout.find("a") is None


def test_forgetting_an_image_keeps_what_others_share(layout: Layout) -> None:
    shared = layout.add_bytes(b"shared", media_type="text/plain")
    own = layout.add_bytes(b"own", media_type="text/plain")
    layout.add_image("old", [shared, own], config={})
    layout.add_image("new", [shared], config={})
    layout.keep_only({"new"})
    assert layout.names() == ["new"]
    assert layout.path(shared.digest).exists()
    assert not layout.path(own.digest).exists()
    assert layout.find("new") is not None


def test_two_machines_that_build_the_same_build_the_same_image(tmp_path: Path) -> None:
    """What buildah writes: the id of each step in between, and the base by its name on that machine."""
    digests = []
    for machine in ("b093ec123b7b", "47793f71dbad"):
        layout = Layout.open(tmp_path / machine)
        layer = layout.add_bytes(b"layer", media_type=LAYER_TYPE)
        history = [{"created_by": "ADD", "comment": f"FROM {machine}"}, {"created_by": "RUN"}]
        config = {"config": {"User": "1"}, "rootfs": {"diff_ids": [layer.digest]}, "history": history}
        blob = layout.add_bytes(json.dumps(config).encode(), media_type=CONFIG_TYPE)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": blob.descriptor(),
            "layers": [layer.descriptor()],
            "annotations": {"org.opencontainers.image.base.name": f"localhost/{machine}", "kept": "yes"},
        }
        described = layout.add_bytes(json.dumps(manifest).encode(), media_type=MANIFEST_TYPE).descriptor()
        entry = {**described, "annotations": {"org.opencontainers.image.ref.name": "app"}}
        (layout.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        found = layout.forget_builder("app")
        assert layout.find("app") == found
        kept = json.loads(layout.path(found.digest).read_bytes())
        assert kept["annotations"] == {"kept": "yes"}
        assert kept["layers"] == manifest["layers"]
        read = json.loads(layout.path(kept["config"]["digest"]).read_bytes())
        assert read == {**config, "history": [{"created_by": "ADD"}, {"created_by": "RUN"}]}
        digests.append(found.digest)
    assert digests[0] == digests[1]
