"""kubelet's and kube-proxy's configuration for a node that shares this machine with others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaito_local.errors import StartError
from kaito_local.machine.network import Network
from kaito_local.nodes.containerd import SOCKET

DEVICE_PLUGIN_FOLDER = Path("/var/lib/kubelet/device-plugins")

# kubelet writes these at its start; they belong to the machine, so each node gets files of its own in their place.
MACHINE_SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)

# What NodeRestriction lets a kubelet say of its own Node below kubernetes.io and k8s.io; kubelet refuses to start
# with others.
_OWN_LABELS = frozenset(
    {
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.kubernetes.io/region",
        "failure-domain.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    }
)
_OWN_LABEL_DOMAINS = ("kubelet.kubernetes.io", "node.kubernetes.io")


def config(
    *, network: Network, index: int, authority: Path, cgroup_root: str, resolv_conf: Path, provider_id: str
) -> str:
    """KubeletConfiguration, as JSON (https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/).

    Heartbeats are frequent so that a dead node is noticed in ten seconds; images are never collected and a full disk
    is no reason to evict, because the disk is not this node's.
    """
    settings: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node_ip(index),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDNS": [network.dns],
        "clusterDomain": "cluster.local",
        "resolvConf": str(resolv_conf),
        "healthzBindAddress": "127.0.0.1",
        "oomScoreAdj": 0,
        "failSwapOn": False,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": False,
        # A GPU is seen as soon as its plugin announces it; what has not changed is still reported every 5 s.
        "nodeStatusUpdateFrequency": "1s",
        "nodeStatusReportFrequency": "5s",
        "nodeLeaseDurationSeconds": 8,
        "maxPods": 60,
        "providerID": provider_id,
    }
    return json.dumps(settings, indent=1)


def command(
    program: Path,
    *,
    config_file: Path,
    kubeconfig: Path,
    name: str,
    address: str,
    labels: Mapping[str, str],
    taints: tuple[str, ...],
) -> tuple[str, ...]:
    """kubelet's command line. Raises StartError for a label that no kubelet may give its own Node."""
    for key in labels:
        if not _may_label_itself(key):
            raise StartError(f"node {name} cannot have the label {key}: Kubernetes reserves that prefix")
    flags = [
        f"--config={config_file}",
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={name}",
        f"--node-ip={address}",
    ]
    if labels:
        flags.append(f"--node-labels={','.join(f'{key}={value}' for key, value in labels.items())}")
    if taints:
        flags.append(f"--register-with-taints={','.join(taints)}")
    return (str(program), *flags)


def proxy_command(program: Path, *, kubeconfig: Path, name: str, address: str, network: Network) -> tuple[str, ...]:
    """kube-proxy's command line.

    ``--cluster-cidr`` makes it masquerade what does not come from Pods, without which this machine could not reach
    Services whose Pods are on another node; the zeros leave the machine's connection tracking limits alone.
    """
    return (
        str(program),
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={name}",
        f"--cluster-cidr={network.pod_cidr}",
        f"--bind-address={address}",
        "--proxy-mode=iptables",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        "--oom-score-adj=0",
    )


def _may_label_itself(key: str) -> bool:
    domain = key.rpartition("/")[0]
    reserved = any(domain == base or domain.endswith(f".{base}") for base in ("kubernetes.io", "k8s.io"))
    if not reserved or key in _OWN_LABELS:
        return True
    return any(domain == own or domain.endswith(f".{own}") for own in _OWN_LABEL_DOMAINS)
