"""Real nodes: they join, serve, heal, die and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.demo.node_cluster import ROOT, NodeCluster, bring_up
from tests.demo.snapshot import difference, machine_state, running_clusters
from tests.eventually import PATIENCE, eventually

from kaito_local.images.product import COREDNS_IMAGE
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.processes import Identity
from kaito_local.nodes.cluster import Cluster
from kaito_local.nodes.golden import ensure_golden
from kaito_local.nodes.node import Node

pytestmark = [
    pytest.mark.nodes,
    pytest.mark.skipif(os.geteuid() != 0, reason="real nodes need root"),
]


@pytest.fixture(scope="module")
def binaries() -> Mapping[str, Path]:
    names = [*gotools.CONTROL_PLANE, *gotools.NODE]
    return gotools.ensure(names, tools=ROOT / "tools", cache=cache_folder())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clusters")


@pytest.fixture(scope="module")
def shared(home: Path, binaries: Mapping[str, Path]) -> Iterator[NodeCluster]:
    directory = home / "shared"
    try:
        running = bring_up(directory, programs=binaries)
        running.add_system_node()
        yield running
    finally:
        Cluster.stop(directory)


@pytest.fixture
def directory(home: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = home / request.node.name.replace("[", "-").strip("]")[:40]
    yield folder
    Cluster.stop(folder)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def resolve(name: str, *, server: str) -> str:
    """The A record of a name, asked over UDP as any Pod does (RFC 1035, section 4); empty without an answer."""
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
    question = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        query.settimeout(1)
        try:
            query.sendto(question, (server, 53))
            answer = query.recv(512)
        except OSError:
            return ""
    _, flags, _, count, *_ = struct.unpack_from(">6H", answer)
    # No such name, or not yet, is an answer, too: its code is not 0, or it has no record.
    return socket.inet_ntoa(answer[-4:]) if flags & 0xF == 0 and count else ""


def gpus(cluster: NodeCluster, node: str) -> str:
    return str(cluster.get("node", node)["status"]["allocatable"].get("nvidia.com/gpu", "0"))


def condition_ready(cluster: NodeCluster, node: str) -> str:
    conditions = cluster.get("node", node)["status"]["conditions"]
    return str(next(c["status"] for c in conditions if c["type"] == "Ready"))


def traces(node: Node, cluster: Cluster) -> list[str]:
    """What is left of a node on the machine and in the cluster's network."""
    in_network = ["nsenter", f"--target={cluster.pid}", "--net", "ip", "-brief"]
    links = subprocess.run([*in_network, "link"], capture_output=True, text=True, check=True).stdout
    routes = subprocess.run([*in_network, "route"], capture_output=True, text=True, check=True).stdout
    found = [line for line in links.splitlines() if line.startswith(f"{cluster.network.node_link(node.index)}@")]
    found += [line for line in routes.splitlines() if cluster.network.node_pod_cidr(node.index) in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{cluster.network.cgroup}/{node.spec.name}")]
    found += [str(node.folder)] if node.folder.exists() else []
    return found


def test_a_gpu_pod_answers_this_machine_through_its_service_and_by_name(shared: NodeCluster) -> None:
    node = shared.add_node("g1", taints=("sku=gpu:NoSchedule",), gpu_count=1, gpu_delay_seconds=1.0, memory_gib=220)
    address = shared.run_web("g1-web", pool="g1", gpus=1)
    eventually(lambda: answers(address))
    server = shared.cluster.network.dns
    assert eventually(lambda: resolve("g1-web.default.svc.cluster.local", server=server)) == address
    object_ = shared.get("node", "g1")
    assert object_["spec"]["providerID"] == "azure:///test/g1"
    assert {"key": "sku", "value": "gpu", "effect": "NoSchedule"} in object_["spec"]["taints"]
    assert object_["status"]["capacity"]["memory"] == "220Gi"
    node.remove()


def test_gpus_appear_only_after_their_delay(shared: NodeCluster) -> None:
    begin = time.monotonic()
    node = shared.add_node("late", gpu_count=2, gpu_delay_seconds=4.0)
    # A busy machine may be that slow by itself.
    assert gpus(shared, "late") == "0" or time.monotonic() - begin >= 4.0
    eventually(lambda: gpus(shared, "late") == "2", every=0.3)
    assert time.monotonic() - begin >= 4.0
    node.remove()


def test_a_removed_node_is_gone_with_all_it_had_and_its_pods_run_elsewhere(shared: NodeCluster) -> None:
    first = shared.add_node("r1", labels={"agentpool": "r"})
    second = shared.add_node("r2", labels={"agentpool": "r"})
    shared.run_web("r-web", pool="r", replicas=2)
    begin = time.monotonic()
    first.remove()
    assert time.monotonic() - begin < PATIENCE
    assert not shared.exists("node", "r1")
    assert shared.get("pods", "-A", "--field-selector", "spec.nodeName=r1")["items"] == []
    assert traces(first, shared.cluster) == []
    first.remove()
    shared.kubectl("rollout", "status", "deployment/r-web", "--timeout=60s")
    second.remove()


def test_an_index_and_a_name_can_be_used_again_at_once(shared: NodeCluster) -> None:
    node = shared.add_node("again")
    node.remove()
    assert shared.add_node("again").index == node.index
    found = Node.load(shared.cluster.directory, "again")
    assert found is not None
    found.remove()


def test_a_killed_node_is_not_ready_and_stays_until_it_is_removed(shared: NodeCluster) -> None:
    node = shared.add_node("dying")
    assert node.pid is not None
    os.kill(node.pid, signal.SIGKILL)
    assert node.pid is None
    eventually(lambda: condition_ready(shared, "dying") == "Unknown", every=0.3)
    node.remove()
    assert not shared.exists("node", "dying")
    assert traces(node, shared.cluster) == []


# Also in test_node_machines.py, as agent pools.
@pytest.mark.soak
def test_nodes_that_start_at_the_same_time_get_addresses_of_their_own(shared: NodeCluster) -> None:
    threads = [threading.Thread(target=shared.add_node, args=(f"many{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nodes = [node for node in Node.all(shared.cluster.directory) if node.spec.name.startswith("many")]
    assert len({node.index for node in nodes}) == 3
    assert all(node.pid for node in nodes)
    for node in nodes:
        node.remove()


# One supervisor restarts them all.
@pytest.mark.parametrize(
    "program", ["kubelet", *(pytest.param(p, marks=pytest.mark.soak) for p in ("containerd", "kube-proxy", "gpu"))]
)
def test_a_killed_program_of_a_node_is_started_again(shared: NodeCluster, program: str) -> None:
    node = Node.load(shared.cluster.directory, "healing") or shared.add_node("healing", gpu_count=1)
    eventually(lambda: gpus(shared, "healing") == "1", every=0.3)
    before = next(status for status in node.programs() if status.name == program)
    os.kill(before.pid, signal.SIGKILL)

    def restarted() -> bool:
        found = next(status for status in node.programs() if status.name == program)
        return found.starts > before.starts and found.pid not in (0, before.pid)

    eventually(restarted)
    eventually(lambda: gpus(shared, "healing") == "1" and condition_ready(shared, "healing") == "True", every=0.3)


@pytest.mark.parametrize(
    "program",
    [
        "etcd",
        *(
            pytest.param(program, marks=pytest.mark.soak)
            for program in ("registry-mirror", "kube-scheduler", "kube-controller-manager", "kube-apiserver")
        ),
    ],
)
def test_a_killed_program_of_the_control_plane_is_started_again(shared: NodeCluster, program: str) -> None:
    before = next(status for status in shared.cluster.programs() if status.name == program)
    os.kill(before.pid, signal.SIGKILL)

    def restarted() -> bool:
        found = next(status for status in shared.cluster.programs() if status.name == program)
        return found.starts > before.starts and found.pid not in (0, before.pid)

    eventually(restarted)
    eventually(shared.plane.ready)


def test_a_node_from_the_golden_root_pulls_nothing(shared: NodeCluster, home: Path) -> None:
    golden = ensure_golden(home / "golden", [COREDNS_IMAGE], mirror=shared.source.mirror)
    assert ensure_golden(home / "golden", [COREDNS_IMAGE], mirror=shared.source.mirror) == golden
    with_images = replace(shared, source=replace(shared.source, golden=golden))
    node = with_images.add_node("golden")
    shared.run_web("golden-web", pool="golden")

    def pulled() -> list[str]:
        events = shared.get("events", "--field-selector", "reason=Pulled")["items"]
        return [e["message"] for e in events if e["involvedObject"]["name"].startswith("golden-web")]

    # A kubelet writes its Events when it has time.
    [message] = eventually(pulled, every=0.3)
    assert "already present on machine" in message
    node.remove()
    assert next((golden / "io.containerd.snapshotter.v1.overlayfs" / "snapshots").rglob("coredns")).is_file()


# `kaito down` is held to the same in test_teardown.py.
@pytest.mark.soak
def test_a_cluster_with_nodes_leaves_the_machine_as_it_was(directory: Path, binaries: Mapping[str, Path]) -> None:
    others = running_clusters()
    before = machine_state()
    running = bring_up(directory, programs=binaries)
    running.add_system_node()
    running.add_node("g1", gpu_count=1)
    address = running.run_web("web", pool="g1", gpus=1)
    eventually(lambda: answers(address))
    Cluster.stop(directory)
    assert difference(before, machine_state(), besides=others | running_clusters()) == {}


def test_the_death_of_its_one_process_ends_a_cluster_and_its_state_starts_again(
    directory: Path, binaries: Mapping[str, Path]
) -> None:
    running = bring_up(directory, programs=binaries)
    node = running.add_system_node()
    statuses = (*running.cluster.programs(), *node.programs())
    processes = [process for status in statuses if (process := Identity.of(status.pid))]
    os.kill(running.cluster.pid, signal.SIGKILL)
    assert Cluster.attach(directory) is None
    assert node.pid is None
    again = bring_up(directory, programs=binaries)
    assert not any(process.alive() for process in processes)
    assert again.cluster.network == running.cluster.network
    again.add_system_node()
    begin = time.monotonic()
    name = "kubernetes.default.svc.cluster.local"
    eventually(partial(resolve, name, server=again.cluster.network.dns))
    print(f"names resolve {time.monotonic() - begin:.1f} s after the node was Ready again")


# A third cluster; those of this file and of `kaito up` run side by side in every run.
@pytest.mark.soak
def test_two_clusters_run_side_by_side(shared: NodeCluster, directory: Path, binaries: Mapping[str, Path]) -> None:
    other = bring_up(directory, programs=binaries)
    other.add_system_node()
    assert not set(other.cluster.network.cidrs) & set(shared.cluster.network.cidrs)
    for network in (shared.cluster.network, other.cluster.network):
        answer = eventually(partial(resolve, "kubernetes.default.svc.cluster.local", server=network.dns))
        assert answer == network.kubernetes_service
    Cluster.stop(directory)
    eventually(lambda: condition_ready(shared, "system") == "True", every=0.3)
