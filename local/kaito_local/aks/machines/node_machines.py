"""The AKS emulator's machines as real nodes (the `Machines` protocol of `kaito_local.aks.machines.machines`)."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from kaito_local.aks.machines.machines import MachineSpec
from kaito_local.errors import StartError
from kaito_local.nodes.cluster import Cluster
from kaito_local.nodes.node import Node, NodeSource, NodeSpec


class NodeMachines:
    """Boots and removes nodes of the cluster in ``cluster_directory``; safe for several threads.

    All state is on disk: after a `kill -9` of the emulator a new one finds the nodes that run. Nodes that died stay
    dead (their pool is Succeeded, as on AKS) until `stop`. Nodes whose start was interrupted, and those of a cluster
    that was itself restarted, are booted when this object is made.
    """

    def __init__(self, cluster_directory: Path, *, source: NodeSource, memory_gib: int | None = 220) -> None:
        self._directory = cluster_directory.resolve()
        self._source = source
        self._memory_gib = memory_gib
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._boot_unfinished()

    def start(self, spec: MachineSpec) -> None:
        """Boots the node and returns; it is Ready a second later. A no-op for one that was started before."""
        with self._locks[spec.pool]:
            cluster = self._cluster()
            known = Node.load(cluster.directory, spec.node_name)
            if known is None or _unfinished(known, cluster):
                Node.add(cluster, self._node(spec), source=self._source)

    def remove(self, pool: str, node_name: str) -> None:
        """Removes the node and returns when it and its Node object are gone. Raises StartError."""
        with self._locks[pool]:
            known = Node.load(self._directory, node_name)
            if known is not None:
                known.remove()

    def reimage(self, spec: MachineSpec) -> None:
        """Ends the node and boots it from nothing under the Node object that it has. Raises StartError."""
        with self._locks[spec.pool]:
            cluster = self._cluster()
            known = Node.load(cluster.directory, spec.node_name)
            if known is not None:
                known.wipe()
                Node.add(cluster, self._node(spec), source=self._source)

    def relabel(self, node_name: str, labels: Mapping[str, str | None]) -> None:
        """Changes the labels of the Node object. Raises StartError."""
        known = Node.load(self._directory, node_name)
        if known is not None:
            known.relabel(labels)

    def stop(self, pool: str) -> None:
        """Removes the pool's nodes and returns when they and their Node objects are gone. Raises StartError."""
        with self._locks[pool]:
            for node in self._nodes():
                if node.spec.pool == pool:
                    node.remove()

    def _node(self, spec: MachineSpec) -> NodeSpec:
        return NodeSpec(
            name=spec.node_name,
            pool=spec.pool,
            provider_id=spec.provider_id,
            labels={"node.kubernetes.io/instance-type": spec.vm_size, **spec.labels},
            taints=tuple(spec.taints),
            memory_gib=self._memory_gib,
            gpu_count=spec.gpu_count,
            gpu_delay_seconds=spec.gpu_delay_seconds,
        )

    def _boot_unfinished(self) -> None:
        cluster = Cluster.attach(self._directory)
        if cluster is None:
            return
        for node in self._nodes():
            if _unfinished(node, cluster):
                Node.add(cluster, node.spec, source=self._source)

    def _nodes(self) -> list[Node]:
        return [node for node in Node.all(self._directory) if node.spec.pool]

    def _cluster(self) -> Cluster:
        cluster = Cluster.attach(self._directory)
        if cluster is None:
            raise StartError(f"the cluster in {self._directory} does not run; start it with `kaito up`")
        return cluster


def _unfinished(node: Node, cluster: Cluster) -> bool:
    """Whether its start was interrupted, or the cluster in which it ran is not the one that runs."""
    return node.process is None or node.cluster_process != cluster.process
