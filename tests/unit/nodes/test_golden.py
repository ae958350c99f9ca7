"""A node's containerd root out of the golden one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kaito_local.errors import BuildError
from kaito_local.nodes.golden import image_digest, link_content, prune_golden


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    root = tmp_path / "golden"
    files = {
        "io.containerd.content.v1.content/blobs/sha256/aa": b"layer",
        "io.containerd.metadata.v1.bolt/meta.db": b"images",
        "io.containerd.snapshotter.v1.overlayfs/metadata.db": b"snapshots",
        "io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs/file": b"unpacked",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_blobs_are_links_and_databases_are_copies(golden: Path, tmp_path: Path) -> None:
    root = tmp_path / "node"
    link_content(golden, root)
    blob = "io.containerd.content.v1.content/blobs/sha256/aa"
    assert (root / blob).samefile(golden / blob)
    for database in ("io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"):
        assert (root / database).read_bytes() == (golden / database).read_bytes()
        assert not (root / database).samefile(golden / database)
    assert list((root / "io.containerd.snapshotter.v1.overlayfs/snapshots").iterdir()) == []


def test_an_interrupted_copy_is_begun_again(golden: Path, tmp_path: Path) -> None:
    (tmp_path / ".node.partial" / "io.containerd.content.v1.content").mkdir(parents=True)
    link_content(golden, tmp_path / "node")
    assert (tmp_path / "node/io.containerd.content.v1.content/blobs/sha256/aa").exists()


def test_pruning_keeps_what_is_in_use(tmp_path: Path) -> None:
    for name in ("used", "old"):
        (tmp_path / "golden" / name).mkdir(parents=True)
    prune_golden(tmp_path / "golden", keep=[tmp_path / "golden" / "used"])
    assert [path.name for path in (tmp_path / "golden").iterdir()] == ["used"]
    prune_golden(tmp_path / "nothing", keep=[])


def test_a_registry_that_does_not_answer_is_said_in_a_sentence() -> None:
    with pytest.raises(BuildError, match="does not answer"):
        image_digest("docker.io/curlimages/curl:latest", mirror="http://127.0.0.1:1")


def test_what_a_process_has_mounted_is_not_pruned(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    for name in ("mounted", "old"):
        (tmp_path / "golden" / name / "layer").mkdir(parents=True)
    target = tmp_path / "target"
    target.mkdir()
    script = f"mount --bind {tmp_path}/golden/mounted/layer {target} && echo mounted && read line"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mounted\n"
        prune_golden(tmp_path / "golden", keep=[])
        assert [path.name for path in (tmp_path / "golden").iterdir()] == ["mounted"]
        holder.communicate("done\n")
    prune_golden(tmp_path / "golden", keep=[])
    assert list((tmp_path / "golden").iterdir()) == []
