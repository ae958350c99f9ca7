"""The AKS emulator of a local cluster: how it is configured, started and reached.

It runs on this machine, beside the cluster and not in it, because it boots the cluster's nodes; it listens on this
machine's end of the cluster's link, where Pods reach it.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from kaito_local.cluster.charts import Cloud
from kaito_local.errors import MissingPrerequisite, StartError, UsageError
from kaito_local.machine.pki import write_private
from kaito_local.machine.ports import is_free
from kaito_local.machine.processes import last_lines
from kaito_local.machine.supervisor import Program
from kaito_local.nodes.node import NodeSource

_PORT = 8443
_READY_WITHIN = 60.0
_IDENTITY = {
    "tenant": "00000000-0000-0000-0000-000000000002",
    "client": "00000000-0000-0000-0000-000000000003",
    "subject": "system:serviceaccount:gpu-provisioner:gpu-provisioner",
}
_SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
_NAME = "kaito"
_LOCATION = "eastus"
# Long enough to be seen, short enough to be waited for; a real GPU pool takes 5 to 11 minutes.
_DURATIONS = {
    "create_cpu": 1.5,
    "create_gpu": 2.0,
    "update": 1.0,
    "delete": 1.0,
    "abort": 0.5,
    "upgrade": 9.0,
    "start": 2.0,
    "stop": 1.0,
    "node_lead": 1.0,
    "gpu_delay": 1.0,
}


def system_machine(pool: str) -> str:
    """The providerID of the machine of a system pool, which lies where the emulated cluster's machines lie."""
    group = f"mc_{_NAME}_{_NAME}_{_LOCATION}"
    return (
        f"azure:///subscriptions/{_SUBSCRIPTION}/resourceGroups/{group}/providers/Microsoft.Compute"
        f"/virtualMachineScaleSets/aks-{pool}-00000000-vmss/virtualMachines/0"
    )


@dataclass(frozen=True, slots=True)
class CloudEmulator:
    """The emulated cloud of the cluster in ``directory``; ``address`` is this machine as Pods see it."""

    directory: Path
    address: str

    @property
    def endpoint(self) -> str:
        """Where ARM answers."""
        return f"https://{self.address}:{_PORT}"

    @property
    def folder(self) -> Path:
        """Its keys, state and configuration."""
        return self.directory / "aks"

    @property
    def log(self) -> Path:
        """What it writes on stderr."""
        return self.directory / "log" / "aks.log"

    def program(self, source: NodeSource) -> Program:
        """The emulator for a keeper; writes its configuration. Its pools are nodes made from ``source``."""
        document = {
            "directory": str(self.folder),
            "address": self.address,
            "port": _PORT,
            "subscription": _SUBSCRIPTION,
            "resource_group": _NAME,
            "cluster": _NAME,
            "location": _LOCATION,
            "identity": _IDENTITY,
            "durations": _DURATIONS,
            "machines": "nodes",
            "kubeconfig": str(self.directory / "kubeconfig"),
            "nodes": _node_source(self.directory, source),
        }
        write_private(self._config, yaml.safe_dump(document, sort_keys=False).encode())
        command = (sys.executable, "-m", "kaito_local.aks", "--config", str(self._config))
        return Program(name="aks-emulator", command=command, log=str(self.log))

    def require_port(self) -> None:
        """Raises MissingPrerequisite when a server of this machine, such as one on all of its addresses, has it."""
        if not is_free(_PORT, address=self.address):
            raise MissingPrerequisite(
                f"the emulated cloud needs port {_PORT} of {self.address}, on which another program of this machine "
                f"listens; end that one (ss -ltnp 'sport = :{_PORT}' names it), then try again"
            )

    def settings(self) -> Cloud:
        """The cloud as the provisioner's chart wants to know it; it must have been ready once."""
        return Cloud(
            endpoint=self.endpoint,
            authority_host=f"{self.endpoint}/",
            ca=self._authority.read_text(),
            subscription_id=_SUBSCRIPTION,
            tenant_id=_IDENTITY["tenant"],
            client_id=_IDENTITY["client"],
            resource_group=_NAME,
            cluster_name=_NAME,
            location=_LOCATION,
        )

    def wait_ready(self) -> None:
        """Until it answers; StartError with the end of the log if it does not in time."""
        deadline = time.monotonic() + _READY_WITHIN
        while not self._answers():
            if time.monotonic() > deadline:
                raise StartError(
                    f"the cloud emulator does not answer after {_READY_WITHIN:.0f} s; "
                    f"{self.log} ends:\n{last_lines(self.log)}"
                )
            time.sleep(0.05)

    def control(self, method: str, path: str, body: Any = None) -> str:
        """One call of the emulator's control port; what it answers. Raises UsageError if it refuses or does not run."""
        try:
            address = urlsplit(json.loads((self.folder / "endpoints.json").read_text())["control"])
        except FileNotFoundError:
            raise UsageError("this cluster has no cloud emulator") from None
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, body=data, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            said = response.read().decode()
        except OSError as error:
            raise UsageError(f"the cloud emulator does not answer ({error}); is the cluster up?") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise UsageError(f"the cloud emulator refuses: {json.loads(said)['error']}")
        return said

    @property
    def _config(self) -> Path:
        return self.folder / "emulator.yaml"

    @property
    def _authority(self) -> Path:
        return self.folder / "pki" / "ca.crt"

    def _answers(self) -> bool:
        try:
            self.control("GET", "/healthz")
        except UsageError:
            return False
        return True


def _node_source(directory: Path, source: NodeSource) -> dict[str, Any]:
    return {
        "cluster_directory": str(directory),
        "programs": {name: str(source.programs[name]) for name in ("kubelet", "kube-proxy")},
        "mirror": source.mirror,
        "mirrored": list(source.mirrored),
        "plain_http": list(source.plain_http),
        "golden": str(source.golden) if source.golden else None,
        "sandbox_image": source.sandbox_image,
    }
