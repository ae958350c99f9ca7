"""``python -m kaito_local.nodes.node_init PLAN.json``: the process that is a node, pid 1 of its namespaces.

`Node.add` starts it. Mounts are this process's first work. It never mounts on a folder that somebody may rmdir:
removing a mount point in another mount namespace succeeds and detaches the mount here, which leaves containers
without their state. Hence /run, /var/lib and /var/log, which exist on every machine, are covered as a whole.
"""

from __future__ import annotations

import json
import re
import resource
import socket
import sys
from pathlib import Path
from typing import Any

from kaito_local.machine.cgroups import detect_cgroups
from kaito_local.machine.namespaces import bind, ip, mount_tmpfs, share_mounts, wait_for_release
from kaito_local.machine.network import Network
from kaito_local.machine.supervisor import Program, Supervisor
from kaito_local.nodes.golden import bind_layers
from kaito_local.nodes.kubelet import DEVICE_PLUGIN_FOLDER, MACHINE_SYSCTLS


def main(plan_file: Path) -> None:
    """Runs until it is killed."""
    wait_for_release()
    plan: dict[str, Any] = json.loads(plan_file.read_text())
    folder = plan_file.parent
    network = Network(int(plan["slot"]))
    share_mounts()
    _cover_machine_folders(folder)
    _absorb_sysctls(folder / "sysctl")
    if plan["memory_gib"] is not None:
        _claim_memory(folder / "meminfo", gib=int(plan["memory_gib"]))
    if plan["golden"] is not None:
        bind_layers(Path(plan["golden"]), folder / "containerd")
    socket.sethostname(plan["name"])
    _join_network(network, index=int(plan["index"]))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    detect_cgroups(network.cgroup).enter()
    programs = [Program.read(data) for data in plan["programs"]]
    Supervisor(programs, status_file=Path(plan["status_file"])).run()


def _cover_machine_folders(folder: Path) -> None:
    mount_tmpfs(Path("/run"))
    for name in ("lib", "log"):
        (folder / "var" / name).mkdir(parents=True, exist_ok=True)
        bind(folder / "var" / name, Path("/var") / name)
    wanted = ("/run/containerd", "/run/netns", "/run/lock", "/var/lib/cni", "/var/log/pods", "/var/log/containers")
    for path in (*wanted, DEVICE_PLUGIN_FOLDER):
        Path(path).mkdir(parents=True, exist_ok=True)


def _absorb_sysctls(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in MACHINE_SYSCTLS:
        real = Path("/proc/sys") / name
        if real.exists():
            absorber = folder / name.replace("/", ".")
            absorber.write_text(real.read_text())
            bind(absorber, real)


def _claim_memory(file: Path, *, gib: int) -> None:
    """kubelet reads the node's capacity from here; Pods see the machine's real numbers."""
    kib = gib * 1024 * 1024
    text = Path("/proc/meminfo").read_text()
    file.write_text(re.sub(r"^(MemTotal|MemFree|MemAvailable):.*$", rf"\1: {kib} kB", text, flags=re.MULTILINE))
    bind(file, Path("/proc/meminfo"))


def _join_network(network: Network, *, index: int) -> None:
    ip(
        [
            "link set lo up",
            f"address add {network.node_ip(index)}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {network.gateway}",
        ]
    )
    for setting, value in (
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        # Without it, answers between two Pods of this node would bypass the address translation of Services.
        ("net/bridge/bridge-nf-call-iptables", "1"),
    ):
        (Path("/proc/sys") / setting).write_text(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
