"""Agent pools and operations as values, their wire forms, and the folder that keeps them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaito_local.aks.clock import format_time
from kaito_local.aks.settings import Settings
from kaito_local.machine.pki import write_private

CREATING, UPDATING, SUCCEEDED, FAILED, CANCELED, DELETING = (
    "Creating",
    "Updating",
    "Succeeded",
    "Failed",
    "Canceled",
    "Deleting",
)
CLAIM_UID_LABEL = "kaito.sh/claim-uid"
WORKSPACE_LABEL = "kaito.sh/workspace"


@dataclass(frozen=True, slots=True)
class Pool:
    """An agent pool. ``uid`` tells apart pools that had the same name; times are seconds since 1970.

    ``machines_started``: the machines were booted once. ``machines_stopped``: they were ended, for good.
    ``error``: ``status.provisioningError`` of a failed pool.
    """

    name: str
    properties: Mapping[str, Any]
    state: str
    created: float
    operation: str = ""
    error: Mapping[str, Any] | None = None
    machines_started: bool = False
    machines_stopped: bool = False
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
            "powerState": {"code": "Running"},
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
class Operation:
    """A long-running operation on a pool. ``due``: when it ends; ``ended`` once it did.

    ``failure``: the error with which it will fail; ``canceled``: whether it will then be Canceled instead of Failed.
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
