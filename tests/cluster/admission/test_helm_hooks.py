"""What helm's hooks run, against a real API server: upgraded CRDs, a guarded uninstall, the preflight."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from kaito_hooks.runtime import Client, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane

CRD = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
MACHINE = Resource("karpenter.sh", "v1alpha5", "machines", "Machine", False)
CHARTS = Path(__file__).parents[3] / "charts"
Hook = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hook(installed: ControlPlane) -> Hook:
    """Runs one command as the hook's Job does."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kaito_hooks.helm", *arguments],
            env=os.environ | {"KUBECONFIG": str(installed.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.fixture
def workspace(admin: Client) -> Iterator[str]:
    spec = {"instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"a": "b"}}}
    obj: Obj = {"metadata": {"name": "guarded"}, "resource": spec, "inference": {"preset": {"name": "phi-2"}}}
    admin.create(WORKSPACE, obj, namespace="default")
    yield "guarded"
    admin.delete(WORKSPACE, "guarded", namespace="default")


def crd(name: str) -> Obj:
    group, plural = name.split(".", 1)[1], name.split(".")[0]
    chart = "kaito" if group == "kaito.sh" else "gpu-provisioner"
    loaded: Obj = yaml.safe_load((CHARTS / chart / "crds" / f"{group}_{plural}.yaml").read_text())
    return loaded


def test_an_upgrade_brings_the_new_crds(admin: Client, hook: Hook, tmp_path: Path) -> None:
    newer = copy.deepcopy(crd("workspaces.kaito.sh"))
    newer["spec"]["names"]["categories"] = ["workspace", "newer"]
    (tmp_path / "workspaces.yaml").write_text(yaml.safe_dump(newer))
    done = hook("apply-crds", "--directory", str(tmp_path), "--take-over")
    assert (done.returncode, done.stdout) == (0, "applied workspaces.kaito.sh\n"), done.stderr
    assert "newer" in admin.get(CRD, "workspaces.kaito.sh")["spec"]["names"]["categories"]
    assert hook("apply-crds", "--directory", str(CHARTS / "kaito" / "crds"), "--take-over").returncode == 0
    assert admin.get(CRD, "workspaces.kaito.sh")["spec"]["names"]["categories"] == ["workspace"]


def test_the_crds_of_another_karpenter_stay(admin: Client, hook: Hook) -> None:
    name = "nodeclaims.karpenter.sh"
    admin.patch(CRD, name, {"metadata": {"labels": {"app.kubernetes.io/part-of": "karpenter"}}})
    try:
        done = hook("apply-crds", "--directory", str(CHARTS / "gpu-provisioner" / "crds"))
        assert done.returncode == 0, done.stderr
        assert "applied machines.karpenter.sh" in done.stdout
        assert f"left {name} as it is" in done.stdout
        assert admin.get(CRD, name)["metadata"]["labels"]["app.kubernetes.io/part-of"] == "karpenter"
    finally:
        admin.patch(CRD, name, {"metadata": {"labels": {"app.kubernetes.io/part-of": "kaito"}}})


def test_a_crd_that_loses_a_stored_version_stops_the_upgrade(admin: Client, hook: Hook, tmp_path: Path) -> None:
    other = copy.deepcopy(crd("workspaces.kaito.sh"))
    other["spec"]["versions"][0]["name"] = "v1"
    (tmp_path / "workspaces.yaml").write_text(yaml.safe_dump(other))
    done = hook("apply-crds", "--directory", str(tmp_path), "--take-over")
    assert done.returncode == 2
    assert done.stderr.startswith("objects of workspaces.kaito.sh are stored as v1alpha1")
    assert admin.get(CRD, "workspaces.kaito.sh")["spec"]["versions"][0]["name"] == "v1alpha1"


def test_a_folder_without_crds_is_told(hook: Hook, tmp_path: Path) -> None:
    done = hook("apply-crds", "--directory", str(tmp_path))
    assert (done.returncode, done.stderr) == (2, f"{tmp_path} holds no CustomResourceDefinition\n")


def test_the_charts_cannot_go_while_a_workspace_is_there(hook: Hook, workspace: str) -> None:
    done = hook("guard-uninstall", "--workspaces")
    assert done.returncode == 2
    assert done.stderr.startswith(f"1 Workspace (default/{workspace}) is still there")


def test_the_charts_can_go_without_workspaces_and_claims(hook: Hook) -> None:
    assert hook("guard-uninstall", "--workspaces").returncode == 0
    assert hook("guard-uninstall", "--claims").returncode == 0


def test_the_provisioner_cannot_go_while_a_claim_of_ours_is_there(admin: Client, hook: Hook) -> None:
    admin.create(MACHINE, {"metadata": {"name": "foreign"}})
    admin.create(MACHINE, {"metadata": {"name": "ws1", "labels": {"kaito.sh/workspace": "a"}}})
    try:
        done = hook("guard-uninstall", "--claims")
        assert done.returncode == 2
        assert done.stderr.startswith("1 Machine (ws1) is still there")
    finally:
        admin.delete(MACHINE, "foreign")
        admin.delete(MACHINE, "ws1")


@pytest.mark.parametrize("node_api", ["Machine", "NodeClaim"])
def test_the_preflight_is_content_with_an_installed_cluster(hook: Hook, node_api: str) -> None:
    done = hook("preflight", "--node-api", node_api)
    assert done.returncode == 0, done.stderr
    assert f"kind {node_api}: there" in done.stdout


def test_the_preflight_misses_gpu_nodes_where_none_are_bought(hook: Hook) -> None:
    done = hook("preflight", "--node-api", "none")
    assert done.returncode == 2
    assert done.stderr.startswith("a node with nvidia.com/gpu: missing")


def test_helm_upgrades_both_charts_without_their_hooks(installed: ControlPlane, helm: Callable[..., str]) -> None:
    for chart, namespace in (("kaito", "kaito-workspace"), ("gpu-provisioner", "gpu-provisioner")):
        said = helm("upgrade", chart, str(CHARTS / chart), "-n", namespace, "--reuse-values", "--no-hooks")
        assert "STATUS: deployed" in said


def test_helm_prints_the_next_command(installed: ControlPlane, helm: Callable[..., str]) -> None:
    notes = helm("get", "notes", "kaito", "-n", "kaito-workspace")
    manifest = notes.partition("\nkubectl apply -f - <<END\n")[2].partition("\nEND\n")[0]
    arguments = ("apply", "--dry-run=server", "--warnings-as-errors", "-f", "-")
    assert "workspace.kaito.sh/phi-3-mini created" in installed.kubectl(*arguments, input=manifest)
    subject = "system:serviceaccount:gpu-provisioner:gpu-provisioner"
    assert subject in helm("get", "notes", "gpu-provisioner", "-n", "gpu-provisioner")
