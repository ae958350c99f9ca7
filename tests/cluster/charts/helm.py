"""The real helm on a control plane."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kaito_local.cluster.controlplane import ControlPlane


class Helm:
    """Runs helm on a control plane and returns what it prints; without ``check`` also what it prints on stderr.

    ``timeout``: the seconds that one command may take.
    """

    def __init__(self, plane: ControlPlane, program: Path, *, timeout: float = 240.0) -> None:
        home = plane.directory / "helm"
        self._program, self._timeout = program, timeout
        self._environment = os.environ | {
            "KUBECONFIG": str(plane.kubeconfig),
            "HELM_CACHE_HOME": str(home),
            "HELM_DATA_HOME": str(home),
        }

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [str(self._program), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=self._timeout,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + ("" if check else done.stderr)
