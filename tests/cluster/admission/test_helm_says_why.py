"""A hook that stops helm: its sentence is read where helm was called, not only in the log of a Pod."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cluster.charts.hook_node import HookNode

from kaito_hooks.runtime import Client, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane

WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
MACHINE = Resource("karpenter.sh", "v1alpha5", "machines", "Machine", False)
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment", True)


@pytest.fixture
def node(installed: ControlPlane, admin: Client, tmp_path: Path) -> Iterator[HookNode]:
    with HookNode(installed, admin, tmp_path) as found:
        yield found


@pytest.fixture
def workspace(admin: Client) -> Iterator[None]:
    spec = {"instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"a": "b"}}}
    obj: Obj = {"metadata": {"name": "guarded"}, "resource": spec, "inference": {"preset": {"name": "phi-2"}}}
    admin.create(WORKSPACE, obj, namespace="default")
    yield
    admin.delete(WORKSPACE, "guarded", namespace="default")


@pytest.fixture
def claim(admin: Client) -> Iterator[None]:
    admin.create(MACHINE, {"metadata": {"name": "ws1", "labels": {"kaito.sh/workspace": "a"}}})
    yield
    admin.delete(MACHINE, "ws1")


@pytest.mark.parametrize(
    ("release", "namespace", "left", "words"),
    [
        ("kaito", "kaito-workspace", "workspace", "1 Workspace (default/guarded) is still there"),
        ("gpu-provisioner", "gpu-provisioner", "claim", "1 Machine (ws1) is still there"),
    ],
)
def test_helm_says_why_an_uninstallation_is_refused(
    admin: Client,
    helm: Callable[..., str],
    node: HookNode,
    request: pytest.FixtureRequest,
    release: str,
    namespace: str,
    left: str,
    words: str,
) -> None:
    request.getfixturevalue(left)
    said = helm("uninstall", release, "--namespace", namespace, check=False)
    assert f"job {release}-guard-uninstall failed" in said
    assert words in said
    assert "deletionTimestamp" not in admin.get(DEPLOYMENT, release, namespace=namespace)["metadata"]
    # helm counts the release as being uninstalled; the sentence says how it comes back.
    [way_back] = re.findall(r"helm (rollback .*) makes it whole", said)
    helm(*way_back.split())
    assert "STATUS: deployed" in helm("status", release, "--namespace", namespace)


def test_helm_test_is_one_test_that_prints_what_it_has_found(helm: Callable[..., str], node: HookNode) -> None:
    said = helm("test", "kaito", "--namespace", "kaito-workspace", check=False)
    assert said.count("TEST SUITE:") == 1
    assert "Phase:          Succeeded" in said
    assert "kind Workspace: there\n" in said
    assert "ValidatingAdmissionPolicy workspaces.kaito.sh: there\n" in said
