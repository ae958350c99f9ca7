"""What helm's hooks run, against a real API server: upgraded CRDs, a guarded uninstall, the preflight."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tests.eventually import eventually

from kaito_hooks.runtime import Client, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane

CRD = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
NODE = Resource("", "v1", "nodes", "Node", False)
QUOTA = Resource("", "v1", "resourcequotas", "ResourceQuota", True)
MACHINE = Resource("karpenter.sh", "v1alpha5", "machines", "Machine", False)
CHARTS = Path(__file__).parents[3] / "charts"
UNDO = ("--undo", "helm rollback kaito 1")
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


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The CRDs of the chart kaito 0.1.0."""
    with tarfile.open(CHARTS.parent / "tests/cluster/charts/release-0.1.0/kaito-0.1.0.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "kaito" / "crds"


def crd(name: str) -> Obj:
    group, plural = name.split(".", 1)[1], name.split(".")[0]
    chart = "kaito" if group == "kaito.sh" else "gpu-provisioner"
    loaded: Obj = yaml.safe_load((CHARTS / chart / "crds" / f"{group}_{plural}.yaml").read_text())
    return loaded


def test_an_upgrade_brings_the_new_crds(admin: Client, hook: Hook, tmp_path: Path) -> None:
    newer = copy.deepcopy(crd("workspaces.kaito.sh"))
    newer["spec"]["names"]["categories"] = ["workspace", "newer"]
    (tmp_path / "workspaces.yaml").write_text(yaml.safe_dump(newer))
    done = hook("apply-crds", "--directory", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "applied workspaces.kaito.sh\n"), done.stderr
    assert "newer" in admin.get(CRD, "workspaces.kaito.sh")["spec"]["names"]["categories"]
    assert hook("apply-crds", "--directory", str(CHARTS / "kaito" / "crds")).returncode == 0
    assert admin.get(CRD, "workspaces.kaito.sh")["spec"]["names"]["categories"] == ["workspace"]


def test_an_older_chart_takes_no_field_from_stored_objects(
    admin: Client, hook: Hook, workspace: str, older: Path
) -> None:
    """As after a rollback, which runs no hook: the older chart's objects fit into the newer CRDs."""
    name, startup = "workspaces.kaito.sh", {"totalSeconds": 7}
    before = admin.get(CRD, name)["spec"]
    admin.patch(WORKSPACE, workspace, {"status": {"startup": startup}}, namespace="default", subresource="status")
    done = hook("apply-crds", "--directory", str(older))
    assert done.returncode == 0, done.stderr
    [kept] = [line for line in done.stdout.splitlines() if line.startswith(f"kept {name} as it is")]
    assert "it is of a newer chart, and stored objects would lose " in kept
    assert "status.startup" in kept
    assert "kubectl apply --server-side --force-conflicts -f <the chart's folder crds>\n" in done.stdout
    assert admin.get(CRD, name)["spec"] == before
    label = {"metadata": {"labels": {"written": "again"}}}
    assert admin.patch(WORKSPACE, workspace, label, namespace="default")["status"]["startup"] == startup


def test_the_way_out_brings_the_older_crds_and_an_upgrade_the_newer_ones(
    admin: Client, hook: Hook, installed: ControlPlane, older: Path
) -> None:
    name = "workspaces.kaito.sh"
    newest = admin.get(CRD, name)["spec"]["versions"]
    installed.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(older))
    assert f"applied {name}" in hook("apply-crds", "--directory", str(older)).stdout
    assert admin.get(CRD, name)["spec"]["versions"] != newest
    assert f"applied {name}" in hook("apply-crds", "--directory", str(CHARTS / "kaito" / "crds")).stdout
    assert admin.get(CRD, name)["spec"]["versions"] == newest


def test_a_crd_that_trades_fields_for_others_stops_the_upgrade(admin: Client, hook: Hook, tmp_path: Path) -> None:
    other = copy.deepcopy(crd("workspaces.kaito.sh"))
    status = other["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    status["begun"] = status.pop("startup")
    (tmp_path / "workspaces.yaml").write_text(yaml.safe_dump(other))
    before = admin.get(CRD, "workspaces.kaito.sh")["metadata"]["resourceVersion"]
    done = hook("apply-crds", "--directory", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(
        "stored objects of workspaces.kaito.sh would lose status.startup, which this chart does not know, and it "
        "brings status.begun; "
    )
    assert admin.get(CRD, "workspaces.kaito.sh")["metadata"]["resourceVersion"] == before


def test_the_crds_of_another_karpenter_stay(admin: Client, hook: Hook) -> None:
    name = "nodeclaims.karpenter.sh"
    admin.patch(CRD, name, {"metadata": {"labels": {"app.kubernetes.io/part-of": "karpenter"}}})
    try:
        done = hook("apply-crds", "--directory", str(CHARTS / "gpu-provisioner" / "crds"), "--leave-foreign")
        assert done.returncode == 0, done.stderr
        assert "applied machines.karpenter.sh" in done.stdout
        assert f"left {name} as it is" in done.stdout
        assert admin.get(CRD, name)["metadata"]["labels"]["app.kubernetes.io/part-of"] == "karpenter"
    finally:
        admin.patch(CRD, name, {"metadata": {"labels": {"app.kubernetes.io/part-of": "kaito"}}})


def test_the_workspaces_of_another_operator_stop_the_upgrade(admin: Client, hook: Hook) -> None:
    name, label = "workspaces.kaito.sh", "app.kubernetes.io/part-of"
    admin.patch(CRD, name, {"metadata": {"labels": {label: None}}})
    before = admin.get(CRD, name)["metadata"]["resourceVersion"]
    try:
        done = hook("apply-crds", "--directory", str(CHARTS / "kaito" / "crds"))
        assert done.returncode == 2
        assert done.stderr.startswith(f"{name} in this cluster has no label {label}=kaito")
        assert admin.get(CRD, name)["metadata"]["resourceVersion"] == before
    finally:
        admin.patch(CRD, name, {"metadata": {"labels": {label: "kaito"}}})


def test_a_change_by_hand_is_taken_back_and_told(admin: Client, hook: Hook, installed: ControlPlane) -> None:
    name = "workspaces.kaito.sh"
    wanted = admin.get(CRD, name)["spec"]["versions"]
    column = '[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/0"}]'
    installed.kubectl("patch", "crd", name, "--type=json", "-p", column)
    done = hook("apply-crds", "--directory", str(CHARTS / "kaito" / "crds"))
    assert done.returncode == 0, done.stderr
    assert f"applied {name}, and took back .spec.versions from kubectl-patch\n" in done.stdout
    assert admin.get(CRD, name)["spec"]["versions"] == wanted


def test_a_field_that_somebody_else_applies_stops_the_upgrade_before_anything_is_written(
    admin: Client, hook: Hook, tmp_path: Path
) -> None:
    """Such as Argo CD or Flux: both would write the field in turn, for ever."""
    for name in ("catalogs.kaito.sh", "workspaces.kaito.sh"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(crd(name)))
    theirs = copy.deepcopy(crd("workspaces.kaito.sh"))
    theirs["spec"]["names"]["categories"] = ["theirs"]
    admin.apply(CRD, theirs, field_manager="argocd-controller")
    try:
        done = hook("apply-crds", "--directory", str(tmp_path))
        assert (done.returncode, done.stdout) == (2, "")
        assert "argocd-controller holds .spec.names.categories" in done.stderr
        assert "hooks.upgradeCRDs=false" in done.stderr
        assert admin.get(CRD, "workspaces.kaito.sh")["spec"]["names"]["categories"] == ["theirs"]
        # One that applies what the chart brings is in nobody's way.
        admin.apply(CRD, crd("workspaces.kaito.sh"), field_manager="argocd-controller")
        done = hook("apply-crds", "--directory", str(tmp_path))
        assert done.returncode == 0, done.stderr
    finally:
        admin.apply(CRD, crd("workspaces.kaito.sh"), field_manager="kaito-helm")
        bare = {"metadata": {"name": "workspaces.kaito.sh"}}
        admin.apply(CRD, bare, field_manager="argocd-controller")


def test_a_crd_that_loses_a_stored_version_stops_the_upgrade(admin: Client, hook: Hook, tmp_path: Path) -> None:
    other = copy.deepcopy(crd("workspaces.kaito.sh"))
    other["spec"]["versions"][0]["name"] = "v1"
    (tmp_path / "workspaces.yaml").write_text(yaml.safe_dump(other))
    done = hook("apply-crds", "--directory", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("objects of workspaces.kaito.sh are stored as v1alpha1")
    assert admin.get(CRD, "workspaces.kaito.sh")["spec"]["versions"][0]["name"] == "v1alpha1"


def test_a_folder_without_crds_is_told(hook: Hook, tmp_path: Path) -> None:
    done = hook("apply-crds", "--directory", str(tmp_path))
    assert (done.returncode, done.stderr) == (2, f"{tmp_path} holds no CustomResourceDefinition\n")


def test_the_charts_cannot_go_while_a_workspace_is_there(hook: Hook, workspace: str) -> None:
    done = hook("guard-uninstall", "--workspaces", *UNDO)
    assert done.returncode == 2
    assert done.stderr.startswith(f"1 Workspace (default/{workspace}) is still there")


def test_the_charts_can_go_without_workspaces_and_claims(hook: Hook) -> None:
    assert hook("guard-uninstall", "--workspaces", *UNDO).returncode == 0
    assert hook("guard-uninstall", "--claims", *UNDO).returncode == 0


def test_the_provisioner_cannot_go_while_a_claim_of_ours_is_there(admin: Client, hook: Hook) -> None:
    admin.create(MACHINE, {"metadata": {"name": "foreign"}})
    admin.create(MACHINE, {"metadata": {"name": "ws1", "labels": {"kaito.sh/workspace": "a"}}})
    try:
        done = hook("guard-uninstall", "--claims", *UNDO)
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


def test_the_preflight_says_that_pod_security_keeps_the_device_plugin_away(installed: ControlPlane, hook: Hook) -> None:
    namespace, name = "kaito-workspace", "kaito-nvidia-device-plugin"
    command = ("preflight", "--node-api", "Machine", "--device-plugin", namespace, name)
    assert f"DaemonSet {namespace}/{name}: there" in hook(*command).stdout
    label = "pod-security.kubernetes.io/enforce"
    installed.kubectl("label", "namespace", namespace, f"{label}=restricted")
    refused = hook(*command)
    installed.kubectl("label", "namespace", namespace, f"{label}-")
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        f"DaemonSet {namespace}/{name}: the namespace enforces the Pod security standard restricted, which refuses its "
        "Pods; set nvidiaDevicePlugin.namespace to one that is privileged, as kube-system, or"
    )
    gone = hook(*command[:-1], "another")
    assert gone.stderr.startswith(f"DaemonSet {namespace}/another: missing; run helm upgrade again")


def test_the_preflight_tells_that_the_device_plugins_pods_are_refused(
    installed: ControlPlane, admin: Client, hook: Hook
) -> None:
    namespace, name = "kaito-workspace", "kaito-nvidia-device-plugin"
    quota = {"metadata": {"name": "none", "namespace": namespace}, "spec": {"hard": {"pods": "0"}}}
    admin.create(QUOTA, quota)
    eventually(lambda: (admin.get(QUOTA, "none", namespace=namespace).get("status") or {}).get("hard"), every=0.1)
    admin.create(NODE, {"metadata": {"name": "with-gpu", "labels": {"accelerator": "nvidia"}}})
    try:
        said = eventually(
            lambda: hook("preflight", "--node-api", "Machine", "--device-plugin", namespace, name).stderr, every=0.5
        )
    finally:
        admin.delete(NODE, "with-gpu")
        admin.delete(QUOTA, "none", namespace=namespace)
    assert said.strip() == (
        f"DaemonSet {namespace}/{name}: 0 of 1 Pods could be created; kubectl describe says why; if it is Pod "
        "security, set nvidiaDevicePlugin.namespace to one that is privileged, as kube-system, or "
        "nvidiaDevicePlugin.enabled=false"
    )


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
