"""Pools whose machines are Node objects on a real API server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core import MatchConditions
from tests.eventually import PATIENCE, eventually
from tests.unit.aks.sdk import gpu_pool, sdk

from kaito_local.aks import Durations, Emulator, Settings
from kaito_local.cluster.controlplane import ControlPlane

WHERE = ("kaito", "kaito")
FAST = Durations(create_gpu=0.2, delete=0.2, node_ready=0.2, gpu_delay=0.5)


@pytest.fixture
def settings(tmp_path: Path, control_plane: ControlPlane) -> Settings:
    return Settings(directory=tmp_path / "cloud", durations=FAST, machines="bare", kubeconfig=control_plane.kubeconfig)


@pytest.fixture
def cloud(settings: Settings) -> Iterator[Emulator]:
    with Emulator(settings) as emulator:
        yield emulator


@pytest.fixture
def pool() -> str:
    return f"ws{secrets.token_hex(4)}"


def nodes(plane: ControlPlane, pool: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(plane.kubectl("get", "nodes", "-l", f"agentpool={pool}", "-o", "json"))[
        "items"
    ]
    return items


def ready(node: dict[str, Any]) -> str:
    return next(str(c["status"]) for c in node["status"]["conditions"] if c["type"] == "Ready")


def create(cloud: Emulator, folder: Path, pool: str) -> None:
    with sdk(cloud, folder) as aks:
        aks.agent_pools.begin_create_or_update(
            *WHERE, pool, gpu_pool(), match_condition=MatchConditions.IfMissing, polling=False
        )


def delete(cloud: Emulator, folder: Path, pool: str) -> None:
    with sdk(cloud, folder) as aks:
        aks.agent_pools.begin_delete(*WHERE, pool).result(timeout=PATIENCE)


def test_a_pool_s_node_appears_becomes_ready_gets_its_gpu_and_goes_with_the_pool(
    cloud: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str
) -> None:
    create(cloud, tmp_path, pool)
    (node,) = eventually(lambda: nodes(control_plane, pool))
    name = node["metadata"]["name"]
    assert name.startswith(f"aks-{pool}-")
    assert name.endswith("-vmss000000")
    assert node["spec"]["providerID"] == (
        "azure:///subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/mc_kaito_kaito_eastus/providers/"
        f"Microsoft.Compute/virtualMachineScaleSets/{name.removesuffix('000000')}/virtualMachines/0"
    )
    assert {"key": "sku", "value": "gpu", "effect": "NoSchedule"} in node["spec"]["taints"]
    labels = node["metadata"]["labels"]
    assert labels["node.kubernetes.io/instance-type"] == "Standard_NC6s_v3"
    assert labels["accelerator"] == "nvidia"
    assert labels["kaito.sh/workspace"] == "phi"
    assert labels["kubernetes.azure.com/agentpool"] == pool
    eventually(lambda: ready(nodes(control_plane, pool)[0]) == "True")
    eventually(lambda: nodes(control_plane, pool)[0]["status"]["allocatable"].get("nvidia.com/gpu") == "1")
    delete(cloud, tmp_path, pool)
    assert nodes(control_plane, pool) == []


@pytest.mark.parametrize(
    ("fault", "holds"),
    [
        ({"provider_id": False}, lambda found: found and "providerID" not in found[0]["spec"]),
        ({"count": 2}, lambda found: len(found) == 2),
        ({"late": 1.0}, lambda found: len(found) == 1),
        ({"not_ready_after": 1.0}, lambda found: found and ready(found[0]) == "False"),
    ],
    ids=["no provider id", "two nodes", "late", "not ready later"],
)
def test_a_machine_disappoints(
    cloud: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str, fault: dict[str, Any], holds: Any
) -> None:
    cloud.fault(target="machine", pool=pool, machine=fault)
    create(cloud, tmp_path, pool)
    eventually(lambda: holds(nodes(control_plane, pool)))
    delete(cloud, tmp_path, pool)
    assert nodes(control_plane, pool) == []


def test_machines_that_never_come_never_become_ready_or_have_no_gpu(
    cloud: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str
) -> None:
    never, unready, blind, good = (f"{pool[:8]}{letter}" for letter in "abcd")
    cloud.fault(target="machine", pool=never, machine={"never": True})
    cloud.fault(target="machine", pool=unready, machine={"ready": False})
    cloud.fault(target="machine", pool=blind, machine={"gpu": False})
    for name in (never, unready, blind, good):
        create(cloud, tmp_path, name)
    # The good one was asked for last and gets everything; by then the others would have had it too.
    eventually(
        lambda: (found := nodes(control_plane, good)) and found[0]["status"]["allocatable"].get("nvidia.com/gpu")
    )
    assert nodes(control_plane, never) == []
    assert ready(nodes(control_plane, unready)[0]) == "False"
    assert ready(nodes(control_plane, blind)[0]) == "True"
    assert "nvidia.com/gpu" not in nodes(control_plane, blind)[0]["status"]["allocatable"]
    for name in (never, unready, blind, good):
        delete(cloud, tmp_path, name)


def test_a_node_held_by_a_finalizer_does_not_hold_the_pool(
    cloud: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str
) -> None:
    create(cloud, tmp_path, pool)
    (node,) = eventually(lambda: nodes(control_plane, pool))
    name = node["metadata"]["name"]
    hold = '{"metadata": {"finalizers": ["karpenter.sh/termination"]}}'
    control_plane.kubectl("patch", "node", name, "--type=merge", "-p", hold)
    delete(cloud, tmp_path, pool)
    assert cloud.agent_pools() == []
    assert nodes(control_plane, pool)[0]["metadata"]["deletionTimestamp"]
    control_plane.kubectl("patch", "node", name, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    eventually(lambda: nodes(control_plane, pool) == [])


def test_a_restarted_emulator_finishes_the_nodes_that_it_began(
    settings: Settings, control_plane: ControlPlane, tmp_path: Path, pool: str
) -> None:
    with Emulator(settings) as first:
        create(first, tmp_path, pool)
        eventually(lambda: nodes(control_plane, pool))
    with Emulator(settings) as second:
        eventually(
            lambda: (
                nodes(control_plane, pool)[0]["status"]["allocatable"].get("nvidia.com/gpu")
                and ready(nodes(control_plane, pool)[0]) == "True"
            )
        )
        assert len(nodes(control_plane, pool)) == 1
        delete(second, tmp_path, pool)
    assert nodes(control_plane, pool) == []
