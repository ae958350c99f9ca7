"""What a server of probes, scrapes and progress bears."""

from __future__ import annotations

import http.client
import logging
import socket
import struct
from collections.abc import Iterator
from email.message import Message
from urllib.parse import SplitResult

import pytest
from tests.eventually import PATIENCE, eventually
from tests.slow_clients import answering, ask_byte_by_byte, threads_of_silent_clients

from kaito_hooks.runtime import http_server
from kaito_hooks.runtime.http_server import BoundedHTTPServer, Page

BODY = b"all is well\n"


def page(url: SplitResult, headers: Message[str, str]) -> Page:
    if url.path == "/broken":
        raise RuntimeError("a fault of ours")
    return Page(200 if url.path == "/" else 404, "text/plain", BODY, {"X-Asked": url.query})


@pytest.fixture
def server() -> Iterator[BoundedHTTPServer]:
    running = BoundedHTTPServer("127.0.0.1", 0, page)
    yield running
    running.close()


def ask(port: int, method: str, path: str, *, host: str = "127.0.0.1") -> tuple[int, Message, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_get_and_head_have_the_same_headers_and_head_has_no_body(server: BoundedHTTPServer) -> None:
    status, headers, body = ask(server.port, "GET", "/?history=1")
    assert (status, headers["Content-Type"], headers["X-Asked"], body) == (200, "text/plain", "history=1", BODY)
    status, headers, body = ask(server.port, "HEAD", "/?history=1")
    assert (status, headers["Content-Length"], body) == (200, str(len(BODY)), b"")


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_nothing_can_be_sent(server: BoundedHTTPServer, method: str) -> None:
    assert ask(server.port, method, "/")[0] == 501


def test_who_breaks_off_or_asks_nonsense_leaves_nothing_in_the_log(
    server: BoundedHTTPServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as asking:
        asking.sendall(b"GET http://[ HTTP/1.1\r\n\r\n")
        assert asking.recv(100).startswith(b"HTTP/1.1 400 ")
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends with a reset
            asking.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert ask(server.port, "GET", "/")[0] == 200
    eventually(lambda: not answering())
    assert not capfd.readouterr().err
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_a_fault_of_our_own_is_in_the_log_and_the_next_one_is_answered(
    server: BoundedHTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(http.client.HTTPException):
        ask(server.port, "GET", "/broken")
    assert ask(server.port, "GET", "/")[0] == 200
    eventually(lambda: any(record.levelno == logging.WARNING and record.exc_info for record in caplog.records))


def test_however_many_connect_and_say_nothing_others_are_answered_and_threads_are_few(
    server: BoundedHTTPServer,
) -> None:
    most = threads_of_silent_clients(server.port, count=400, meanwhile=lambda: ask(server.port, "GET", "/")[2])
    assert most <= 2 * http_server.MOST_CONNECTIONS


@pytest.mark.parametrize("begin", [b"G", b"GET / HTTP/1.1\r\nX: "], ids=["the request", "a header"])
def test_who_asks_byte_by_byte_is_not_listened_to_for_ever(
    server: BoundedHTTPServer, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "LONGEST_SECONDS", 0.3)
    ask_byte_by_byte(server.port, begin)


def test_nobody_is_answered_after_the_end(server: BoundedHTTPServer) -> None:
    other = BoundedHTTPServer("127.0.0.1", 0, page)
    connection = http.client.HTTPConnection("127.0.0.1", other.port, timeout=PATIENCE)
    connection.auto_open = 0
    connection.connect()
    connection.request("GET", "/")
    assert connection.getresponse().read() == BODY
    other.close()
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.request("GET", "/")
    connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_without_an_address_it_listens_on_all_of_ipv4_and_ipv6(host: str) -> None:
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    running = BoundedHTTPServer("", 0, page)
    try:
        assert ask(running.port, "GET", "/", host=host)[2] == BODY
    finally:
        running.close()


def test_a_taken_port_is_an_error_of_the_operating_system(server: BoundedHTTPServer) -> None:
    with pytest.raises(OSError, match="in use"):
        BoundedHTTPServer("127.0.0.1", server.port, page)
