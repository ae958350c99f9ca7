"""Two releases of the charts and of the Workspace controller: the last one, and this clone as the next."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from tests.cluster import leases
from tests.eventually import PATIENCE

from kaito_hooks.runtime import Client, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane

ROOT = Path(__file__).parents[3]
BEFORE = Path(__file__).parent / "release-0.1.0"
CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap", True)
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment", True)
NAMESPACE = "kaito-workspace"
CHARTS = {"kaito": NAMESPACE, "gpu-provisioner": "gpu-provisioner"}
"""Each chart, which is also its release, with its namespace."""


@dataclass(frozen=True, slots=True)
class Release:
    """A version: its packaged charts by name, and the folder that holds its package kaito_hooks."""

    version: str
    charts: Mapping[str, Path]
    sources: Path

    @classmethod
    def before(cls, folder: Path) -> Release:
        """The last one, unpacked in ``folder``."""
        with tarfile.open(BEFORE / "hooks.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        return cls("0.1.0", {chart: BEFORE / f"{chart}-0.1.0.tgz" for chart in CHARTS}, folder / "hooks")

    @classmethod
    def next(cls, folder: Path, helm: Path) -> Release:
        """This clone, packaged as 9.0.0 into ``folder``: every image has another tag."""
        for chart in CHARTS:
            command: list[str | Path] = [helm, "package", ROOT / "charts" / chart, "--destination", folder]
            command += ["--version", "9.0.0", "--app-version", "9.0.0"]
            subprocess.run(command, check=True, capture_output=True)
        return cls("9.0.0", {chart: folder / f"{chart}-9.0.0.tgz" for chart in CHARTS}, ROOT / "hooks")


class Controller:
    """The Workspace controller of a release as a process, with what helm has installed: its configuration, its
    environment and the rights of its service account.
    """

    def __init__(self, plane: ControlPlane, admin: Client, folder: Path) -> None:
        self._plane, self._admin, self._folder = plane, admin, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self, release: Release) -> None:
        """Ends the one that runs, and starts that of ``release``."""
        self.stop()
        config: Obj = self._admin.get(CONFIG_MAP, "kaito-config", namespace=NAMESPACE)
        (self._folder / "config.yaml").write_text(config["data"]["config.yaml"])
        pod: Obj = self._admin.get(DEPLOYMENT, "kaito", namespace=NAMESPACE)["spec"]["template"]["spec"]
        assert pod["containers"][0]["image"].endswith(f":{release.version}")
        kubeconfig = self._plane.client_kubeconfig(
            self._folder / "controller",
            user=f"system:serviceaccount:{NAMESPACE}:{pod['serviceAccountName']}",
            groups=("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"),
        )
        environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"] if "value" in entry}
        environment |= leases.LONG | {"METRICS_PORT": "0", "HEALTH_PROBE_PORT": "0", "BIND_ADDRESS": "127.0.0.1"}
        environment |= {"POD_NAME": f"kaito-{release.version}", "PYTHONPATH": str(release.sources)}
        command: list[Any] = [sys.executable, "-m", "kaito_hooks.workspace", "--kubeconfig", kubeconfig]
        self._log = (self._folder / "controller.log").open("ab")
        self._process = subprocess.Popen(
            [*command, "--config", self._folder / "config.yaml"],
            env=os.environ | environment,
            cwd=self._folder,
            stderr=self._log,
        )

    def log(self) -> str:
        """The end of what all of them have said."""
        return (self._folder / "controller.log").read_text()[-3000:]

    def stop(self) -> None:
        """As a Pod is stopped; it gives its lease back."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None
        if self._log is not None:
            self._log.close()


def crds() -> dict[str, Obj]:
    """The CRDs of this clone's charts, by name."""
    files = [path for chart in CHARTS for path in (ROOT / "charts" / chart / "crds").glob("*.yaml")]
    loaded = [yaml.safe_load(path.read_text()) for path in files]
    return {crd["metadata"]["name"]: crd for crd in loaded}
