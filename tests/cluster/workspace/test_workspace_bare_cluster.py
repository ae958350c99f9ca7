"""A cluster that lacks what the controller would like to find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.workspace.conftest import ROOT, submit, until, workspace
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import Client
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.cluster.definitions import apply_definitions


def test_missing_claim_crds_and_a_missing_catalog_are_conditions_not_crashes(
    fresh_control_plane: ControlPlane, tmp_path: Path
) -> None:
    plane = fresh_control_plane
    apply_definitions(plane.kubectl, ROOT / "charts/kaito/crds")
    admin = Client.load(kubeconfig=str(plane.kubeconfig))
    environment = {
        **os.environ,
        "KUBECONFIG": str(plane.kubeconfig),
        "METRICS_PORT": "0",
        "HEALTH_PROBE_PORT": "0",
        "BIND_ADDRESS": "127.0.0.1",
        "DISABLE_LEADER_ELECTION": "true",
    }
    config = tmp_path / "config.yaml"
    config.write_text("nodeAPI: Machine\n")
    command = [sys.executable, "-m", "kaito_hooks.workspace", "--config", str(config)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        ws = submit(admin, workspace("early", "default"))
        until(admin, ws, "ResourceReady", status="False", words="there is no Catalog kaito")
        catalog = """
            {"apiVersion": "kaito.sh/v1alpha1", "kind": "Catalog", "metadata": {"name": "kaito"}, "spec": {
              "cloud": "azure",
              "presets": {"phi-3-mini-4k-instruct": {"family": "phi3", "gpuCount": 1, "totalGPUMemoryGiB": 9,
                "diskGiB": 50, "readinessTimeout": "30m", "weights": {"image": {"tag": "1"}}}},
              "instanceTypes": {"Standard_NC6s_v3": {"gpuCount": 1, "totalGPUMemoryGiB": 16}}}}
        """
        plane.kubectl("apply", "-f", "-", input=catalog)
        until(admin, ws, "ResourceReady", status="False", words="this cluster serves no machines.karpenter.sh")
        plane.kubectl("apply", "--server-side", "-f", str(ROOT / "charts/gpu-provisioner/crds"))
        # The informer looks again with a back-off; the Workspace then with the next event about it.
        until(admin, ws, "MachineReady", status="Unknown", words="creating 1 machines")
        assert process.poll() is None
        admin_delete = ("delete", "workspace", "early", "--wait=false")
        plane.kubectl(*admin_delete)
        eventually(lambda: "early" not in plane.kubectl("get", "workspaces", "-o", "name"), every=0.3)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_wrong_configuration_ends_the_process_with_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("nodeApi: Machine\n")
    done = subprocess.run(
        [sys.executable, "-m", "kaito_hooks.workspace", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("configuration: nodeApi is not known; known keys are ")
    assert len(done.stderr.splitlines()) == 1
