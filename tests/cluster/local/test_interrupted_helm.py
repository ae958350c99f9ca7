"""`kaito up` after one that was killed while helm changed a release."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.eventually import PATIENCE, eventually

from kaito_local.cluster.charts import RELEASES, Charts
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.machine.folders import ROOT
from kaito_local.machine.progress import Step

INSTALL = """
import json, sys
from pathlib import Path
from kaito_local.cluster.charts import Charts
from kaito_local.machine.progress import Step
options = json.loads(sys.argv[1])
step = Step("installing", begin=0.0, clock=lambda: 0.0)
charts = Charts(
    folder=Path(options["folder"]),
    environment=options["environment"],
    helm=Path(options["helm"]),
    kubectl=Path(options["kubectl"]),
    values={"kaito": {}, "gpu-provisioner": {}},
    settings=options["settings"],
)
charts.install(work=Path(options["work"]), step=step)
"""


def test_a_release_that_a_killed_helm_left_is_installed_all_the_same(
    fresh_control_plane: ControlPlane, programs: Mapping[str, Path], tmp_path: Path
) -> None:
    plane = fresh_control_plane
    environment = {
        "KUBECONFIG": str(plane.kubeconfig),
        "HELM_CACHE_HOME": str(tmp_path / "helm"),
        "HELM_DATA_HOME": str(tmp_path / "helm"),
    }
    charts = Charts(
        folder=ROOT / "charts",
        environment=environment,
        helm=programs["helm"],
        kubectl=programs["kubectl"],
        values={chart: {} for chart in RELEASES},
        settings=_upgrading_crds(False),
    )
    step = Step("installing", begin=0.0, clock=lambda: 0.0)
    charts.install(work=tmp_path / "values", step=step)

    def statuses() -> set[tuple[str, str]]:
        found = json.loads(plane.kubectl("get", "secrets", "-A", "-l", "owner=helm", "-o", "json"))["items"]
        return {(secret["metadata"]["labels"]["name"], secret["metadata"]["labels"]["status"]) for secret in found}

    options = {
        "folder": str(charts.folder),
        "environment": environment,
        "helm": str(charts.helm),
        "kubectl": str(charts.kubectl),
        "settings": _upgrading_crds(True),
        "work": str(tmp_path / "other values"),
    }
    hanging = subprocess.Popen([sys.executable, "-c", INSTALL, json.dumps(options)], start_new_session=True)
    try:
        eventually(lambda: ("kaito", "pending-upgrade") in statuses(), every=0.1)
        upgrade = eventually(lambda: _children(hanging.pid))
    finally:
        os.kill(hanging.pid, signal.SIGKILL)
        hanging.wait(PATIENCE)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in upgrade), what="helm outlives who started it")
    assert ("kaito", "pending-upgrade") in statuses()

    charts.install(work=tmp_path / "values", step=step)
    assert {chart for chart, status in statuses() if status == "deployed"} == set(RELEASES)
    assert not [status for _, status in statuses() if status.startswith("pending")]


def _upgrading_crds(wanted: bool) -> list[str]:
    """With the hook, whose Job nobody runs here, helm waits before it upgrades."""
    return [f"{chart}.hooks.upgradeCRDs={str(wanted).lower()}" for chart in RELEASES]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
