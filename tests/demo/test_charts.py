"""What helm runs in the cluster besides the controllers: the Jobs around an upgrade, a test and an uninstallation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from tests.demo.local_cluster import ROOT, TEMPLATE, Cluster
from tests.eventually import eventually

pytestmark = pytest.mark.nodes

CHART = str(ROOT / "charts" / "kaito")


def test_helm_test_finds_everything_that_a_workspace_needs(cluster: Cluster) -> None:
    said = cluster.run("helm", "test", "kaito", "--namespace", "kaito-workspace")
    assert "Phase:          Succeeded" in said


# The hook itself is tried in tests/cluster/admission, and a whole upgrade in tests/cluster/charts.
@pytest.mark.soak
def test_an_upgrade_brings_a_field_of_the_crd_back(cluster: Cluster) -> None:
    column = [{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/0"}]
    crd = "workspaces.kaito.sh"
    wanted = cluster.get("crd", crd)["spec"]["versions"][0]["additionalPrinterColumns"]
    cluster.kubectl("patch", "crd", crd, "--type=json", "-p", json.dumps(column))
    cluster.run("helm", "upgrade", "kaito", CHART, "--namespace", "kaito-workspace", "--reuse-values", "--wait")
    assert cluster.get("crd", crd)["spec"]["versions"][0]["additionalPrinterColumns"] == wanted


def test_an_uninstallation_under_a_workspace_is_refused_before_anything_is_gone(
    cluster: Cluster, workspace: Callable[..., str]
) -> None:
    name = workspace(TEMPLATE % {"name": "kept"})
    eventually(lambda: cluster.get("machines", "-l", f"kaito.sh/workspace={name}")["items"])
    for release, namespace in (("kaito", "kaito-workspace"), ("gpu-provisioner", "gpu-provisioner")):
        said = cluster.run("helm", "uninstall", release, "--namespace", namespace, check=False)
        assert f"job {release}-guard-uninstall failed" in said
        assert "is still there" in said
        [undo] = set(re.findall(rf"helm rollback {release} \d+ --namespace {namespace}", said))
        cluster.run(*undo.split())
        deployment = cluster.get("deployment", release, "-n", namespace)
        assert "deletionTimestamp" not in deployment["metadata"]
