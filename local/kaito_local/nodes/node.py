"""One real node: kubelet, containerd, kube-proxy and a GPU device plugin in namespaces nested in the cluster's.

    node = Node.add(cluster, NodeSpec(name="system", index=1, ...), programs=..., golden=...)
    node.wait_ready(seconds=60)
    node.remove()

Node ``index`` has the address ``network.node_ip(index)`` and the Pods ``network.node_pod_cidr(index)``. Its record
lies in ``<cluster directory>/nodes/<name>/``; a node is found again from there by another process (`Node.load`,
`Node.all`).
Its kubelet's client certificate is signed with ``<cluster directory>/pki/ca.{crt,key}``; removal speaks to the API
server with ``<cluster directory>/kubeconfig`` (an administrator's).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kaito_local.errors import StartError
from kaito_local.machine.cgroups import detect_cgroups
from kaito_local.machine.locks import file_lock
from kaito_local.machine.namespaces import eventually, ip, launch, remove_link
from kaito_local.machine.network import LAST_NODE_INDEX, SYSTEM_NODE_INDEX, Network
from kaito_local.machine.pki import Authority, write_kubeconfig
from kaito_local.machine.processes import Identity, last_lines
from kaito_local.machine.supervisor import Program
from kaito_local.nodes import containerd, kubelet
from kaito_local.nodes.cluster import Cluster, ProgramStatus, read_program_status, recorded_network, write_json
from kaito_local.nodes.containerd import write_hosts
from kaito_local.nodes.golden import link_content
from kaito_local.nodes.node_objects import NodeObjects

_RECORD = "node.json"
_STATUS = "programs.json"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What a node is to be. ``taints`` are ``key=value:Effect``; ``memory_gib`` makes it claim that much memory.

    ``gpu_count`` fake GPUs appear ``gpu_delay_seconds`` after the node's start.
    """

    name: str
    provider_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()
    memory_gib: int | None = None
    gpu_count: int = 0
    gpu_delay_seconds: float = 0.0
    pool: str = ""


@dataclass(frozen=True, slots=True)
class NodeSource:
    """What nodes are made of.

    ``programs``: paths of kubelet and kube-proxy. ``mirror``: the registry that answers for all public ones, as
    ``http://172.31.77.1:5000``; repository R of docker.io is its repository ``docker.io/R``. ``mirrored``: registry
    hosts besides docker.io, mcr.microsoft.com, ghcr.io, registry.k8s.io and quay.io that resolve there.
    ``plain_http``: ``host:port`` that are pulled from directly without TLS. ``golden``: a folder made by
    `kaito_local.nodes.golden`, None: nodes pull every image.
    """

    programs: Mapping[str, Path]
    mirror: str
    mirrored: tuple[str, ...] = ()
    plain_http: tuple[str, ...] = ()
    golden: Path | None = None
    sandbox_image: str = "registry.k8s.io/pause:3.10"


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster, running or dead."""

    cluster_directory: Path
    spec: NodeSpec
    index: int
    golden: Path | None
    process: Identity | None
    cluster_process: Identity | None

    @classmethod
    def add(cls, cluster: Cluster, spec: NodeSpec, *, source: NodeSource, index: int | None = None) -> Node:
        """Boots the node and returns as its programs start (about 0.1 s); the Node is Ready a second later.

        A running node of that name is returned as it is; a dead one is booted again with its state, once it has ended.
        Without ``index`` a free one above 1 is taken. Raises StartError, also for a cluster that is dead or ending,
        and MissingPrerequisite. Interrupted or failed, it leaves nothing.
        """
        if not cluster.process.running():
            raise StartError(f"the cluster in {cluster.directory} does not run")
        existing = cls.load(cluster.directory, spec.name)
        if existing is not None and existing.pid is not None:
            return existing
        if existing is not None:
            existing.kill()
            existing._disconnect(cluster)
        node = existing or cls._allocate(cluster, spec, index=index, golden=source.golden)
        launched = None
        try:
            node = replace(node, spec=spec, golden=node._prepare(cluster.network, source))
            detect_cgroups(cluster.network.cgroup).create(spec.name)
            log = node._log("node")
            launched = launch(
                "kaito_local.nodes.node_init", [str(node.folder / "init.json")], log=log, inside=cluster.pid
            )
            node = replace(node, process=launched.process, cluster_process=cluster.process)
            node._save()
            node._connect(cluster, launched.process.pid)
            launched.release()
            node._wait_started(launched.process, log)
        except BaseException:
            if launched is not None:
                launched.abandon()
            if existing is None:
                node._discard(cluster)
            raise
        return node

    @classmethod
    def load(cls, cluster_directory: Path, name: str) -> Node | None:
        """The recorded node of that name."""
        try:
            data = json.loads((_folder(cluster_directory, name) / _RECORD).read_text())
        except FileNotFoundError:
            return None
        return cls(
            cluster_directory=cluster_directory,
            spec=NodeSpec(**{**data["spec"], "taints": tuple(data["spec"]["taints"])}),
            index=data["index"],
            golden=Path(data["golden"]) if data["golden"] else None,
            process=Identity(**data["process"]) if data["process"] else None,
            cluster_process=Identity(**data["cluster_process"]) if data["cluster_process"] else None,
        )

    @classmethod
    def all(cls, cluster_directory: Path) -> list[Node]:
        """All recorded nodes, by index."""
        names = [record.parent.name for record in (cluster_directory / "nodes").glob(f"*/{_RECORD}")]
        nodes = [node for name in names if (node := cls.load(cluster_directory, name)) is not None]
        return sorted(nodes, key=lambda node: node.index)

    @property
    def folder(self) -> Path:
        """Where the node's files lie."""
        return _folder(self.cluster_directory, self.spec.name)

    @property
    def pid(self) -> int | None:
        """The process that owns the node, in this machine's numbering; None if it or its cluster is dead or ending."""
        if self.process is None or self.cluster_process is None:
            return None
        return self.process.pid if self.process.running() and self.cluster_process.running() else None

    def wait_ready(self, *, seconds: float) -> None:
        """Until the Node is Ready; StartError with the last lines of kubelet's log if it is not in time."""
        objects = self._objects()
        if (
            eventually(lambda: objects.ready(self.spec.name) or self.pid is None, seconds=seconds, every=0.05)
            and self.pid
        ):
            return
        log = self._log("kubelet")
        what = "is not Ready" if self.pid else "died"
        raise StartError(f"node {self.spec.name} {what} after {seconds:.0f} s; the end of {log}:\n{last_lines(log)}")

    def kill(self) -> None:
        """The machine dies (SIGKILL): the Node object and the record stay."""
        if self.process is not None and not self.process.kill(wait=30.0):
            raise StartError(f"node {self.spec.name} (process {self.process.pid}) does not end although it was killed")

    def remove(self) -> None:
        """Cordons, kills, deletes the Node and its Pods, removes link, route, cgroups and state. Idempotent.

        The order matters: a Pod's replacement must not be scheduled onto the dying node, and Pods are deleted
        without grace only when nobody could run them any more.
        """
        cluster = Cluster.attach(self.cluster_directory)
        if cluster is None:
            self.kill()
        else:
            objects = self._objects()
            objects.cordon(self.spec.name)
            self.kill()
            objects.delete(self.spec.name)
        self._discard(cluster)

    def wipe(self) -> None:
        """Kills the node and empties its disk; its Node object, index and record stay, and `add` boots it again."""
        self.kill()
        cluster = Cluster.attach(self.cluster_directory)
        if cluster is not None:
            self._disconnect(cluster)
        self._empty_folder()

    def relabel(self, labels: Mapping[str, str | None]) -> None:
        """Changes labels of the Node object, None takes one off; no error if it does not exist. Raises StartError."""
        self._objects().relabel(self.spec.name, labels)

    def programs(self) -> list[ProgramStatus]:
        """What runs in the node."""
        pid = self.pid
        return [] if pid is None else read_program_status(self.folder / _STATUS, owner=pid)

    @classmethod
    def _allocate(cls, cluster: Cluster, spec: NodeSpec, *, index: int | None, golden: Path | None) -> Node:
        """Takes an index and records it, so that it is nobody else's from here on."""
        with file_lock(cluster.directory / "nodes" / ".lock"):
            taken = {node.index for node in cls.all(cluster.directory)}
            if index is None:
                free = (i for i in range(SYSTEM_NODE_INDEX + 1, LAST_NODE_INDEX + 1) if i not in taken)
                index = next(free, None)
                if index is None:
                    raise StartError(f"a cluster has at most {LAST_NODE_INDEX} nodes")
            elif index in taken:
                raise StartError(f"node index {index} belongs to another node already")
            node = cls(
                cluster_directory=cluster.directory,
                spec=spec,
                index=index,
                golden=golden,
                process=None,
                cluster_process=cluster.process,
            )
            node.folder.mkdir(parents=True, exist_ok=True)
            node._save()
            return node

    def _prepare(self, network: Network, source: NodeSource) -> Path | None:
        """Writes the node's files; returns the golden root that it uses from its first boot on."""
        folder, spec = self.folder, self.spec
        (folder / "log").mkdir(exist_ok=True)
        (folder / "cni").mkdir(exist_ok=True)
        (folder / _STATUS).unlink(missing_ok=True)
        root = folder / "containerd"
        if self.golden is not None and not self.golden.is_dir() and root.exists():
            # Its images are gone from this machine; what it had pulled besides comes again.
            shutil.rmtree(root)
        golden = self.golden if root.exists() else source.golden
        if golden is not None and not root.exists():
            link_content(golden, root)
        write_hosts(folder / "certs.d", mirror=source.mirror, mirrored=source.mirrored, plain_http=source.plain_http)
        (folder / "cni" / "10-pods.conflist").write_text(containerd.pod_network(network.node_pod_cidr(self.index)))
        (folder / "containerd.toml").write_text(
            containerd.config(
                root=root,
                network_config=folder / "cni",
                hosts=folder / "certs.d",
                sandbox_image=source.sandbox_image,
                plugin_folder=containerd.plugin_folder(),
            )
        )
        # Without a search list, as the machine's own names are not the cluster's.
        (folder / "resolv.conf").write_text("search none.invalid\n")
        authority = Authority(self.cluster_directory / "pki")
        (folder / "kubelet.json").write_text(
            kubelet.config(
                network=network,
                index=self.index,
                authority=authority.certificate,
                cgroup_root=detect_cgroups(network.cgroup).kubelet_root(spec.name),
                resolv_conf=folder / "resolv.conf",
                provider_id=spec.provider_id,
            )
        )
        server = _api_server(network)
        for name, user, groups in (
            ("kubelet", f"system:node:{spec.name}", ["system:nodes"]),
            ("kube-proxy", "system:kube-proxy", []),
        ):
            client = authority.client(name, user=user, groups=groups, folder=folder / "pki")
            write_kubeconfig(folder / f"{name}.kubeconfig", server=server, authority=authority, client=client)
        plan = {
            "name": spec.name,
            "slot": network.slot,
            "index": self.index,
            "memory_gib": spec.memory_gib,
            "golden": str(golden) if golden else None,
            "status_file": str(folder / _STATUS),
            "programs": [program.write() for program in self._programs(network, source)],
        }
        write_json(folder / "init.json", plan)
        return golden

    def _programs(self, network: Network, source: NodeSource) -> list[Program]:
        folder, spec, address = self.folder, self.spec, network.node_ip(self.index)
        kubelet_command = kubelet.command(
            source.programs["kubelet"],
            config_file=folder / "kubelet.json",
            kubeconfig=folder / "kubelet.kubeconfig",
            name=spec.name,
            address=address,
            labels=spec.labels,
            taints=spec.taints,
        )
        proxy_command = kubelet.proxy_command(
            source.programs["kube-proxy"],
            kubeconfig=folder / "kube-proxy.kubeconfig",
            name=spec.name,
            address=address,
            network=network,
        )
        containerd_command = (containerd.program(), "--config", str(folder / "containerd.toml"))
        programs = [
            self._program("containerd", containerd_command),
            self._program("kubelet", kubelet_command, after=str(containerd.SOCKET)),
            self._program("kube-proxy", proxy_command),
        ]
        if spec.gpu_count:
            gpu_command = (sys.executable, "-m", "kaito_local.nodes.gpu", "--count", str(spec.gpu_count))
            socket = str(kubelet.DEVICE_PLUGIN_FOLDER / "kubelet.sock")
            programs.append(self._program("gpu", gpu_command, after=socket, delay=spec.gpu_delay_seconds))
        return programs

    def _program(self, name: str, command: tuple[str, ...], *, after: str = "", delay: float = 0.0) -> Program:
        path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return Program(name, command, str(self._log(name)), environment={"PATH": path}, after=after, delay=delay)

    def _connect(self, cluster: Cluster, pid: int) -> None:
        """The node's link to the cluster's bridge, and the way to its Pods."""
        network, link = cluster.network, cluster.network.node_link(self.index)
        ip(
            [
                f"link add {link} type veth peer name eth0 netns {pid}",
                f"link set {link} master {network.bridge} up",
                f"route replace {network.node_pod_cidr(self.index)} via {network.node_ip(self.index)}",
            ],
            namespace_of=cluster.pid,
        )

    def _wait_started(self, process: Identity, log: Path) -> None:
        status = self.folder / _STATUS
        eventually(lambda: status.exists() or not process.alive(), seconds=60.0)
        if not status.exists() or not process.alive():
            raise StartError(f"node {self.spec.name} did not start; the end of {log}:\n{last_lines(log)}")

    def _discard(self, cluster: Cluster | None) -> None:
        """Everything of a dead node but its API objects."""
        if cluster is not None:
            self._disconnect(cluster)
        if self.folder.exists():
            # The record goes last: until then the index is taken, and an interrupted removal can be repeated.
            self._empty_folder()
            shutil.rmtree(self.folder)

    def _disconnect(self, cluster: Cluster) -> None:
        network = cluster.network
        with suppress(StartError):
            ip([f"route del {network.node_pod_cidr(self.index)}"], namespace_of=cluster.pid)
        remove_link(network.node_link(self.index), namespace_of=cluster.pid)
        detect_cgroups(network.cgroup).remove(self.spec.name)

    def _empty_folder(self) -> None:
        """All but the record."""
        for entry in self.folder.iterdir():
            if entry.name != _RECORD:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _objects(self) -> NodeObjects:
        network = recorded_network(self.cluster_directory)
        return NodeObjects(url=_api_server(network), pki=self.cluster_directory / "pki")

    def _log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"

    def _save(self) -> None:
        record = {
            "spec": {**asdict(self.spec), "labels": dict(self.spec.labels)},
            "index": self.index,
            "golden": str(self.golden) if self.golden else None,
            "process": asdict(self.process) if self.process else None,
            "cluster_process": asdict(self.cluster_process) if self.cluster_process else None,
        }
        write_json(self.folder / _RECORD, record)


def _api_server(network: Network) -> str:
    return f"https://{network.gateway}:6443"


def _folder(cluster_directory: Path, name: str) -> Path:
    return cluster_directory / "nodes" / name
