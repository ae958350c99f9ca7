"""Pools whose machines are Node objects on a real API server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from azure.core import MatchConditions
from tests.eventually import PATIENCE, eventually
from tests.unit.aks.sdk import gpu_pool, sdk

from kaito_local.aks import Durations, Emulator, Settings
from kaito_local.cluster.controlplane import ControlPlane

WHERE = ("kaito", "kaito")
FAST = Durations(
    create_gpu=0.2, update=0.2, delete=0.2, upgrade=30.0, start=2.0, stop=2.0, node_ready=0.2, gpu_delay=0.5
)
FINALIZER = "karpenter.sh/termination"


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


@pytest.fixture
def still(settings: Settings) -> Iterator[Emulator]:
    """The same cloud with a clock that stands still until a test moves it."""
    with Emulator(replace(settings, clock_speed=0)) as emulator:
        yield emulator


def upgrade(cloud: Emulator, folder: Path, pool: str) -> None:
    with sdk(cloud, folder) as aks:
        aks.agent_pools.begin_upgrade_node_image_version(*WHERE, pool, polling=False)
    cloud.settle()


def give_back(cloud: Emulator, folder: Path, pool: str) -> None:
    with sdk(cloud, folder) as aks:
        aks.agent_pools.begin_delete(*WHERE, pool, polling=False)
    cloud.advance(1)


def state(cloud: Emulator, pool: str) -> str:
    return next(found.state for found in cloud.agent_pools() if found.name == pool)


def hold(plane: ControlPlane, node: str) -> None:
    plane.kubectl("patch", "node", node, "--type=merge", "-p", json.dumps({"metadata": {"finalizers": [FINALIZER]}}))


def release(plane: ControlPlane, node: str) -> None:
    plane.kubectl("patch", "node", node, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')


def complete(node: dict[str, Any]) -> bool:
    return ready(node) == "True" and node["status"]["allocatable"].get("nvidia.com/gpu") == "1"


def working_node(cloud: Emulator, plane: ControlPlane, folder: Path, pool: str) -> dict[str, Any]:
    """The one Node of a new pool, Ready and with its GPU, in a cloud whose clock stands still."""
    create(cloud, folder, pool)
    cloud.settle()
    cloud.advance(2)
    (node,) = nodes(plane, pool)
    assert complete(node)
    return node


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
    eventually(lambda: nodes(control_plane, unready))
    eventually(lambda: (found := nodes(control_plane, blind)) and ready(found[0]) == "True")
    # The good one was asked for last and gets everything; by then the others would have had it too.
    eventually(
        lambda: (found := nodes(control_plane, good)) and found[0]["status"]["allocatable"].get("nvidia.com/gpu")
    )
    assert nodes(control_plane, never) == []
    assert ready(nodes(control_plane, unready)[0]) == "False"
    assert "nvidia.com/gpu" not in nodes(control_plane, blind)[0]["status"]["allocatable"]
    for name in (never, unready, blind, good):
        delete(cloud, tmp_path, name)


def test_a_node_held_by_a_finalizer_does_not_hold_the_pool(
    cloud: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str
) -> None:
    create(cloud, tmp_path, pool)
    (node,) = eventually(lambda: nodes(control_plane, pool))
    name = node["metadata"]["name"]
    hold(control_plane, name)
    delete(cloud, tmp_path, pool)
    assert cloud.agent_pools() == []
    assert nodes(control_plane, pool)[0]["metadata"]["deletionTimestamp"]
    release(control_plane, name)
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


def test_an_upgrade_replaces_the_node_by_a_new_one_of_the_same_name(
    still: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str
) -> None:
    old = working_node(still, control_plane, tmp_path, pool)
    name = old["metadata"]["name"]
    upgrade(still, tmp_path, pool)
    (surge,) = [node for node in nodes(control_plane, pool) if node["metadata"]["name"] != name]
    assert surge["metadata"]["name"].endswith("-vmss000001")
    assert surge["metadata"]["labels"]["kaito.sh/claim-uid"] == "uid-1"
    assert {"key": "sku", "value": "gpu", "effect": "NoSchedule"} in surge["spec"]["taints"]
    assert surge["spec"]["providerID"].endswith("/virtualMachines/1")
    still.advance(10)
    assert [node["metadata"]["name"] for node in nodes(control_plane, pool)] == [surge["metadata"]["name"]]
    still.advance(10)
    still.advance(10)
    assert state(still, pool) == "Succeeded"
    (new,) = nodes(control_plane, pool)
    assert complete(new)
    assert new["metadata"]["name"] == name
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["spec"]["providerID"] == old["spec"]["providerID"]
    assert "unschedulable" not in new["spec"]
    give_back(still, tmp_path, pool)


@pytest.mark.parametrize("in_time", [True, False], ids=["in time", "too late"])
def test_a_node_that_is_held_during_an_upgrade_comes_back_only_if_it_is_let_go_in_time(
    still: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str, in_time: bool
) -> None:
    old = working_node(still, control_plane, tmp_path, pool)
    name = old["metadata"]["name"]
    hold(control_plane, name)
    upgrade(still, tmp_path, pool)
    still.advance(10)
    held = next(node for node in nodes(control_plane, pool) if node["metadata"]["name"] == name)
    assert (held["metadata"]["uid"], held["spec"]["unschedulable"]) == (old["metadata"]["uid"], True)
    assert held["metadata"]["deletionTimestamp"]
    if in_time:
        release(control_plane, name)
    still.advance(20)
    assert state(still, pool) == "Succeeded"
    if not in_time:
        release(control_plane, name)
    still.advance(2)
    assert [node["metadata"]["name"] for node in nodes(control_plane, pool)] == ([name] if in_time else [])
    give_back(still, tmp_path, pool)


def test_a_reimaged_machine_keeps_its_node(
    still: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str
) -> None:
    old = working_node(still, control_plane, tmp_path, pool)
    still.pools.reimage(pool)
    still.settle()
    (away,) = nodes(control_plane, pool)
    assert (ready(away), away["status"]["allocatable"]["nvidia.com/gpu"]) == ("False", "0")
    still.advance(1)
    (back,) = nodes(control_plane, pool)
    assert complete(back)
    assert back["metadata"]["uid"] == old["metadata"]["uid"]
    give_back(still, tmp_path, pool)


def test_new_labels_of_a_pool_replace_the_old_ones_on_its_node(
    still: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str
) -> None:
    old = working_node(still, control_plane, tmp_path, pool)
    with sdk(still, tmp_path) as aks:
        relabelled = gpu_pool(node_labels={"team": "vision"})
        aks.agent_pools.begin_create_or_update(*WHERE, pool, relabelled, polling=False)
    still.advance(1)
    (new,) = nodes(control_plane, pool)
    gone = {"kaito.sh/claim-uid", "kaito.sh/workspace"}
    kept = {key: value for key, value in old["metadata"]["labels"].items() if key not in gone}
    assert new["metadata"]["labels"] == {**kept, "team": "vision"}
    assert new["metadata"]["uid"] == old["metadata"]["uid"]
    give_back(still, tmp_path, pool)


def test_a_stopped_pool_has_no_node_and_a_started_one_has_another(
    still: Emulator, control_plane: ControlPlane, tmp_path: Path, pool: str
) -> None:
    old = working_node(still, control_plane, tmp_path, pool)
    still.pools.change(pool, powerState={"code": "Stopped"})
    still.advance(5)
    assert (state(still, pool), nodes(control_plane, pool)) == ("Succeeded", [])
    still.pools.change(pool, powerState={"code": "Running"})
    still.settle()
    still.advance(5)
    (new,) = nodes(control_plane, pool)
    assert new["metadata"]["name"] != old["metadata"]["name"]
    assert new["spec"]["providerID"] != old["spec"]["providerID"]
    assert complete(new)
    give_back(still, tmp_path, pool)
