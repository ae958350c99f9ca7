"""The control plane without nodes, as every test of a controller uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.eventually import eventually

from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.errors import CommandError, StartError
from kaito_local.machine.processes import Identity


def processes_of(plane: ControlPlane) -> list[Identity]:
    found = [Identity.of(child.pid) for child in plane.children if child.pid is not None]
    return [process for process in found if process is not None]


def test_two_control_planes_run_side_by_side(programs: Mapping[str, Path], tmp_path: Path) -> None:
    with (
        ControlPlane.start(tmp_path / "a", programs=programs, controller_manager=False, scheduler=False) as one,
        ControlPlane.start(tmp_path / "b", programs=programs, controller_manager=False, scheduler=False) as two,
    ):
        one.kubectl("create", "namespace", "only-here")
        assert "only-here" in one.kubectl("get", "namespaces")
        assert "only-here" not in two.kubectl("get", "namespaces")


def test_close_leaves_no_process(programs: Mapping[str, Path], tmp_path: Path) -> None:
    plane = ControlPlane.start(tmp_path, programs=programs)
    running = processes_of(plane)
    assert len(running) == 4
    plane.close()
    assert not any(process.alive() for process in running)


def test_objects_survive_an_outage_of_the_api_server(fresh_control_plane: ControlPlane) -> None:
    plane = fresh_control_plane
    plane.kubectl("create", "configmap", "kept", "--from-literal=a=b")
    plane.stop_api_server()
    with pytest.raises(CommandError):
        plane.kubectl("get", "configmap", "kept")
    plane.start_api_server()
    assert "kept" in plane.kubectl("get", "configmap", "kept")


def test_a_control_plane_continues_in_its_old_directory(programs: Mapping[str, Path], tmp_path: Path) -> None:
    with ControlPlane.start(tmp_path, programs=programs, controller_manager=False, scheduler=False) as plane:
        plane.kubectl("create", "namespace", "kept")
    with ControlPlane.start(tmp_path, programs=programs, controller_manager=False, scheduler=False) as plane:
        assert "kept" in plane.kubectl("get", "namespaces")


def test_a_killed_part_is_started_again_by_resume(fresh_control_plane: ControlPlane) -> None:
    plane = fresh_control_plane
    assert all(child.alive() for child in plane.children)
    for child in plane.children:
        # A controller may end by itself when its API server is gone.
        if (pid := child.pid) is not None:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda child=child: not child.alive())
    plane.resume()
    assert all(child.alive() for child in plane.children)
    assert "default" in plane.kubectl("get", "namespaces")


def test_nothing_outlives_a_killed_owner(programs: Mapping[str, Path], tmp_path: Path) -> None:
    script = f"""
import pathlib, sys, time
from kaito_local.cluster.controlplane import ControlPlane
programs = {{name: pathlib.Path(path) for name, path in { ({n: str(p) for n, p in programs.items()})!r}.items()}}
plane = ControlPlane.start(pathlib.Path({str(tmp_path)!r}), programs=programs)
print(*(child.pid for child in plane.children), flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    children = [Identity.of(int(pid)) for pid in owner.stdout.readline().split()]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert len(children) == 4
    eventually(lambda: not any(child is not None and child.alive() for child in children))


def test_a_user_without_rights_is_refused_by_rbac(control_plane: ControlPlane, tmp_path: Path) -> None:
    config = control_plane.client_kubeconfig(tmp_path / "nobody", user="nobody")
    with pytest.raises(CommandError, match='User "nobody" cannot list resource "secrets"'):
        control_plane.kubectl("--kubeconfig", str(config), "get", "secrets")


def test_a_fresh_namespace_takes_pods_at_once(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("run", "p", "--image=example.invalid/p", "-n", namespace)
    assert "p" in control_plane.kubectl("get", "pods", "-n", namespace)


def test_the_version_is_stamped(control_plane: ControlPlane) -> None:
    assert '"gitVersion": "v1.' in control_plane.kubectl("get", "--raw", "/version")


def test_a_program_that_cannot_start_is_reported_with_the_end_of_its_log(
    programs: Mapping[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "kube-apiserver"
    broken.write_text("#!/bin/sh\necho 'flag provided but not defined'; exit 2\n")
    broken.chmod(0o755)
    with pytest.raises(StartError, match="flag provided but not defined"):
        ControlPlane.start(tmp_path / "d", programs={**programs, "kube-apiserver": broken})
