from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request

import pytest
from tests.eventually import PATIENCE
from tests.slow_clients import ask_byte_by_byte

from kaito_hooks.runtime import Metrics, http_server
from kaito_hooks.runtime.manager.endpoints import Check, Endpoints, health_page, metrics_page

ON_IPV6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


def fetch(port: int, path: str, host: str = "127.0.0.1", **headers: str) -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://{host}:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def raises() -> str | None:
    raise RuntimeError("the check is broken")


@pytest.mark.parametrize(
    ("checks", "status", "body"),
    [
        ({}, 200, "ok\n"),
        ({"a": lambda: None}, 200, "ok\n"),
        ({"a": lambda: None, "b": lambda: "is deaf", "c": lambda: "too"}, 503, "b: is deaf\nc: too\n"),
        ({"a": raises}, 503, "a: the check itself failed: the check is broken\n"),
    ],
    ids=["no checks", "well", "ill", "broken check"],
)
def test_health_is_200_or_a_503_that_says_why(checks: dict[str, Check], status: int, body: str) -> None:
    endpoints = Endpoints("127.0.0.1", 0, {"/healthz": health_page(lambda: checks)})
    try:
        found = fetch(endpoints.port, "/healthz?verbose")
        assert (found[0], found[2]) == (status, body)
        assert fetch(endpoints.port, "/other")[0] == 404
    finally:
        endpoints.close()


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=ON_IPV6)])
def test_a_pod_of_either_family_of_addresses_is_asked(host: str) -> None:
    """The kubelet asks a Pod of an IPv6 cluster at its IPv6 address, and it has no other."""
    endpoints = Endpoints("", 0, {"/healthz": health_page(dict)})
    try:
        assert fetch(endpoints.port, "/healthz", host)[0] == 200
    finally:
        endpoints.close()


@ON_IPV6
def test_an_address_that_is_named_is_the_only_one() -> None:
    endpoints = Endpoints("::1", 0, {"/healthz": health_page(dict)})
    try:
        assert fetch(endpoints.port, "/healthz", "[::1]")[0] == 200
        with pytest.raises(urllib.error.URLError, match="refused"):
            fetch(endpoints.port, "/healthz")
    finally:
        endpoints.close()


def test_metrics_come_in_the_format_that_the_scraper_asks_for() -> None:
    metrics = Metrics()
    metrics.leader.labels("kaito").set(1)
    endpoints = Endpoints("127.0.0.1", 0, {"/metrics": metrics_page(metrics.registry)})
    try:
        _, plain, body = fetch(endpoints.port, "/metrics")
        assert plain.startswith("text/plain")
        assert 'leader_election_master_status{name="kaito"} 1.0' in body
        assert "process_resident_memory_bytes" in body
        _, modern, body = fetch(endpoints.port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert modern.startswith("application/openmetrics-text")
        assert body.endswith("# EOF\n")
    finally:
        endpoints.close()


def test_who_asks_byte_by_byte_has_no_thread_of_a_controller_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LONGEST_SECONDS", 0.3)
    endpoints = Endpoints("127.0.0.1", 0, {"/healthz": health_page(dict)})
    try:
        ask_byte_by_byte(endpoints.port, b"GET /healthz HTTP/1.1\r\nX: ")
    finally:
        endpoints.close()


def test_head_is_answered_as_get_without_the_body() -> None:
    endpoints = Endpoints("127.0.0.1", 0, {"/healthz": health_page(dict)})
    try:
        connection = http.client.HTTPConnection("127.0.0.1", endpoints.port, timeout=PATIENCE)
        connection.request("HEAD", "/healthz")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "3", b"")
        connection.close()
    finally:
        endpoints.close()


def test_a_taken_port_is_an_error_of_the_operating_system() -> None:
    endpoints = Endpoints("127.0.0.1", 0, {})
    try:
        with pytest.raises(OSError, match="in use"):
            Endpoints("127.0.0.1", endpoints.port, {})
    finally:
        endpoints.close()
