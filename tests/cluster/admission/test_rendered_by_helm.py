"""What `helm template` renders for a namespace arrives there when kubectl applies it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.cluster.definitions import apply_definitions
from kaito_local.errors import CommandError

CHARTS = Path(__file__).parents[3] / "charts"
NAMESPACE = "models"


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
def test_everything_arrives_in_the_namespace_of_the_release(
    fresh_control_plane: ControlPlane, programs: Mapping[str, Path], chart: str
) -> None:
    plane = fresh_control_plane
    command: list[str | Path] = [programs["helm"], "template", "mine", CHARTS / chart, "-n", NAMESPACE, "--no-hooks"]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    plane.kubectl("create", "namespace", NAMESPACE)
    apply_definitions(plane.kubectl, CHARTS / chart / "crds")
    plane.kubectl("apply", "--server-side", "-f", "-", input=rendered)
    kinds = (
        "deployments,daemonsets,services,configmaps,serviceaccounts,roles,rolebindings,poddisruptionbudgets,"
        "networkpolicies"
    )
    selector = "app.kubernetes.io/instance=mine"
    arrived = plane.kubectl("get", kinds, "-n", NAMESPACE, "-l", selector, "-o", "name").split()
    everywhere = plane.kubectl("get", kinds, "-A", "-l", selector, "-o", "name").split()
    assert any(name.startswith("deployment") for name in arrived)
    assert arrived == everywhere
    # The account of the Deployment is there, with the rights of the chart.
    account = plane.kubectl("get", "deployment", "-n", NAMESPACE, "-o", "jsonpath={..serviceAccountName}")
    plane.kubectl("get", "serviceaccount", account, "-n", NAMESPACE)
    who = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    assert plane.kubectl("auth", "can-i", "list", "nodes", who).strip() == "yes"
    with pytest.raises(CommandError):
        plane.kubectl("auth", "can-i", "list", "nodes", f"--as=system:serviceaccount:default:{account}")
