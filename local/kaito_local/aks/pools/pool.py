"""Agent pools and operations as values, their wire forms, and the folder that keeps them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from kaito_local.aks.clock import format_time
from kaito_local.aks.settings import Settings
from kaito_local.machine.pki import write_private

CREATING, UPDATING, UPGRADING, STARTING, STOPPING, DELETING = (
    "Creating",
    "Updating",
    "UpgradingNodeImageVersion",
    "Starting",
    "Stopping",
    "Deleting",
)
BUSY = (CREATING, UPDATING, UPGRADING, STARTING, STOPPING, DELETING)
SUCCEEDED, FAILED, CANCELED = "Succeeded", "Failed", "Canceled"
RUNNING, STOPPED = "Running", "Stopped"
CLAIM_UID_LABEL = "kaito.sh/claim-uid"
WORKSPACE_LABEL = "kaito.sh/workspace"
_FIRST_IMAGE = date(2026, 1, 5)


@dataclass(frozen=True, slots=True)
class Pool:
    """An agent pool. ``uid`` tells apart pools that had the same name; times are seconds since 1970.

    ``machines_started``: the machines were booted once. ``machines_stopped``: they were ended, for good.
    ``error``: ``status.provisioningError`` of a failed pool. ``power``: Running or Stopped. ``image``: how many weekly
    node images newer than the first one its machines are.

    The machines of its scale set are numbered: ``first`` and those after it are the pool's own, then come the
    ``surges`` that stood in for them during upgrades. No number is given twice.
    """

    name: str
    properties: Mapping[str, Any]
    state: str
    created: float
    operation: str = ""
    error: Mapping[str, Any] | None = None
    machines_started: bool = False
    machines_stopped: bool = False
    power: str = RUNNING
    image: int = 0
    first: int = 0
    surges: int = 0
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    etag: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def size(self) -> str:
        """The size of its machines."""
        return str(self.properties["vmSize"])

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels of its Nodes."""
        return self.properties.get("nodeLabels") or {}

    @property
    def count(self) -> int:
        """How many machines it is to have."""
        return int(self.properties.get("count", 1))

    @property
    def members(self) -> range:
        """The numbers of its own machines."""
        return range(self.first, self.first + self.count)

    @property
    def surge(self) -> int:
        """The number of the machine that stands in for others during the upgrade that began last."""
        return self.first + self.count + self.surges - 1

    @property
    def image_version(self) -> str:
        """AKS brings out one node image a week and names it after its day."""
        day = _FIRST_IMAGE + timedelta(weeks=self.image)
        return f"AKSUbuntu-2204gen2containerd-{day:%Y%m.%d}.0"

    def changed(self, **fields: Any) -> Pool:
        """Another state of the same pool, with an ETag of its own."""
        return dataclasses.replace(self, etag=str(uuid.uuid4()), **fields)

    def body(self, settings: Settings) -> dict[str, Any]:
        """The pool as ARM shows it; AKS writes ``resourcegroups`` in these ids."""
        properties = {
            "osDiskSizeGB": 128,
            "osDiskType": "Managed",
            "kubeletDiskType": "OS",
            "maxPods": 110,
            "enableAutoScaling": False,
            "scaleDownMode": "Delete",
            "orchestratorVersion": settings.kubernetes_version,
            "currentOrchestratorVersion": settings.kubernetes_version,
            "enableNodePublicIP": False,
            "mode": "User",
            "osType": "Linux",
            "osSKU": "Ubuntu",
            "type": "VirtualMachineScaleSets",
            "count": 1,
            **self.properties,
            "provisioningState": self.state,
            "powerState": {"code": self.power},
            "nodeImageVersion": self.image_version,
            "eTag": self.etag,
        }
        if self.error:
            properties["status"] = {"provisioningError": dict(self.error)}
        return {
            "id": f"{settings.cluster_path.replace('/resourceGroups/', '/resourcegroups/')}/agentPools/{self.name}",
            "name": self.name,
            "type": "Microsoft.ContainerService/managedClusters/agentPools",
            "properties": properties,
        }

    def node_name(self, settings: Settings, index: int = 0) -> str:
        """``aks-<pool>-<8 digits>-vmss00000i``; the digits belong to the cluster."""
        return f"{self._scale_set(settings)}{_base36(index)}"

    def provider_id(self, settings: Settings, index: int = 0) -> str:
        """The machine's id as the cloud's node manager writes it into the Node."""
        group = settings.node_resource_group.lower()
        return (
            f"azure:///subscriptions/{settings.subscription}/resourceGroups/{group}/providers/Microsoft.Compute"
            f"/virtualMachineScaleSets/{self._scale_set(settings)}/virtualMachines/{index}"
        )

    def _scale_set(self, settings: Settings) -> str:
        digest = hashlib.sha256(settings.cluster_path.lower().encode()).digest()
        digits = int.from_bytes(digest[:8], "big") % 10**8
        return f"aks-{self.name}-{digits:08d}-vmss"


@dataclass(frozen=True, slots=True)
class Failure:
    """How an accepted operation ends: with ``error`` (code, message, details; may be empty), as Failed or Canceled."""

    error: Mapping[str, Any]
    canceled: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """A long-running operation on a pool. ``due``: when it ends; ``ended`` once it did.

    ``failure``: the error with which it will fail; ``canceled``: whether it will then be Canceled instead of Failed.
    ``stage``: how many of its stages (`stages.py`) are done. ``removed_labels``: what an update takes off the Nodes.
    """

    id: str
    kind: str
    pool: str
    pool_uid: str
    started: float
    due: float
    status: str = "InProgress"
    ended: float | None = None
    failure: Mapping[str, Any] | None = None
    canceled: bool = False
    stage: int = 0
    removed_labels: Sequence[str] = ()

    def body(self) -> dict[str, Any]:
        """The operation as a poller reads it."""
        body: dict[str, Any] = {"name": self.id, "status": self.status, "startTime": format_time(self.started)}
        if self.ended is not None:
            body["endTime"] = format_time(self.ended)
        if self.status in (FAILED, CANCELED):
            body["error"] = dict(
                self.failure or {"code": "OperationCanceled", "message": "The operation was canceled."}
            )
        return body


class Store:
    """One file per pool and operation, replaced in one step: a killed process loses nothing that it answered for."""

    def __init__(self, folder: Path) -> None:
        self._pools = folder / "pools"
        self._operations = folder / "operations"
        for part in (self._pools, self._operations):
            part.mkdir(parents=True, exist_ok=True)

    def pools(self) -> list[Pool]:
        """The pools, oldest first."""
        found = [Pool(**json.loads(file.read_text())) for file in self._pools.glob("*.json")]
        return sorted(found, key=lambda pool: (pool.created, pool.name))

    def operations(self) -> list[Operation]:
        """Every operation that ever was."""
        return [Operation(**json.loads(file.read_text())) for file in self._operations.glob("*.json")]

    def save_pool(self, pool: Pool) -> None:
        """Keeps this state of a pool."""
        self._write(self._pools / f"{pool.name}.json", dataclasses.asdict(pool))

    def forget_pool(self, name: str) -> None:
        """The pool is gone."""
        (self._pools / f"{name}.json").unlink(missing_ok=True)

    def save_operation(self, operation: Operation) -> None:
        """Keeps this state of an operation."""
        self._write(self._operations / f"{operation.id}.json", dataclasses.asdict(operation))

    @staticmethod
    def _write(file: Path, value: Mapping[str, Any]) -> None:
        write_private(file, json.dumps(value).encode(), mode=0o644)


def _base36(index: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    for _ in range(6):
        index, rest = divmod(index, 36)
        text = digits[rest] + text
    return text
