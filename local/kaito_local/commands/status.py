"""`kaito status`: what runs, with pids, addresses, log files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from kaito_local.cluster import preflight
from kaito_local.cluster.keeper import kept_programs, running_keeper
from kaito_local.cluster.local_cluster import LocalCluster
from kaito_local.cluster.state import State
from kaito_local.machine.folders import free_bytes, gib, used_bytes
from kaito_local.nodes.cluster import Cluster
from kaito_local.nodes.node import Node


def run(options: argparse.Namespace, cluster: LocalCluster, given: list[str]) -> int:
    """Prints a table; exit code 0 if the cluster runs, 3 if it does not (as `systemctl status` does)."""
    state = State.load(cluster.directory)
    if state is None:
        print(f"{cluster.name}: never started")
        return 3
    if not state.control_plane_only:
        preflight.become_root(given)  # what runs on nodes is not for everybody to see
    runs = cluster.running()
    print(f"{cluster.name}: {'running' if runs else 'stopped'} ({cluster.directory})")
    for label, value in _addresses(cluster, state):
        print(f"  {label:<15} {value}")
    print(f"  {'disk':<15} {_disk(cluster)}")
    rows = [("WHERE", "PROGRAM", "PID", "LOG"), *_programs(cluster)]
    if len(rows) > 1:
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            print("  " + "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]))
    return 0 if runs else 3


def _addresses(cluster: LocalCluster, state: State) -> Iterator[tuple[str, str]]:
    yield "kubeconfig", str(cluster.kubeconfig)
    if state.control_plane_only:
        return
    environment = cluster.environment()
    yield "registry", f"{environment['KAITO_REGISTRY']} (mirror: {cluster.registry.mirror})"
    yield "cloud", environment["KAITO_ARM_ENDPOINT"]
    yield "this machine", f"{environment['KAITO_HOST_IP']} as Pods see it"


def _disk(cluster: LocalCluster) -> str:
    cache = cluster.cache
    parts = {
        "programs": [cache / "bin"],
        "images": [cache / "images", cache / "weights"],
        "unpacked for nodes": [cache / "golden"],
        "other": [cache],
        "this cluster": [cluster.directory],
    }
    # What is linked from two of them counts where it comes first.
    seen: set[tuple[int, int]] = set()
    used = {name: sum(used_bytes(folder, seen=seen) for folder in folders) for name, folders in parts.items()}
    said = ", ".join(f"{name} {gib(size)}" for name, size in used.items())
    return f"{gib(sum(used.values()))} used ({said}), {gib(free_bytes(cache))} free"


def _programs(cluster: LocalCluster) -> Iterator[tuple[str, str, str, str]]:
    running = Cluster.attach(cluster.directory)
    if running is not None:
        log = cluster.directory / "log" / "cluster.log"
        yield "cluster", "(all of it)", str(running.pid), str(log)
        for program in running.programs():
            yield "cluster", program.name, str(program.pid or "-"), str(program.log)
    keeper = running_keeper(cluster.directory)
    if keeper is not None:
        yield "this machine", "keeper", str(keeper.pid), str(cluster.directory / "log" / "keeper.log")
        for name, pid, kept_log in kept_programs(cluster.directory):
            yield "this machine", name, str(pid or "-"), str(kept_log)
    for node in Node.all(cluster.directory):
        where = f"node {node.spec.name}"
        yield where, "(all of it)", str(node.pid or "dead"), str(node.folder / "log" / "node.log")
        for program in node.programs():
            yield where, program.name, str(program.pid or "-"), str(program.log)
