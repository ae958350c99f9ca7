from __future__ import annotations

from pathlib import Path

import pytest

from kaito_local.machine.installed import envtest_binary, on_path


def _program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("name", "answer", "version", "taken"),
    [
        ("kubelet", "echo Kubernetes v1.34.4", "v1.34.4", True),
        ("kubelet", "echo Kubernetes v1.34.5", "v1.34.4", False),
        ("kubelet", "echo Kubernetes v1.34.4+k3s1", "v1.34.4", False),
        ("kubelet", "echo Kubernetes v1.34.4-eks-1234567", "v1.34.4", False),
        ("kubelet", "echo Kubernetes v1.34.4; exit 1", "v1.34.4", False),
        ("kubelet", "echo no idea", "v1.34.4", False),
        ("kubectl", 'test "$*" = "version --client" && echo Client Version: v1.34.4', "v1.34.4", True),
        ("etcd", "printf 'etcd Version: 3.6.16\\nGit SHA: abc\\nGo Version: go1.26.8\\n'", "v3.6.16", True),
        ("helm", 'test "$1" = version && echo v3.21.3', "v3.21.3", True),
        ("ct", 'test "$1" = version && printf "Version:\\t 3.14.0\\n"', "v3.14.0", True),
        ("registry", "echo registry github.com/distribution/distribution/v3 v3.0.0", "v3.0.0", False),
        ("coredns", "echo CoreDNS-1.14.5", "v1.14.5", False),
    ],
)
def test_only_a_program_of_exactly_the_pinned_version_is_taken_from_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, name: str, answer: str, version: str, taken: bool
) -> None:
    path = _program(tmp_path / name, answer)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert on_path(name, version) == (path if taken else None)


def test_a_program_that_does_not_answer_in_time_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "kubelet", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert on_path("kubelet", "v1.34.4", within=0.2) is None


def test_a_link_to_what_was_built_here_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kaito env` puts such links on PATH; the next `kaito up` in that shell must not link them to themselves."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = tmp_path / "cache" / "kaito" / "bin" / "kubernetes-0"
    built.mkdir(parents=True)
    _program(built / "kubelet", "echo Kubernetes v1.34.4")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubelet").symlink_to(built / "kubelet")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert on_path("kubelet", "v1.34.4") is None


def test_the_folder_of_envtest_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etcd = _program(tmp_path / "etcd", "echo etcd Version: 3.5.0")
    _program(tmp_path / "kubelet", "echo Kubernetes v1.30.0")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert envtest_binary("etcd") == etcd
    assert envtest_binary("kubectl") is None
    assert envtest_binary("kubelet") is None
