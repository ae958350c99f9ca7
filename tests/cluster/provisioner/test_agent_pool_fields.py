"""The chart's value agentPool, from helm to ARM: rendered, checked by the process, sent by the real SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.provisioner.conftest import Claims, Provisioners, emulated

from kaito_hooks.provisioner.resources import NODE
from kaito_hooks.runtime import Client
from kaito_local.aks import Emulator
from kaito_local.cluster.controlplane import ControlPlane

NETWORK = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/corporate"


@pytest.fixture
def cloud(plane: ControlPlane, tmp_path: Path, admin: Client) -> Iterator[Emulator]:
    """A cluster in a network that its users brought."""
    yield from emulated(plane, tmp_path / "cloud", admin, subnet=f"{NETWORK}/subnets/system")


def sent(cloud: Emulator) -> dict[str, Any]:
    """The properties in the only PUT."""
    (put,) = [request for request in cloud.requests() if request["method"] == "PUT"]
    assert put["status"] == 201
    return put["body"]["properties"]  # type: ignore[no-any-return]


def test_the_charts_fields_reach_the_node_and_the_subnet_is_the_system_pools(
    cloud: Emulator, provisioners: Provisioners, claims: Claims, admin: Client
) -> None:
    provisioners.start(
        cloud,
        nodeAPI=claims.kind,
        agentPool={"tags": {"costCenter": "42"}, "availabilityZones": ["2"], "osSKU": "AzureLinux", "maxPods": 30},
    )
    claims.ask("ws00000af01")
    node = admin.get(NODE, claims.until_ready("ws00000af01").node_name)
    assert node["metadata"]["labels"]["kubernetes.azure.com/os-sku"] == "AzureLinux"
    assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "eastus-2"
    fields = sent(cloud)
    assert fields["tags"] == {"costCenter": "42"}
    assert fields["maxPods"] == 30
    assert fields["vnetSubnetID"] == f"{NETWORK}/subnets/system"


def test_without_akss_driver_a_node_joins_without_gpus(
    cloud: Emulator, provisioners: Provisioners, claims: Claims, admin: Client
) -> None:
    provisioners.start(cloud, nodeAPI=claims.kind, agentPool={"gpuProfile": {"driver": "None"}})
    claims.ask("ws00000af02")
    node = admin.get(NODE, claims.until_ready("ws00000af02").node_name)
    assert "nvidia.com/gpu" not in node["status"].get("allocatable", {})
    assert sent(cloud)["gpuProfile"] == {"driver": "None"}


def test_a_wrong_value_ends_the_start_with_a_sentence(cloud: Emulator, provisioners: Provisioners) -> None:
    """The chart refuses it earlier; this is for who installs without the chart."""
    started = provisioners.start(cloud, environment={"AGENT_POOL": '{"osSKU": "Debian"}'})
    assert started.end() == 2
    (line,) = started.logged().splitlines()
    assert line.startswith("gpu-provisioner: agentPool.osSKU is 'Debian'; it must be one of Ubuntu, ")
