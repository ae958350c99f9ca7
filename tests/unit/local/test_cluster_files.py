"""A local cluster's files: the disk that is still needed, the programs for PATH, what `kaito status` adds up."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kaito_local.cluster import preflight
from kaito_local.cluster.images import ClusterImages
from kaito_local.cluster.kubectl import link_programs
from kaito_local.cluster.local_cluster import LocalCluster
from kaito_local.commands import status
from kaito_local.images import torch_index
from kaito_local.images.build import Builder
from kaito_local.images.product import product_images
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT
from kaito_local.machine.gomodules import catalogue


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    """One whose cache is empty, on a machine without programs and with an index of torch's small wheels."""
    (tmp_path / "wheels").mkdir()
    for name, value in {
        "XDG_CACHE_HOME": str(tmp_path / "user"),
        "PATH": str(tmp_path / "nowhere"),
        "KAITO_WHEELS": str(tmp_path / "wheels"),
        "TORCH_INDEX": "http://127.0.0.1:9/whl/cpu",
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return LocalCluster(tmp_path / "state" / "one")


def have_programs(cluster: LocalCluster) -> None:
    known = catalogue(ROOT / "tools", cluster.cache)
    for name in gotools.CLUSTER:
        known[name].path.parent.mkdir(parents=True, exist_ok=True)
        known[name].path.touch()


def lack_a_program(cluster: LocalCluster) -> None:
    have_programs(cluster)
    catalogue(ROOT / "tools", cluster.cache)["helm"].path.unlink()


def have_images(cluster: LocalCluster) -> None:
    layout = Builder(cluster.cache).layout
    for image in product_images():
        layout.add_image(image.built_name, [], config={"Env": [image.name]})


def lack_an_image(cluster: LocalCluster) -> None:
    have_images(cluster)
    layout = Builder(cluster.cache).layout
    layout.keep_only(set(layout.names()[1:]))


PROGRAMS, IMAGES, CUDA = preflight.DISK_GIB_PROGRAMS, preflight.DISK_GIB_IMAGES, preflight.DISK_GIB_CUDA


@pytest.mark.parametrize(
    ("made", "needed"),
    [
        pytest.param([], PROGRAMS + IMAGES, id="nothing-is-made"),
        pytest.param([have_programs], IMAGES, id="images-are-missing"),
        pytest.param([have_images], PROGRAMS, id="programs-are-missing"),
        pytest.param([lack_a_program, have_images], PROGRAMS, id="one-program-is-missing"),
        pytest.param([have_programs, lack_an_image], IMAGES, id="one-image-is-missing"),
        pytest.param([have_programs, have_images], 0.0, id="all-is-made"),
    ],
)
def test_the_disk_that_is_needed_is_that_of_what_is_still_to_be_made(
    cluster: LocalCluster, made: list[Callable[[LocalCluster], None]], needed: float
) -> None:
    for make in made:
        make(cluster)
    assert ClusterImages(cluster.cache).missing_gib() == needed


@pytest.mark.parametrize(
    ("made", "needed"),
    [([], PROGRAMS + IMAGES + CUDA), ([have_images], PROGRAMS)],
    ids=["images-are-missing", "images-are-made"],
)
def test_torchs_default_wheel_needs_the_disk_of_cudas_libraries_while_images_are_missing(
    cluster: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
    made: list[Callable[[LocalCluster], None]],
    needed: float,
) -> None:
    monkeypatch.delenv("TORCH_INDEX")
    monkeypatch.setattr(torch_index, "_INDEX", "http://127.0.0.1:9/whl")
    for make in made:
        make(cluster)
    assert ClusterImages(cluster.cache).missing_gib() == needed


def links(cluster: LocalCluster) -> dict[str, Path]:
    return {path.name: path.readlink() for path in (cluster.directory / "bin").iterdir()}


KAITO = Path(sys.executable).parent / "kaito"


def test_kubectl_helm_and_kaito_are_links_in_one_folder_and_nothing_else_is(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    programs = {name: tmp_path / "built" / name for name in ("etcd", "helm", "kubectl", "kubelet")}
    link_programs(cluster.directory / "bin", programs)
    assert links(cluster) == {"kubectl": programs["kubectl"], "helm": programs["helm"], "kaito": KAITO}


def test_programs_of_another_version_replace_the_links_even_half_made_ones(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    link_programs(cluster.directory / "bin", {"kubectl": tmp_path / "old" / "kubectl"})
    (cluster.directory / "bin" / ".kubectl").symlink_to(tmp_path / "interrupted")
    for _ in range(2):
        link_programs(cluster.directory / "bin", {"kubectl": tmp_path / "new" / "kubectl"})
    assert links(cluster) == {"kubectl": tmp_path / "new" / "kubectl", "kaito": KAITO}


def test_without_charts_there_is_no_helm_to_link(cluster: LocalCluster, tmp_path: Path) -> None:
    link_programs(cluster.directory / "bin", {"kubectl": tmp_path / "kubectl", "etcd": tmp_path / "etcd"})
    assert set(links(cluster)) == {"kubectl", "kaito"}


def put(path: Path, size: int) -> int:
    """A file of so many bytes; the bytes of disk that it takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path.stat().st_blocks * 512


def link(path: Path, other: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(other, path)


def test_each_file_counts_once_where_it_comes_first(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cluster.cache
    sizes = {
        "programs": put(cache / "bin" / "a" / "etcd", 10_000),
        "images": put(cache / "images" / "oci" / "blob", 20_000) + put(cache / "weights" / "tiny" / "w", 30_000),
        "unpacked for nodes": put(cache / "golden" / "0" / "layer", 40_000),
        "other": put(cache / "go" / "module", 50_000),
        "this cluster": put(cluster.directory / "etcd" / "db", 60_000),
    }
    link(cache / "golden" / "0" / "blob", cache / "images" / "oci" / "blob")
    link(cluster.directory / "registry" / "blob", cache / "images" / "oci" / "blob")
    link(cluster.directory / "nodes" / "layer", cache / "golden" / "0" / "layer")
    monkeypatch.setattr(status, "gib", lambda size: f"{size} B")

    said = status._disk(cluster)
    parts = ", ".join(f"{name} {size} B" for name, size in sizes.items())
    assert said.startswith(f"{sum(sizes.values())} B used ({parts}), ")
    assert re.search(r", \d+ B free$", said)


def test_what_is_free_is_told_for_the_caches_file_system(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.cache.mkdir(parents=True)
    free = {cluster.cache: 3 << 29}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
    assert status._disk(cluster).endswith(", 1.5 GiB free")


def test_a_cache_that_its_user_removed_takes_no_disk(cluster: LocalCluster) -> None:
    assert not cluster.cache.exists()
    said = status._disk(cluster)
    assert said.startswith("0.0 GiB used (programs 0.0 GiB, ")
    assert said.endswith(" GiB free")
