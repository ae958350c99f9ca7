"""What a node's programs are configured with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import yaml

from kaito_local.cluster import dns
from kaito_local.errors import StartError
from kaito_local.images.product import COREDNS_IMAGE
from kaito_local.machine.network import Network
from kaito_local.nodes import containerd, kubelet


def kubelet_command(**labels: str) -> tuple[str, ...]:
    return kubelet.command(
        Path("/bin/kubelet"),
        config_file=Path("/c"),
        kubeconfig=Path("/k"),
        name="g1",
        address="172.31.77.12",
        labels=labels,
        taints=("sku=gpu:NoSchedule", "a=b:NoExecute"),
    )


def test_each_public_registry_is_a_folder_of_the_mirror_and_nothing_else_is_asked(tmp_path: Path) -> None:
    containerd.write_hosts(tmp_path, mirror="http://172.31.77.1:5000", mirrored=["images.example.com"])
    assert {"docker.io", "mcr.microsoft.com", "ghcr.io", "registry.k8s.io", "quay.io", "images.example.com"} <= {
        path.name for path in tmp_path.iterdir()
    }
    hosts = tomllib.loads((tmp_path / "docker.io" / "hosts.toml").read_text())
    address = "http://172.31.77.1:5000/v2/docker.io"
    assert hosts["server"] == address
    assert list(hosts["host"]) == [address]
    assert hosts["host"][address] == {"capabilities": ["pull", "resolve"], "override_path": True}


def test_the_mirror_itself_and_plain_registries_are_reached_without_tls(tmp_path: Path) -> None:
    containerd.write_hosts(tmp_path, mirror="http://172.31.77.1:5000", plain_http=["172.31.77.1:5001"])
    for host in ("172.31.77.1:5000", "172.31.77.1:5001"):
        hosts = tomllib.loads((tmp_path / host / "hosts.toml").read_text())
        assert hosts["server"] == f"http://{host}"
        assert "override_path" not in hosts["host"][f"http://{host}"]


def test_containerd_keeps_off_the_machines_own_folders() -> None:
    text = containerd.config(
        root=Path("/state/nodes/g1/containerd"),
        network_config=Path("/state/nodes/g1/cni"),
        hosts=Path("/state/nodes/g1/certs.d"),
        sandbox_image="registry.k8s.io/pause:3.10",
        plugin_folder=Path("/usr/lib/cni"),
    )
    settings = tomllib.loads(text)
    assert settings["root"] == "/state/nodes/g1/containerd"
    assert settings["state"].startswith("/run/")
    assert "io.containerd.internal.v1.opt" in settings["disabled_plugins"]
    cri = settings["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == "registry.k8s.io/pause:3.10"
    assert cri["registry"]["config_path"] == "/state/nodes/g1/certs.d"


def test_pods_get_addresses_of_their_nodes_range() -> None:
    plugins = json.loads(containerd.pod_network("10.244.2.0/24"))["plugins"]
    assert plugins[0]["ipam"]["subnet"] == "10.244.2.0/24"


def test_nobody_without_a_certificate_may_speak_to_kubelet() -> None:
    settings = json.loads(
        kubelet.config(
            network=Network(1),
            index=2,
            authority=Path("/state/pki/ca.crt"),
            cgroup_root="/kaito-1/g1",
            resolv_conf=Path("/state/resolv.conf"),
            provider_id="azure:///x",
        )
    )
    assert settings["authentication"]["anonymous"] == {"enabled": False}
    assert settings["authorization"] == {"mode": "Webhook"}
    assert settings["address"] == "172.31.78.12"
    assert settings["clusterDNS"] == ["10.97.0.10"]
    assert settings["providerID"] == "azure:///x"


def test_labels_and_taints_reach_kubelets_command_line() -> None:
    command = kubelet_command(agentpool="ws1", **{"node.kubernetes.io/instance-type": "Standard_NC6s_v3"})
    assert "--node-labels=agentpool=ws1,node.kubernetes.io/instance-type=Standard_NC6s_v3" in command
    assert "--register-with-taints=sku=gpu:NoSchedule,a=b:NoExecute" in command


@pytest.mark.parametrize(
    "label",
    ["kubernetes.azure.com/mode", "karpenter.sh/provisioner-name", "kaito.sh/workspace", "topology.kubernetes.io/zone"],
)
def test_labels_of_clouds_and_tools_are_allowed(label: str) -> None:
    assert any(label in part for part in kubelet_command(**{label: "x"}))


@pytest.mark.parametrize("label", ["kubernetes.io/role", "node-role.kubernetes.io/gpu", "x.k8s.io/y"])
def test_a_label_that_kubelet_would_refuse_to_start_with_is_named(label: str) -> None:
    with pytest.raises(StartError, match=label):
        kubelet_command(**{label: "x"})


def test_dns_answers_at_the_networks_address() -> None:
    objects = list(yaml.safe_load_all(dns.manifests(Network(1))))
    service = next(o for o in objects if o["kind"] == "Service")
    assert service["spec"]["clusterIP"] == "10.97.0.10"
    deployment = next(o for o in objects if o["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"agentpool": "system"}
    assert pod["containers"][0]["image"] == COREDNS_IMAGE
