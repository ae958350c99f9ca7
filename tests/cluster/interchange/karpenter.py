"""A real Karpenter that is not ours: its core with the provider of fake Nodes, and kwok, which makes them Ready.

CRDs and kwok's Stages come from the pinned modules themselves. GPUs appear as under a device plugin: some time after
the Node, and only where it is labelled for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.eventually import eventually

from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.cluster.definitions import apply_definitions
from kaito_local.machine.ports import free_ports
from kaito_local.machine.processes import Child, last_lines

ROOT = Path(__file__).parents[3]
INSTANCE_TYPES = ("Standard_NC6s_v3",)
NODE_CLASS = {
    "apiVersion": "karpenter.kwok.sh/v1alpha1",
    "kind": "KWOKNodeClass",
    "metadata": {"name": "default"},
    "spec": {"nodeRegistrationDelay": "0s"},
}
_STAGES = ("node/fast", "node/heartbeat-with-lease", "pod/fast")
_GPU_STAGE = """
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata:
  name: node-gpus
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchLabels: {accelerator: nvidia}
    matchExpressions:
    - {key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: In, values: ["True"]}
    - {key: '.status.capacity["nvidia.com/gpu"]', operator: DoesNotExist}
  # Several Stages may fit a Node, and kwok draws one: the heartbeat, 600 s later, must not win.
  weight: 1000
  next:
    statusTemplate: |
      capacity: {"nvidia.com/gpu": "1"}
      allocatable: {"nvidia.com/gpu": "1"}
"""


class Karpenter:
    """The two processes; ``close`` (or the ``with`` block) ends them. They die with this process, too."""

    def __init__(self, plane: ControlPlane, *, programs: Mapping[str, Path], folder: Path) -> None:
        self._plane, self._folder = plane, folder
        metrics, self._health = free_ports(2)
        self._karpenter = Child(
            "karpenter",
            [programs["karpenter-kwok"]],
            log=folder / "karpenter.log",
            environment={
                **os.environ,
                "KUBECONFIG": str(plane.kubeconfig),
                "DISABLE_LEADER_ELECTION": "true",
                "METRICS_PORT": str(metrics),
                "HEALTH_PROBE_PORT": str(self._health),
                "INSTANCE_TYPES_FILE_PATH": str(self._catalogue()),
            },
        )
        self._kwok = Child(
            "kwok",
            [
                programs["kwok"],
                f"--kubeconfig={plane.kubeconfig}",
                *(f"--config={stage}" for stage in self._stages()),
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                "--node-lease-duration-seconds=40",
            ],
            log=folder / "kwok.log",
        )

    def __enter__(self) -> Karpenter:
        crds = module("karpenter", "sigs.k8s.io/karpenter")
        apply_definitions(self._plane.kubectl, crds / "pkg/apis/crds", crds / "kwok/apis/crds")
        try:
            self._karpenter.start()
            self._kwok.start()
            eventually(self._ready, every=0.1, what=f"Karpenter is not ready:\n{self.told()}")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for child in (self._karpenter, self._kwok):
            child.stop(grace=0)

    def told(self) -> str:
        """The end of both logs."""
        return "\n".join(last_lines(child.log) for child in (self._karpenter, self._kwok))

    def _ready(self) -> bool:
        for child in (self._karpenter, self._kwok):
            child.check()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def _catalogue(self) -> Path:
        """What the fake cloud sells; no GPUs in it, they come later."""
        path = self._folder / "instance-types.json"
        path.write_text(json.dumps([_instance_type(name) for name in INSTANCE_TYPES]))
        return path

    def _stages(self) -> list[Path]:
        stages = module("kwok", "sigs.k8s.io/kwok") / "kustomize" / "stage"
        found = [path for stage in _STAGES for path in sorted((stages / stage).glob("*.yaml"))]
        own = self._folder / "gpu-stage.yaml"
        own.write_text(_GPU_STAGE)
        return [*(path for path in found if yaml.safe_load(path.read_text())["kind"] == "Stage"), own]


def _instance_type(name: str) -> dict[str, Any]:
    offering = {"karpenter.sh/capacity-type": "on-demand", "topology.kubernetes.io/zone": "eastus-1"}
    return {
        "name": name,
        "architecture": "amd64",
        "operatingSystems": ["linux"],
        "resources": {"cpu": "6", "memory": "112Gi", "ephemeral-storage": "1024Gi", "pods": "110"},
        "offerings": [
            {
                "Price": 3,
                "Requirements": [{"key": k, "operator": "In", "values": [v]} for k, v in offering.items()],
            }
        ],
    }


def module(tool: str, path: str) -> Path:
    """The source of a module that ``tools/<tool>`` pins, in Go's module cache; downloaded if it is not there."""
    done = subprocess.run(
        ["go", "mod", "download", "-json", path],
        cwd=ROOT / "tools" / tool,
        env={**os.environ, "GOFLAGS": "-mod=readonly"},
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(json.loads(done.stdout)["Dir"])
