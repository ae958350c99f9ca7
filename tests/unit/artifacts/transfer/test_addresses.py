"""Which addresses training data is downloaded from."""

from __future__ import annotations

import ipaddress

import pytest

from kaito_hooks.artifacts.errors import RefusedSource
from kaito_hooks.artifacts.transfer import addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "::10.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::10.0.0.1",
        "2002:a00:1::",
        "fec0::1",
        "192.0.0.9",
    ],
)
def test_private_addresses_are_refused(address: str) -> None:
    check = addresses.guard([], resolve=lambda host, port: [address])
    with pytest.raises(RefusedSource, match="allowedPrivateCIDRs"):
        check("data.example.com", 443)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fe80::1",
        "100.100.100.200",
        "192.0.0.192",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b::a83f:8110",
        "2002:a9fe:a9fe::",
    ],
)
def test_a_cloud_s_own_services_are_refused_whatever_is_allowed(address: str) -> None:
    check = addresses.guard(["0.0.0.0/0", "::/0"], resolve=lambda host, port: [address])
    with pytest.raises(RefusedSource, match="never downloaded from"):
        check("data.example.com", 80)


def test_an_address_behind_a_gateway_is_judged_by_where_it_leads() -> None:
    check = addresses.guard(["10.1.0.0/16"], resolve=lambda host, port: [host])
    for public in ("64:ff9b::8.8.8.8", "2002:808:808::1", "64:ff9b::10.1.2.3"):
        assert check(public, 443) == str(ipaddress.ip_address(public))
    assert check("::ffff:8.8.8.8", 443) == "8.8.8.8"
    with pytest.raises(RefusedSource, match=r"private address 10\.2\.0\.1"):
        check("64:ff9b::10.2.0.1", 443)


def test_a_name_without_an_address_is_told() -> None:
    with pytest.raises(RefusedSource, match="has no address"):
        addresses.guard([], resolve=lambda host, port: [])("data.example.com", 443)


def test_public_addresses_and_allowed_networks_are_not_refused() -> None:
    check = addresses.guard(["10.1.0.0/16", "fd00::/8"], resolve=lambda host, port: [host])
    assert check("8.8.8.8", 80) == "8.8.8.8"
    assert check("10.1.2.3", 80) == "10.1.2.3"
    assert check("fd00::1", 80) == "fd00::1"
    with pytest.raises(RefusedSource):
        check("10.2.0.1", 80)


def test_a_network_that_is_none_is_told() -> None:
    with pytest.raises(RefusedSource, match="no CIDR"):
        addresses.guard(["10.0.0.1/8"])
