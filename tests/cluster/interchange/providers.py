"""Who may answer a Workspace's claims: our provisioner with an emulated AKS, for either kind, or a real Karpenter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.cluster.interchange.karpenter import NODE_CLASS, Karpenter
from tests.cluster.provisioner.conftest import Provisioners, emulated
from tests.cluster.workspace.stand_ins.following import Later
from tests.cluster.workspace.stand_ins.kubelet import Kubelet

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.runtime import Client, Resource
from kaito_hooks.workspace.resources import NODE
from kaito_local.aks import Durations, Emulator, ready_made
from kaito_local.cluster.controlplane import ControlPlane

KWOK_NODE_CLASS = Resource("karpenter.kwok.sh", "v1alpha1", "kwoknodeclasses", "KWOKNodeClass", False)
BRISK = Durations(create_cpu=0.4, create_gpu=0.4, update=0.2, delete=0.3, abort=0.1, node_ready=0.1, gpu_delay=0.3)


class Provider(Protocol):
    """A provisioner that runs, and the cloud behind it.

    ``values``: what the chart kaito is told to work with it. ``refusal``: words of the cause that a user must find
    while the cloud sells nothing.
    """

    kind: NodeAPI
    values: Mapping[str, Any]
    refusal: str

    def refuse(self) -> None:
        """Sell nothing from here on."""

    def relent(self) -> None:
        """Sell again."""

    def billed(self) -> list[str]:
        """Machines that the cloud still has."""


class GpuProvisioner:
    """Ours. It deletes a claim that cannot be had, as a Karpenter does, so that it meets the same expectations."""

    _FAULT = "size-not-allowed"

    def __init__(self, kind: NodeAPI, cloud: Emulator) -> None:
        self.kind: NodeAPI = kind
        self.values: Mapping[str, Any] = {"nodeAPI": kind}
        self.refusal = f"{ready_made()[self._FAULT]['reason']}: "
        self._cloud = cloud

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, kind: NodeAPI, *, plane: ControlPlane, provisioners: Provisioners, folder: Path, admin: Client
    ) -> Iterator[GpuProvisioner]:
        """With bare Nodes, on which a stand-in for the kubelet runs Pods."""
        with (
            contextlib.contextmanager(emulated)(plane, folder, admin, durations=BRISK) as cloud,
            Later() as later,
            Kubelet(admin, later),
        ):
            provisioners.start(cloud, nodeAPI=kind, deleteOnInsufficientCapacity=True)
            try:
                yield cls(kind, cloud)
            finally:
                provisioners.close()
                # Shown by pytest with a test that failed.
                print(provisioners.running[0].logged()[-6000:])

    def refuse(self) -> None:
        self._cloud.fault(self._FAULT, times=None)

    def relent(self) -> None:
        self._cloud.faults.remove()

    def billed(self) -> list[str]:
        return [pool.name for pool in self._cloud.agent_pools()]


class KarpenterProvider:
    """Not ours. Its fake cloud sells as long as the node class is there; its machines are its Nodes."""

    kind: NodeAPI = "NodeClaim"
    values: Mapping[str, Any] = {
        "nodeAPI": "NodeClaim",
        "nodeClaim": {
            "nodeClassRef": {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"},
            "diskRequestKey": "ephemeral-storage",
        },
    }
    refusal = 'KWOKNodeClass.karpenter.kwok.sh "default" not found'

    def __init__(self, admin: Client) -> None:
        self._admin = admin

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, *, plane: ControlPlane, programs: Mapping[str, Path], folder: Path, admin: Client
    ) -> Iterator[KarpenterProvider]:
        with Karpenter(plane, programs=programs, folder=folder) as karpenter:
            found = cls(admin)
            found.relent()
            yield found
            print(karpenter.told())

    def refuse(self) -> None:
        self._admin.delete(KWOK_NODE_CLASS, NODE_CLASS["metadata"]["name"])

    def relent(self) -> None:
        self._admin.create(KWOK_NODE_CLASS, NODE_CLASS)

    def billed(self) -> list[str]:
        return [node["metadata"]["name"] for node in self._admin.list(NODE, label_selector="kwok.x-k8s.io/node").items]
