"""A cluster in which a chart could be installed and would not work: helm stops with a sentence."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from tests.cluster.charts.helm import Helm
from tests.helm_versions import PROGRAMS, program

from kaito_hooks.runtime import Client, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.cluster.definitions import apply_definitions

CRD = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
WEBHOOK = Resource(
    "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", False
)
CHARTS = Path(__file__).parents[3] / "charts"


@pytest.mark.parametrize("version", PROGRAMS)
def test_kubernetes_that_is_too_old_is_named(version: str) -> None:
    command = [str(program(version)), "template", "kaito", str(CHARTS / "kaito"), "--kube-version", "1.29.4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "chart requires kubeVersion: >=1.30.0-0 which is incompatible with Kubernetes v1.29.4" in done.stderr


def test_workspaces_of_another_operator_stop_the_installation_until_they_are_given_to_it(
    fresh_control_plane: ControlPlane, programs: Mapping[str, Path]
) -> None:
    plane, helm = fresh_control_plane, Helm(fresh_control_plane, programs["helm"])
    admin = Client.load(kubeconfig=str(plane.kubeconfig))
    admin.create(CRD, of_another("kaito/crds/kaito.sh_workspaces.yaml"))
    arguments = ("install", "kaito", str(CHARTS / "kaito"), "-n", "kaito-workspace", "--create-namespace")
    said = helm(*arguments, check=False)
    assert "workspaces.kaito.sh in this cluster has no label app.kubernetes.io/part-of=kaito" in said
    assert helm("list", "-A", "-q") == ""
    # The sentence's way out.
    apply_definitions(plane.kubectl, CHARTS / "kaito" / "crds", force=True)
    helm(*arguments)


@pytest.mark.parametrize("version", [pytest.param("helm 3", marks=pytest.mark.soak), "helm 4"])
def test_upstreams_operator_stops_the_installation_though_its_crds_look_like_ours(
    fresh_control_plane: ControlPlane, version: str
) -> None:
    """helm 4 takes over, without a word, what helm 4 has brought: a CRD has our label before a template looks."""
    plane, helm = fresh_control_plane, Helm(fresh_control_plane, program(version))
    admin = Client.load(kubeconfig=str(plane.kubeconfig))
    admin.apply(CRD, of_another("kaito/crds/kaito.sh_workspaces.yaml"), field_manager="helm")
    admin.create(WEBHOOK, {"metadata": {"name": "validation.workspace.kaito.sh"}, "webhooks": []})
    said = helm("install", "kaito", str(CHARTS / "kaito"), "-n", "kaito-workspace", "--create-namespace", check=False)
    assert "two operators would act on the same objects: uninstall" in said
    assert helm("list", "-A", "-q") == ""


@pytest.mark.soak
def test_the_guard_of_foreign_crds_holds_under_helm_4_that_applies_on_the_clients_side(
    fresh_control_plane: ControlPlane,
) -> None:
    """As the chart's README says."""
    helm = Helm(fresh_control_plane, program("helm 4"))
    admin = Client.load(kubeconfig=str(fresh_control_plane.kubeconfig))
    theirs = of_another("kaito/crds/kaito.sh_workspaces.yaml")
    uid = admin.apply(CRD, theirs, field_manager="helm")["metadata"]["uid"]
    arguments = ("-n", "kaito-workspace", "--create-namespace", "--server-side=false")
    said = helm("install", "kaito", str(CHARTS / "kaito"), *arguments, check=False)
    assert "workspaces.kaito.sh in this cluster has no label app.kubernetes.io/part-of=kaito" in said
    found = admin.get(CRD, "workspaces.kaito.sh")["metadata"]
    assert found["uid"] == uid
    assert "labels" not in found


@pytest.mark.parametrize(
    ("served", "words"), [("v1beta1", "serves v1beta1, and nodeAPI=NodeClaim needs v1"), ("v1", "")]
)
def test_the_nodeclaims_of_another_karpenter_are_welcome_if_they_are_new_enough(
    fresh_control_plane: ControlPlane, programs: Mapping[str, Path], served: str, words: str
) -> None:
    plane, helm = fresh_control_plane, Helm(fresh_control_plane, programs["helm"])
    admin = Client.load(kubeconfig=str(plane.kubeconfig))
    theirs = of_another("gpu-provisioner/crds/karpenter.sh_nodeclaims.yaml")
    theirs["spec"]["versions"][0]["name"] = served
    uid = admin.create(CRD, theirs)["metadata"]["uid"]
    arguments = ("gpu-provisioner", str(CHARTS / "gpu-provisioner"), "-n", "gpu-provisioner", "--create-namespace")
    said = helm("install", *arguments, "--set", "nodeAPI=NodeClaim", check=False)
    assert words in said
    assert ("STATUS: deployed" in said) is (words == "")
    found = admin.get(CRD, "nodeclaims.karpenter.sh")
    assert found["metadata"]["uid"] == uid
    assert "labels" not in found["metadata"]


def of_another(path: str) -> Obj:
    """The same CRD as somebody else's chart would bring it."""
    loaded: Obj = copy.deepcopy(yaml.safe_load((CHARTS / path).read_text()))
    del loaded["metadata"]["labels"]
    return loaded
