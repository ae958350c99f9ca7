"""A cluster or a node that was killed a moment ago and still ends is not taken for a running one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.ending import unfinished
from tests.eventually import PATIENCE, never

from kaito_local.errors import StartError
from kaito_local.machine.processes import Identity
from kaito_local.nodes.cluster import Cluster, reserve_network
from kaito_local.nodes.node import Node, NodeSource, NodeSpec

pytestmark = [
    pytest.mark.nodes,
    pytest.mark.skipif(os.geteuid() != 0, reason="real nodes need root"),
]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cluster"
    Cluster.stop(tmp_path / "cluster")


def start(directory: Path) -> Cluster:
    return Cluster.start(directory, network=reserve_network(directory), programs=[])


@pytest.mark.parametrize("act", [start, Cluster.stop, reserve_network], ids=lambda act: act.__name__)
def test_what_needs_a_clusters_addresses_waits_for_the_end_of_the_killed_one(
    directory: Path, act: Callable[[Path], object]
) -> None:
    first = start(directory)
    with ThreadPoolExecutor() as threads:
        with unfinished(first.pid):
            os.kill(first.pid, signal.SIGKILL)
            assert Cluster.attach(directory) is None
            acting = threads.submit(act, directory)
            never(acting.done, within=0.5)
        acting.result(PATIENCE)
    assert not first.process.alive()
    again = start(directory)
    assert again.network == first.network
    assert Cluster.attach(directory) == again


def test_a_node_is_dead_as_soon_as_its_cluster_is_and_none_is_added(directory: Path) -> None:
    cluster = start(directory)
    spec = NodeSpec(name="n1", provider_id="azure:///test/n1")
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            node = Node(
                cluster_directory=directory,
                spec=spec,
                index=2,
                golden=None,
                process=Identity.of(process.pid),
                cluster_process=cluster.process,
            )
            assert node.pid == process.pid
            with unfinished(cluster.pid):
                os.kill(cluster.pid, signal.SIGKILL)
                assert node.pid is None
                with pytest.raises(StartError, match="does not run"):
                    Node.add(cluster, spec, source=NodeSource(programs={}, mirror="http://127.0.0.1:9"))
        finally:
            process.kill()
