"""Both layouts of cgroups, on plain folders that look like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaito_local.errors import MissingPrerequisite
from kaito_local.machine.cgroups import VersionOne, VersionTwo, detect_cgroups


@pytest.fixture
def version_one(tmp_path: Path) -> Path:
    for controller in ("cpu", "cpuset", "memory", "pids"):
        (tmp_path / controller).mkdir()
    (tmp_path / "cpuset" / "cpuset.cpus").write_text("0-1")
    (tmp_path / "cpuset" / "cpuset.mems").write_text("0")
    (tmp_path / "cpu,cpuacct").symlink_to(tmp_path / "cpu")
    return tmp_path


@pytest.fixture
def version_two(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma")
    (tmp_path / "cgroup.subtree_control").touch()
    return tmp_path


def test_one_tree_per_controller_is_version_one(version_one: Path) -> None:
    assert detect_cgroups("kaito-0", mount=version_one) == VersionOne("kaito-0", mount=version_one)


@pytest.mark.parametrize("systemd", [True, False])
def test_a_unified_tree_is_version_two(version_two: Path, systemd: bool) -> None:
    found = detect_cgroups("kaito-0", mount=version_two, systemd=systemd)
    assert found == VersionTwo("kaito-0", systemd=systemd, mount=version_two)


def test_no_cgroups_at_all_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="no cgroups are mounted"):
        detect_cgroups("kaito-0", mount=tmp_path)


def test_version_one_makes_a_nodes_cgroup_in_every_controller_but_not_through_links(version_one: Path) -> None:
    tree = VersionOne("kaito-0", mount=version_one)
    tree.create("g1")
    assert sorted(path.parent.parent.name for path in version_one.glob("*/kaito-0/g1") if path.parts) == [
        *("cpu", "cpu,cpuacct", "cpuset", "memory", "pids")
    ]
    assert tree.kubelet_root("g1") == "/kaito-0/g1"
    assert tree.launch_prefix == ()


def test_version_one_gives_a_new_cpuset_what_its_parent_has(version_one: Path) -> None:
    VersionOne("kaito-0", mount=version_one).create("g1")
    assert (version_one / "cpuset/kaito-0/g1/cpuset.cpus").read_text() == "0-1"
    assert (version_one / "cpuset/kaito-0/g1/cpuset.mems").read_text() == "0"


def test_version_one_takes_the_clusters_processes_out_of_their_launchers_cgroups(version_one: Path) -> None:
    VersionOne("kaito-0", mount=version_one).enter()
    for controller in ("cpu", "cpuset", "memory", "pids"):
        assert (version_one / controller / "kaito-0" / "control" / "cgroup.procs").read_text() == "0"


def test_version_one_removes_nested_cgroups_of_one_node_only(version_one: Path) -> None:
    tree = VersionOne("kaito-0", mount=version_one)
    tree.create("g1")
    tree.create("g2")
    (version_one / "memory/kaito-0/g1/kubepods/pod1").mkdir(parents=True)
    # The files of a real cgroup go with its folder.
    for setting in version_one.glob("cpuset/kaito-0/**/cpuset.*"):
        setting.unlink()
    tree.remove("g1")
    tree.remove("g1")
    assert not list(version_one.glob("*/kaito-0/g1"))
    assert (version_one / "memory/kaito-0/g2").is_dir()
    tree.remove()
    assert not list(version_one.glob("*/kaito-0"))


def test_version_two_without_systemd_lies_at_the_top(version_two: Path) -> None:
    tree = VersionTwo("kaito-0", systemd=False, mount=version_two)
    tree.base.mkdir()
    (tree.base / "cgroup.controllers").write_text("cpuset cpu memory pids")
    tree.create("g1")
    assert (version_two / "cgroup.subtree_control").read_text() == "+cpuset +cpu +io +memory +pids"
    assert (tree.base / "cgroup.subtree_control").read_text() == "+cpuset +cpu +memory +pids"
    assert tree.kubelet_root("g1") == "/kaito-0/g1"
    assert tree.launch_prefix == ()


def test_version_two_with_systemd_lives_in_a_delegated_scope(version_two: Path) -> None:
    tree = VersionTwo("kaito-0", systemd=True, mount=version_two)
    assert tree.kubelet_root("g1") == "/system.slice/kaito-0.scope/g1"
    assert "--property=Delegate=yes" in tree.launch_prefix
    assert "--unit=kaito-0" in tree.launch_prefix


def test_version_two_keeps_processes_out_of_inner_cgroups(version_two: Path) -> None:
    tree = VersionTwo("kaito-0", systemd=False, mount=version_two)
    tree.enter()
    assert (tree.base / "control" / "cgroup.procs").read_text() == "0"
