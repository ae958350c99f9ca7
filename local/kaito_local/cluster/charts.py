"""Both charts on a local cluster, installed by helm with the complete list of what local mode changes.

A user's own values come on top. They are written as for an umbrella chart: the first key, or the first part of a
``--set`` path, is the chart's name (``kaito.workers=8``, ``gpu-provisioner.provisioner.nodeRepairTimeout=15s``).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kaito_local.cluster.definitions import apply_definitions
from kaito_local.errors import CommandError, StartError, UsageError
from kaito_local.machine.processes import ending_with_this
from kaito_local.machine.progress import Step

RELEASES = {"kaito": "kaito-workspace", "gpu-provisioner": "gpu-provisioner"}
_READY_WITHIN = 180
_LOOK_EVERY = 0.5
_POLICY = "catalog.workspaces.kaito.sh"
_BY_A_POLICY = "ValidatingAdmissionPolicy"
_NOT_YET = "failed to configure policy"


@dataclass(frozen=True, slots=True)
class Cloud:
    """The emulated cloud as the provisioner's settings name it; ``ca`` is PEM text."""

    endpoint: str
    authority_host: str
    ca: str
    subscription_id: str
    tenant_id: str
    client_id: str
    resource_group: str
    cluster_name: str
    location: str


def local_values(
    *, cloud: Cloud, mirrors: Mapping[str, str], plain_http: Sequence[str], network: str
) -> dict[str, Any]:
    """Values by chart. ``network``: CIDR in which this machine and the registry are, as Pods see them.

    All that a cluster without internet, GPUs and Azure must change of the charts' defaults: images come from its
    registry, which has no TLS; models run on CPUs; a training's data may come from this machine; the nodes bring a
    device plugin of their own; the cloud is the emulated one. Waiting is shorter, too, as somebody watches.
    """
    return {
        "kaito": {
            "registries": {"mirrors": dict(mirrors), "plainHTTP": list(plain_http)},
            "serving": {"variant": "cpu"},
            "tuning": {"download": {"allowedPrivateCIDRs": [network]}},
            "nvidiaDevicePlugin": {"enabled": False},
            "timeouts": {"buyBackoffMin": "2s", "buyBackoffMax": "30s"},
        },
        "gpu-provisioner": {
            "settings": {
                "azure": {
                    "clusterName": cloud.cluster_name,
                    "subscriptionId": cloud.subscription_id,
                    "resourceGroup": cloud.resource_group,
                    "location": cloud.location,
                }
            },
            "azure": {
                "armEndpoint": cloud.endpoint,
                "tokenScope": f"{cloud.endpoint}/.default",
                "authorityHost": cloud.authority_host,
                "caBundle": cloud.ca,
            },
            "workloadIdentity": {"clientId": cloud.client_id, "tenantId": cloud.tenant_id},
            "provisioner": {"nodeRepairTimeout": "60s", "poolPollInterval": "1s", "gcInterval": "30s"},
        },
    }


def user_values(
    files: Sequence[Path], settings: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
    """``--values`` and ``--set`` by chart; raises UsageError for a bad file or a key that is no chart's name."""
    values: dict[str, list[dict[str, Any]]] = {chart: [] for chart in RELEASES}
    sets: dict[str, list[str]] = {chart: [] for chart in RELEASES}
    names = " or ".join(RELEASES)
    for file in files:
        try:
            content = yaml.safe_load(file.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"--values {file}: {error}") from error
        if not isinstance(content, dict) or not set(content) <= set(RELEASES):
            raise UsageError(f"--values {file}: the top-level keys must be the charts' names, {names}")
        for chart, part in content.items():
            values[chart].append(part or {})
    for setting in settings:
        chart, _, rest = setting.partition(".")
        if chart not in RELEASES or "=" not in rest:
            raise UsageError(f"--set {setting}: write CHART.PATH=VALUE with the chart {names}")
        sets[chart].append(rest)
    return values, sets


@dataclass(frozen=True, slots=True)
class Charts:
    """The charts in ``folder``; ``environment`` is what kubectl and helm need to know of the cluster."""

    folder: Path
    environment: Mapping[str, str]
    helm: Path
    kubectl: Path
    values: Mapping[str, Any]
    files: Sequence[Path] = ()
    settings: Sequence[str] = ()

    def digest(self) -> str:
        """Changes when a chart, a value or an option does."""
        hashing = hashlib.sha256(json.dumps([self.values, list(self.settings)], sort_keys=True).encode())
        for file in (*self.files, *sorted(path for path in _walk(self.folder))):
            hashing.update(file.read_bytes())
        return hashing.hexdigest()[:16]

    def install(self, *, work: Path, step: Step) -> None:
        """Installs or upgrades both; does not wait for the controllers. Raises CommandError with helm's words."""
        values, sets = user_values(self.files, self.settings)
        work.mkdir(parents=True, exist_ok=True)
        for done, (chart, namespace) in enumerate(RELEASES.items()):
            step.at(done, of=len(RELEASES), unit="charts", detail=chart, even=False)
            layers = []
            for index, content in enumerate([self.values[chart], *values[chart]]):
                file = work / f"{chart}-{index}.yaml"
                file.write_text(yaml.safe_dump(content))
                layers.append(f"--values={file}")
            layers += [f"--set={setting}" for setting in sets[chart]]
            # CRDs come with the chart at its first installation only; a cluster that is upgraded in place gets them
            # here.
            apply_definitions(self._kubectl, self.folder / chart / "crds", force=True)
            self._forget_pending(chart, namespace)
            self._helm(
                "upgrade",
                "--install",
                chart,
                str(self.folder / chart),
                f"--namespace={namespace}",
                "--create-namespace",
                *layers,
            )

    def _forget_pending(self, chart: str, namespace: str) -> None:
        """Removes what helm remembers of an operation that it was killed in, and that would hold up all others.

        Helm itself ends with the command that runs it. Objects that it made already are taken over by the next one.
        """
        selector = f"owner=helm,name={chart},status in (pending-install,pending-upgrade,pending-rollback)"
        self._kubectl("delete", "secrets", "-n", namespace, "-l", selector, "--ignore-not-found")

    def wait_ready(self) -> None:
        """Waits until the controllers of both charts run and lead, and Workspaces are admitted.

        Raises StartError with what is wrong.
        """
        for chart, namespace in RELEASES.items():
            try:
                self._kubectl("rollout", "status", "deployment", "-n", namespace, f"--timeout={_READY_WITHIN}s")
            except CommandError as error:
                pods = self._kubectl("get", "pods,events", "-n", namespace)
                raise StartError(f"the controllers of the chart {chart} are not ready: {error}\n{pods}") from error
        deadline = time.monotonic() + _READY_WITHIN
        for chart, namespace in RELEASES.items():
            while not self._leads(namespace):
                if time.monotonic() > deadline:
                    raise StartError(f"no controller of the chart {chart} leads after {_READY_WITHIN} s")
                time.sleep(_LOOK_EVERY)
        self._wait_admitted(deadline)

    def _leads(self, namespace: str) -> bool:
        """Whether a Pod that runs holds the lease, or none is to run; a holder's name begins with its Pod's."""
        deployments = json.loads(self._kubectl("get", "deployments", "-n", namespace, "-o", "json"))["items"]
        if not any(deployment["spec"].get("replicas", 1) for deployment in deployments):
            return True
        leases = json.loads(self._kubectl("get", "leases", "-n", namespace, "-o", "json"))["items"]
        pods = json.loads(self._kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
        running = {pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") == "Running"}
        holders = {str(lease["spec"].get("holderIdentity") or "").partition("_")[0] for lease in leases}
        return bool(holders & running)

    def _wait_admitted(self, deadline: float) -> None:
        """Until a Workspace is admitted, and one with a preset that does not exist is not.

        For up to 30 s an API server does not know the kind that a policy takes as its parameter, and admits without it.
        """
        example = self.folder.parent / "examples" / "inference" / "phi-3-mini.yaml"
        good = example.read_text()
        document = yaml.safe_load(good)
        document["inference"]["preset"]["name"] = "no-such-preset"
        while refusal := self._refusal(good):
            # The policies' own answer, whatever the user's values made of it.
            if _BY_A_POLICY in refusal and _NOT_YET not in refusal:
                break
            self._look_again(deadline, f"Workspaces are not admitted: {refusal}")
        while self._asks_the_catalog() and not self._refusal(yaml.safe_dump(document)):
            self._look_again(deadline, f"the policy {_POLICY} does not ask the Catalog")

    def _asks_the_catalog(self) -> bool:
        """Whether the values leave the policies on."""
        return bool(self._kubectl("get", "validatingadmissionpolicybinding", _POLICY, "--ignore-not-found", "-o=name"))

    def _refusal(self, manifest: str) -> str:
        """Why that Workspace would not be created; "" if it would."""
        try:
            self._kubectl("create", "--dry-run=server", "-f", "-", input=manifest)
        except CommandError as error:
            return str(error)
        return ""

    @staticmethod
    def _look_again(deadline: float, finding: str) -> None:
        if time.monotonic() > deadline:
            raise StartError(f"after {_READY_WITHIN} s {finding}")
        time.sleep(_LOOK_EVERY)

    def installed(self) -> bool:
        """Whether both releases' Deployments exist and are ready at the moment."""
        for namespace in RELEASES.values():
            found = json.loads(self._kubectl("get", "deployments", "-n", namespace, "-o", "json"))["items"]
            if not found:
                return False
            for deployment in found:
                if deployment.get("status", {}).get("readyReplicas", 0) < deployment["spec"]["replicas"]:
                    return False
        return True

    def _helm(self, *arguments: str) -> None:
        self._run(self.helm, *arguments)

    def _kubectl(self, *arguments: str, input: str = "") -> str:
        return self._run(self.kubectl, *arguments, input=input)

    def _run(self, program: Path, *arguments: str, input: str = "") -> str:
        done = subprocess.run(
            ending_with_this([program, *arguments]),
            env=os.environ | dict(self.environment),
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise CommandError(f"{program.name} {' '.join(arguments[:4])} failed: {done.stderr.strip()}")
        return done.stdout


def _walk(folder: Path) -> list[Path]:
    return [
        Path(parent) / name
        for chart in RELEASES
        for parent, _, names in os.walk(folder / chart, followlinks=True)
        for name in names
    ]
