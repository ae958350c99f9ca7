"""The emulated cloud's machines as real nodes, and launchers that die at the wrong moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.demo.node_cluster import ROOT, NodeCluster, bring_up
from tests.eventually import eventually

from kaito_local.aks.machines.machines import Machines, MachineSpec
from kaito_local.aks.machines.node_machines import NodeMachines
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.namespaces import remove_link
from kaito_local.nodes.cluster import Cluster
from kaito_local.nodes.node import Node

pytestmark = [
    pytest.mark.nodes,
    pytest.mark.skipif(os.geteuid() != 0, reason="real nodes need root"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    programs: Mapping[str, Path] = gotools.ensure(
        [*gotools.CONTROL_PLANE, *gotools.NODE], tools=ROOT / "tools", cache=cache_folder()
    )
    directory = tmp_path_factory.mktemp("machines") / "cluster"
    try:
        yield bring_up(directory, programs=programs)
    finally:
        Cluster.stop(directory)


def machine(pool: str) -> MachineSpec:
    return MachineSpec(
        pool=pool,
        node_name=f"aks-{pool}-12345678-vmss000000",
        provider_id=f"azure:///subscriptions/s/pools/{pool}",
        vm_size="Standard_NC6s_v3",
        labels={"agentpool": pool, "kaito.sh/workspace": "w"},
        taints=("sku=gpu:NoSchedule",),
        gpu_count=1,
        gpu_delay_seconds=0.5,
    )


def node_of(running: NodeCluster, pool: str) -> Node:
    node = Node.load(running.cluster.directory, machine(pool).node_name)
    assert node is not None
    return node


def test_pools_that_start_together_become_nodes_and_go_again(running: NodeCluster) -> None:
    machines: Machines = NodeMachines(running.cluster.directory, source=running.source)
    pools = ["ws1", "ws2", "ws3"]
    threads = [threading.Thread(target=machines.start, args=(machine(pool),)) for pool in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pool in pools:
        node_of(running, pool).wait_ready(seconds=60)
    labels = running.get("node", machine("ws1").node_name)["metadata"]["labels"]
    assert labels["node.kubernetes.io/instance-type"] == "Standard_NC6s_v3"
    assert labels["kaito.sh/workspace"] == "w"
    for pool in pools:
        machines.stop(pool)
        assert not running.exists("node", machine(pool).node_name)
        machines.stop(pool)


def test_machines_survive_the_death_of_whoever_started_them(running: NodeCluster) -> None:
    script = (
        "import json, os, signal, sys\n"
        "from pathlib import Path\n"
        "from kaito_local.aks.machines.machines import MachineSpec\n"
        "from kaito_local.nodes.node import NodeSource\n"
        "from kaito_local.aks.machines.node_machines import NodeMachines\n"
        "programs, mirror, directory, spec = json.loads(sys.argv[1])\n"
        "source = NodeSource(programs={k: Path(v) for k, v in programs.items()}, mirror=mirror)\n"
        "machines = NodeMachines(Path(directory), source=source)\n"
        "machines.start(MachineSpec(**{**spec, 'taints': tuple(spec['taints'])}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    spec = {field: getattr(machine("orphan"), field) for field in MachineSpec.__dataclass_fields__}
    programs = {name: str(path) for name, path in running.source.programs.items()}
    handed = json.dumps([programs, running.source.mirror, str(running.cluster.directory), spec])
    done = subprocess.run([sys.executable, "-c", script, handed], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    node = node_of(running, "orphan")
    node.wait_ready(seconds=60)
    again = NodeMachines(running.cluster.directory, source=running.source)
    again.start(machine("orphan"))
    assert node_of(running, "orphan").pid == node.pid
    again.stop("orphan")
    assert not running.exists("node", machine("orphan").node_name)


def test_a_dead_machine_stays_dead_until_its_pool_is_stopped(running: NodeCluster) -> None:
    machines = NodeMachines(running.cluster.directory, source=running.source)
    machines.start(machine("dead"))
    node = node_of(running, "dead")
    node.wait_ready(seconds=60)
    node.kill()
    again = NodeMachines(running.cluster.directory, source=running.source)
    again.start(machine("dead"))
    assert node_of(running, "dead").pid is None
    assert running.exists("node", node.spec.name)
    again.stop("dead")
    assert not node.folder.exists()


def test_a_launcher_that_dies_before_its_process_is_released_leaves_none(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from kaito_local.machine.namespaces import launch\n"
        "launched = launch('kaito_local.nodes.cluster_init', ['unused'], log=Path(sys.argv[1]))\n"
        "print(launched.process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        launcher.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert "the launcher is gone" in (tmp_path / "log").read_text()


def test_a_link_that_is_gone_may_be_removed() -> None:
    remove_link("kaito-nothing")


def test_a_removed_machine_can_be_booted_again_under_its_name(running: NodeCluster) -> None:
    machines = NodeMachines(running.cluster.directory, source=running.source)
    name = machine("again").node_name
    machines.start(machine("again"))
    node_of(running, "again").wait_ready(seconds=60)
    old = running.get("node", name)
    machines.remove("again", name)
    assert not running.exists("node", name)
    machines.remove("again", name)
    machines.start(machine("again"))
    node_of(running, "again").wait_ready(seconds=60)
    assert running.get("node", name)["metadata"]["uid"] != old["metadata"]["uid"]
    machines.stop("again")


def test_a_reimaged_machine_has_an_empty_disk_and_the_same_node(running: NodeCluster) -> None:
    machines = NodeMachines(running.cluster.directory, source=running.source)
    spec = machine("fresh")
    machines.start(spec)
    node = node_of(running, "fresh")
    node.wait_ready(seconds=60)
    old = running.get("node", spec.node_name)
    left = node.folder / "containerd" / "left-behind"
    left.write_text("")
    machines.reimage(spec)
    again = node_of(running, "fresh")
    again.wait_ready(seconds=60)
    assert (again.index, again.pid == node.pid, left.exists()) == (node.index, False, False)
    assert running.get("node", spec.node_name)["metadata"]["uid"] == old["metadata"]["uid"]
    machines.stop("fresh")


def test_labels_of_a_node_are_changed_and_taken_off(running: NodeCluster) -> None:
    machines = NodeMachines(running.cluster.directory, source=running.source)
    spec = machine("named")
    machines.start(spec)
    node_of(running, "named").wait_ready(seconds=60)
    machines.relabel(spec.node_name, {"kaito.sh/workspace": None, "team": "vision"})
    labels = running.get("node", spec.node_name)["metadata"]["labels"]
    assert labels["team"] == "vision"
    assert "kaito.sh/workspace" not in labels
    machines.stop("named")
