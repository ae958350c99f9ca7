"""``python -m kaito_local.nodes.cluster_init PLAN.json``: the process that is a cluster, pid 1 of its namespaces.

`Cluster.start` starts it. It makes the bridge that is the cluster's network, lets this network namespace route
between nodes, and supervises the control plane and the registry.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kaito_local.machine.cgroups import detect_cgroups
from kaito_local.machine.namespaces import ip, wait_for_release
from kaito_local.machine.network import SYSTEM_NODE_INDEX, Network
from kaito_local.machine.supervisor import Program, Supervisor


def main(plan_file: Path) -> None:
    """Runs until it is killed."""
    wait_for_release()
    plan = json.loads(plan_file.read_text())
    network = Network(int(plan["slot"]))
    detect_cgroups(network.cgroup).enter()
    _make_router(network)
    programs = [Program.read(data) for data in plan["programs"]]
    Supervisor(programs, status_file=Path(plan["status_file"])).run()


def _make_router(network: Network) -> None:
    bridge = network.bridge
    ip(
        [
            "link set lo up",
            # Without an address of its own a bridge takes one of its ports', another one with every node that comes or
            # goes, and those who remember the old one lose packets for seconds.
            f"link add {bridge} address {network.bridge_mac} type bridge",
            f"address add {network.gateway}/24 dev {bridge}",
            f"link set {bridge} up",
            f"link set host0 master {bridge} up",
            # Cluster IPs are what kube-proxy on the system node makes of them.
            f"route add {network.service_cidr} via {network.node_ip(SYSTEM_NODE_INDEX)}",
        ]
    )
    settings = Path("/proc/sys/net/ipv4")
    (settings / "ip_forward").write_text("1")
    # A node would remember a redirect to a peer that is gone by the time it is used.
    for name in ("all", bridge):
        (settings / "conf" / name / "send_redirects").write_text("0")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
