"""Requests that go through a proxy, and those that do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.artifacts.fake_registry import FakeRegistry, basic

from kaito_hooks.artifacts.errors import ArtifactError, RefusedSource, Unreachable
from kaito_hooks.artifacts.transfer import addresses, download
from kaito_hooks.artifacts.transfer.http import Transfer
from kaito_hooks.artifacts.transfer.proxies import Proxies

PROXY = "http://proxy.example.com:3128"


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({"HTTPS_PROXY": PROXY}, PROXY),
        ({"https_proxy": PROXY}, PROXY),
        ({"HTTPS_PROXY": PROXY, "https_proxy": "http://other"}, PROXY),
        ({"HTTPS_PROXY": "proxy.example.com:3128"}, PROXY),
        ({"HTTP_PROXY": PROXY}, None),
        ({}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "other.example.com"}, PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "x, Example.com"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": ".example.com"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*.example.com"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "a.example.com"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": ".a.example.com"}, PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "ample.com"}, PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "a.example.com:443"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "a.example.com:5000"}, PROXY),
    ],
)
def test_the_environment_says_which_proxy_is_asked(environment: dict[str, str], proxy: str | None) -> None:
    assert Proxies.from_environment(environment).of("https://a.example.com/x") == proxy


@pytest.mark.parametrize(
    ("host", "direct"),
    [
        ("10.0.3.4", True),
        ("10.1.0.1", False),
        ("192.0.2.1", True),
        ("[fd00::5]:5000", True),
        ("[fd01::5]", False),
        ("127.0.0.1:5000", True),
        ("[::1]", True),
        ("localhost", True),
    ],
)
def test_networks_and_this_machine_are_asked_directly(host: str, direct: bool) -> None:
    proxies = Proxies.from_environment({"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/16,192.0.2.1,fd00::/16"})
    assert (proxies.of(f"http://{host}/x") is None) is direct


@pytest.mark.parametrize("text", ["socks5://me:hunter2@proxy", "http://", "http://["])
def test_a_proxy_that_is_no_url_is_told_without_its_password(text: str) -> None:
    with pytest.raises(ArtifactError, match="HTTPS_PROXY is no http or https URL") as refused:
        Proxies.from_environment({"HTTPS_PROXY": text})
    assert "hunter2" not in str(refused.value)


@pytest.fixture
def proxied(fake: FakeRegistry, transfer: Transfer) -> Transfer:
    """Through ``fake``, which answers for everybody."""
    proxy = f"http://me:s%40cret@{fake.host}"
    return replace(transfer, proxies=Proxies.from_environment({"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy}))


def test_a_request_goes_through_its_proxy_with_the_proxy_s_password(fake: FakeRegistry, proxied: Transfer) -> None:
    fake.paths["/x"] = (200, {}, b"found")
    status, _, body = proxied.get("http://data.invalid/x", headers={}, limit=10)
    assert (status, body) == (200, b"found")
    (request,) = fake.requests
    assert request.headers["Host"] == "data.invalid"
    assert request.headers["proxy-authorization"] == basic("me", "s@cret")


def test_tls_goes_through_a_tunnel_and_a_refused_one_is_told(fake: FakeRegistry, proxied: Transfer) -> None:
    with pytest.raises(Unreachable, match=r"https://data\.invalid does not answer: the proxy: .*502") as refused:
        proxied.get("https://data.invalid/x", headers={"Authorization": "Bearer secret"}, limit=10)
    assert {request.method for request in fake.requests} == {"CONNECT"}
    assert not any("Authorization" in request.headers for request in fake.requests)
    assert "cret" not in str(refused.value)


def test_a_proxy_is_not_asked_for_private_addresses(fake: FakeRegistry, proxied: Transfer, tmp_path: Path) -> None:
    """Names that nobody here knows are the proxy's to look up."""
    fake.paths["/f.csv"] = (200, {}, b"found")

    def resolve(host: str, port: int) -> list[str]:
        if host == "data.invalid":
            raise Unreachable(f"the name {host} cannot be resolved")
        return [host]

    guarded = replace(proxied, guard=addresses.guard([], resolve=resolve))
    for url in ("http://169.254.169.254/f.csv", "http://10.0.0.1/f.csv"):
        with pytest.raises(RefusedSource):
            download.fetch([url], transfer=guarded, destination=tmp_path)
    assert fake.requests == []
    download.fetch(["http://data.invalid/f.csv"], transfer=guarded, destination=tmp_path)
    assert (tmp_path / "f.csv").read_bytes() == b"found"
