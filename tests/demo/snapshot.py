"""What a local cluster may change on its machine, to be compared before and after."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from kaito_local.machine.network import SLOTS, Network
from kaito_local.nodes.cluster import Cluster

# Kernel settings that a misplaced kubelet, kube-proxy or CNI plugin would write.
_SYSCTLS = ("vm", "kernel", "net/ipv4", "net/ipv6", "net/bridge", "net/netfilter")
# Counters and random numbers, which differ between two looks.
_VOLATILE = (
    *("random/", "ns_last_pid", "nf_conntrack_count", "pty/nr", "stat_refresh", "sched_domain"),
    *("hung_task_detect_count", "hung_task_warnings", "perf_event_max_sample_rate"),
)
_COUNTED = re.compile(r"\[\d+:\d+\]|packets \d+ bytes \d+")


def machine_state() -> dict[str, set[str]]:
    """Links, addresses, routes, firewall rules, mounts, cgroups and kernel settings of this machine."""
    return {
        "links": _lines("ip", "-brief", "link"),
        "addresses": _lines("ip", "-brief", "address"),
        "routes": _lines("ip", "route", "show", "table", "all"),
        "rules": _lines("ip", "rule"),
        "namespaces": _lines("ip", "netns", "list"),
        "iptables": _lines("iptables-save"),
        "nftables": _lines("nft", "list", "ruleset"),
        "mounts": _mounts(),
        "cgroups": {folder for folder, _, _ in os.walk("/sys/fs/cgroup")},
        "sysctls": _sysctls(),
        "top": {str(path) for folder in ("/", "/opt", "/etc", "/run", "/var/lib") for path in Path(folder).iterdir()},
    }


def running_clusters() -> set[int]:
    """The slots of the clusters that run at the moment, whoever started them."""
    slots = set()
    for slot in range(SLOTS):
        alias = Path(f"/sys/class/net/{Network(slot).host_link}/ifalias")
        if alias.exists() and Cluster.attach(Path(alias.read_text().strip())) is not None:
            slots.add(slot)
    return slots


def difference(
    before: Mapping[str, set[str]], after: Mapping[str, set[str]], *, besides: Iterable[int] = ()
) -> dict[str, set[str]]:
    """What is new (``+``) or gone (``-``), by kind; empty when nothing was left behind.

    What names a cluster in one of the slots ``besides`` is not looked at: others may come and go meanwhile.
    """
    others = [re.compile(_names(Network(slot))) for slot in besides]

    def ours(lines: set[str]) -> set[str]:
        return {line for line in lines if not any(other.search(line) for other in others)}

    changes = {
        kind: {f"- {line}" for line in ours(before[kind] - after[kind])}
        | {f"+ {line}" for line in ours(after[kind] - before[kind])}
        for kind in before
    }
    return {kind: lines for kind, lines in changes.items() if lines}


def _names(network: Network) -> str:
    prefixes = [cidr.split(".0")[0] for cidr in network.cidrs]
    addresses = "|".join(rf"\b{re.escape(prefix)}\." for prefix in prefixes)
    return rf"\b{network.host_link}\b|/{network.cgroup}(/|$)|{addresses}"


def _lines(*command: str) -> set[str]:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return set()
    # Comments of iptables-save carry the time, its chains and nft's rules count packets.
    lines = (_COUNTED.sub("", line).strip() for line in said.splitlines() if not line.startswith("#"))
    return {line for line in lines if line}


def _mounts() -> set[str]:
    """Without the mount's number, which a remount changes."""
    return {line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _sysctls() -> set[str]:
    settings = set()
    # Unlike rglob, walk passes over a link's folder that goes meanwhile.
    for folder, _, files in (entry for root in _SYSCTLS for entry in os.walk(f"/proc/sys/{root}")):
        for path in (Path(folder) / name for name in files):
            if not any(word in str(path) for word in _VOLATILE):
                try:
                    settings.add(f"{path} = {path.read_text().strip()}")
                except (OSError, UnicodeDecodeError):
                    continue
    return settings
