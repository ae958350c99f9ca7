"""Whom the Pods of a Workspace may talk to."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from tests.unit.workspace.worlds import SmallWorld, tuning_object, workspace_object

from kaito_hooks.artifacts.errors import RefusedSource
from kaito_hooks.artifacts.transfer.addresses import guard

Obj = dict[str, Any]


def egress(obj: Obj) -> list[Obj]:
    world = SmallWorld(obj)
    world.settle()
    found: list[Obj] = world.children["NetworkPolicy/phi"]["spec"]["egress"]
    return found


def allows(rules: list[Obj], address: str, port: int) -> bool:
    """Whether one of these rules lets a Pod connect to an address that is no Pod's."""
    return any(
        port in [p["port"] for p in rule.get("ports", [{"port": port}])]
        and any(_within(address, peer["ipBlock"]) for peer in rule.get("to", [EVERYWHERE]) if "ipBlock" in peer)
        for rule in rules
    )


EVERYWHERE = {"ipBlock": {"cidr": "0.0.0.0/0"}}


def _within(address: str, block: Obj) -> bool:
    found, network = ip_address(address), ip_network(block["cidr"])
    excepted = [ip_network(part) for part in block.get("except", ())]
    assert all(part.subnet_of(network) for part in excepted)  # type: ignore[arg-type]
    return found in network and not any(found in part for part in excepted)


@pytest.mark.parametrize("obj", [workspace_object(), tuning_object()], ids=["inference", "tuning"])
@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fe80::1", "fd00:ec2::254", "fd20:ce::254"],
)
def test_no_pod_may_ask_a_cloud_for_the_nodes_secrets(obj: Obj, address: str) -> None:
    assert not allows(egress(obj), address, 80)
    with pytest.raises(RefusedSource, match="a cloud's own services"):
        guard(["0.0.0.0/0", "::/0"], resolve=lambda host, port: [address])("data.example.com", 80)


@pytest.mark.parametrize("address", ["20.60.1.1", "10.0.0.9", "192.168.3.4", "2603:1030::1", "fd12:3456::1"])
def test_registries_of_the_world_and_of_ones_own_networks_are_open(address: str) -> None:
    assert allows(egress(workspace_object()), address, 443)


def test_the_resolvers_of_clouds_are_open() -> None:
    for address in ("168.63.129.16", "169.254.20.10"):
        assert allows(egress(workspace_object()), address, 53)


def test_a_registry_that_is_a_pod_of_any_namespace_is_open() -> None:
    [rule] = [rule for rule in egress(workspace_object()) if {"namespaceSelector": {}} in rule.get("to", ())]
    assert "ports" not in rule
