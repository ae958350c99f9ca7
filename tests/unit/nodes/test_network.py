"""Addresses of clusters that share a machine."""

from __future__ import annotations

import ipaddress

import pytest

from kaito_local.errors import MissingPrerequisite
from kaito_local.machine.network import LAST_NODE_INDEX, SLOTS, Network, choose_network, conflict


def test_the_first_cluster_has_the_documented_addresses() -> None:
    network = Network(0)
    assert network.cidrs == ("172.31.77.0/24", "10.244.0.0/16", "10.96.0.0/16")
    assert (network.gateway, network.host, network.dns) == ("172.31.77.1", "172.31.77.254", "10.96.0.10")
    assert network.node_ip(1) == "172.31.77.11"
    assert network.node_pod_cidr(1) == "10.244.1.0/24"


def test_no_two_slots_overlap() -> None:
    cidrs = [ipaddress.ip_network(cidr) for slot in range(SLOTS) for cidr in Network(slot).cidrs]
    assert not [(a, b) for a in cidrs for b in cidrs if a is not b and a.overlaps(b)]


@pytest.mark.parametrize("slot", range(SLOTS))
def test_every_node_has_an_address_in_the_node_network_that_is_not_the_gateway_or_this_machine(slot: int) -> None:
    network = Network(slot)
    addresses = {network.node_ip(index) for index in range(1, LAST_NODE_INDEX + 1)}
    assert len(addresses) == LAST_NODE_INDEX
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network(network.node_cidr) for a in addresses)
    assert not addresses & {network.gateway, network.host}


@pytest.mark.parametrize("slot", range(SLOTS))
def test_link_names_fit_into_the_kernels_fifteen_characters(slot: int) -> None:
    network = Network(slot)
    assert all(len(name) <= 15 for name in (network.bridge, network.host_link, network.node_link(LAST_NODE_INDEX)))


@pytest.mark.parametrize(
    ("reserved", "used", "slot"),
    [
        pytest.param([], [], 0, id="nothing in the way"),
        pytest.param([0, 2], [], 1, id="another cluster's reservation"),
        pytest.param([], ["172.31.77.254/24"], 1, id="an address in the node network"),
        pytest.param([], ["10.240.0.0/13"], 4, id="a network around the Pods of several slots"),
        pytest.param([], ["10.96.5.7"], 1, id="a single host among the cluster IPs"),
        pytest.param([], ["192.0.2.0/24", "172.17.0.0/16"], 0, id="networks elsewhere"),
    ],
)
def test_the_first_slot_that_is_free_is_chosen(reserved: list[int], used: list[str], slot: int) -> None:
    assert choose_network(reserved_slots=reserved, in_use=used).slot == slot


def test_a_full_machine_is_said_in_a_sentence() -> None:
    with pytest.raises(MissingPrerequisite, match="no free addresses for a cluster"):
        choose_network(reserved_slots=range(SLOTS), in_use=[])


def test_a_conflict_names_both_ranges() -> None:
    said = conflict(Network(0), ["10.244.3.0/24"])
    assert said is not None
    assert "10.244.0.0/16" in said
    assert "10.244.3.0/24" in said


def test_a_proxy_of_this_machine_is_kept_out_and_its_own_exceptions_stay() -> None:
    network = Network(1)
    names = network.without_proxy({"NO_PROXY": "intranet.example,localhost"})["NO_PROXY"].split(",")
    assert names[:2] == ["intranet.example", "localhost"]
    assert {network.gateway, network.host, network.pod_cidr, network.service_cidr} <= set(names)
    assert len(names) == len(set(names))
    assert network.without_proxy({})["no_proxy"] == network.without_proxy({})["NO_PROXY"]
