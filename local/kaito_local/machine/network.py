"""The addresses of one local cluster: a /24 for nodes, a /16 for Pods, a /16 for Services, and the names of its links.

Clusters are numbered by slot, so that several run side by side: slot 0 is 172.31.77.0/24, 10.244.0.0/16,
10.96.0.0/16, slot 1 is 172.31.78.0/24, 10.245.0.0/16, 10.97.0.0/16, and so on. A cluster keeps its slot for life,
because the cluster IPs in etcd and the names in the API server's certificate hold these addresses.

In the node network .1 is the cluster's own process (API server, registry, router), .254 is this machine, .10+I is
node I.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_local.errors import MissingPrerequisite

SLOTS = 12
SYSTEM_NODE_INDEX = 1
LAST_NODE_INDEX = 200


@dataclass(frozen=True, slots=True)
class Network:
    """The addresses of the cluster in one slot (0 to 11)."""

    slot: int

    @property
    def _prefix(self) -> str:
        return f"172.31.{77 + self.slot}"

    @property
    def node_cidr(self) -> str:
        """The network that nodes, control plane and this machine share."""
        return f"{self._prefix}.0/24"

    @property
    def pod_cidr(self) -> str:
        """All Pods of the cluster."""
        return f"10.{244 + self.slot}.0.0/16"

    @property
    def service_cidr(self) -> str:
        """All cluster IPs."""
        return f"10.{96 + self.slot}.0.0/16"

    @property
    def gateway(self) -> str:
        """Where the API server (6443) and the registry listen, and the router of all nodes."""
        return f"{self._prefix}.1"

    @property
    def host(self) -> str:
        """This machine, as nodes and Pods reach it (the AKS emulator listens here)."""
        return f"{self._prefix}.254"

    @property
    def dns(self) -> str:
        """Cluster IP of the cluster's DNS."""
        return f"10.{96 + self.slot}.0.10"

    @property
    def kubernetes_service(self) -> str:
        """Cluster IP of the API server's own Service; belongs into its certificate."""
        return f"10.{96 + self.slot}.0.1"

    def without_proxy(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The variables that keep a proxy of this machine out of what is said to the cluster.

        Programs know networks there (Go, curl), libraries often only addresses; those whose NO_PROXY names other
        hosts go on with them.
        """
        before = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
        own = [self.gateway, self.host, self.node_cidr, self.pod_cidr, self.service_cidr, "127.0.0.1", "localhost"]
        names = list(dict.fromkeys([*filter(None, before.split(",")), *own]))
        return {"NO_PROXY": ",".join(names), "no_proxy": ",".join(names)}

    @property
    def bridge(self) -> str:
        """The bridge inside the cluster's network namespace."""
        return f"kaito{self.slot}"

    @property
    def bridge_mac(self) -> str:
        """The bridge's own Ethernet address (locally administered)."""
        return f"02:6b:61:69:74:{self.slot:02x}"

    @property
    def host_link(self) -> str:
        """The one link that this machine sees of the cluster."""
        return f"kaito{self.slot}h"

    @property
    def cgroup(self) -> str:
        """The name of the cluster's cgroup."""
        return f"kaito-{self.slot}"

    def node_ip(self, index: int) -> str:
        """Address of node ``index`` (1 to 200; 1 is the system node, which routes the cluster IPs)."""
        return f"{self._prefix}.{10 + index}"

    def node_pod_cidr(self, index: int) -> str:
        """The Pods of node ``index``."""
        return f"10.{244 + self.slot}.{index}.0/24"

    def node_link(self, index: int) -> str:
        """The router's end of the link of node ``index``."""
        return f"node{index}"

    @property
    def cidrs(self) -> tuple[str, str, str]:
        """The three networks."""
        return (self.node_cidr, self.pod_cidr, self.service_cidr)


def networks_in_use() -> list[str]:
    """Every network that this machine routes or has an address in, but for default routes."""
    used: list[str] = []
    for route in _ip_json("-4", "route", "show", "table", "all"):
        destination = str(route.get("dst", "default"))
        if destination != "default" and route.get("type") not in ("broadcast", "local"):
            used.append(destination)
    for link in _ip_json("-4", "address", "show"):
        used += [f"{address['local']}/{address['prefixlen']}" for address in link.get("addr_info", [])]
    return used


def choose_network(*, reserved_slots: Iterable[int], in_use: Iterable[str]) -> Network:
    """The first slot that no other cluster has reserved and whose three networks this machine does not use.

    Raises MissingPrerequisite when all are taken.
    """
    reserved = set(reserved_slots)
    used = list(in_use)
    for slot in range(SLOTS):
        network = Network(slot)
        if slot not in reserved and conflict(network, used) is None:
            return network
    raise MissingPrerequisite(
        f"no free addresses for a cluster: all {SLOTS} ranges from {Network(0).node_cidr} to "
        f"{Network(SLOTS - 1).node_cidr} are in use on this machine; remove clusters that are no longer needed "
        "with `kaito down --purge --name NAME`"
    )


def conflict(network: Network, in_use: Iterable[str]) -> str | None:
    """One sentence about the first used network that overlaps, None if there is none."""
    for used in in_use:
        other = ipaddress.ip_network(used, strict=False)
        for cidr in network.cidrs:
            if other.overlaps(ipaddress.ip_network(cidr)):
                return f"the address range {cidr} of this cluster is in use on this machine already ({used})"
    return None


def _ip_json(*arguments: str) -> list[dict[str, Any]]:
    said = subprocess.run(["ip", "-json", *arguments], check=True, capture_output=True, text=True).stdout
    entries: list[dict[str, Any]] = json.loads(said or "[]")
    return [entry for entry in entries if entry]
