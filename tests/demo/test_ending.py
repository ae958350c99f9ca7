"""A cluster or a node that was killed a moment ago and still ends is not taken for a running one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.ending import unfinished
from tests.eventually import PATIENCE, never

from kaito_local.nodes.cluster import Cluster, reserve_network

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
