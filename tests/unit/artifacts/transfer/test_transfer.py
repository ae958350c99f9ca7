"""Downloads over a network that breaks: resumed, bounded, verified."""

from __future__ import annotations

import random
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kaito_hooks.artifacts.errors import AccessDenied, ArtifactNotFound, Unreachable
from kaito_hooks.artifacts.transfer.http import Patience, Transfer, follow

BODY = bytes(range(256)) * 4096
Answer = Callable[[BaseHTTPRequestHandler, int], None]


class Server:
    """Answers the n-th request (from 0) as the test says."""

    def __init__(self) -> None:
        self.answer: Answer = whole
        self.requests: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = len(outer.requests)
                outer.requests.append(dict(self.headers))
                outer.answer(self, number)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/blob"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def send(handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, length: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def whole(handler: BaseHTTPRequestHandler, number: int) -> None:
    send(handler, BODY)


def start_of(handler: BaseHTTPRequestHandler) -> int:
    return int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def transfer() -> Transfer:
    return Transfer(
        tls=ssl.create_default_context(),
        patience=Patience(connect=2, read=2, tries=3),
        sleep=lambda seconds: None,
        rng=random.Random(1),
    )


def test_a_broken_download_continues_where_it_broke(server: Server, transfer: Transfer) -> None:
    def break_twice(handler: BaseHTTPRequestHandler, number: int) -> None:
        start = start_of(handler)
        rest = BODY[start:]
        send(handler, rest if number == 2 else rest[:100_000], status=206 if start else 200, length=len(rest))

    server.answer = break_twice
    assert b"".join(transfer.stream(server.url, headers={}, size=len(BODY))) == BODY
    assert [r.get("Range") for r in server.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_without_ranges_is_skipped_forward(server: Server, transfer: Transfer) -> None:
    def break_once(handler: BaseHTTPRequestHandler, number: int) -> None:
        send(handler, BODY if number else BODY[:123_456], length=len(BODY))

    server.answer = break_once
    assert b"".join(transfer.stream(server.url, headers={}, size=len(BODY))) == BODY


def version_of(headers: dict[str, str], body: bytes) -> Answer:
    """A file of which the first answer breaks off; it honours If-Range for the version that these headers name."""

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        condition = handler.headers.get("If-Range")
        start = start_of(handler) if condition in (None, *headers.values()) else 0
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[start:] if number else body[:100_000])

    return answer


def then(first: Answer, later: Answer) -> Answer:
    return lambda handler, number: (later if number else first)(handler, number)


MONDAY, TUESDAY = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"
OTHER = BODY[::-1]


def ignores_conditions(headers: dict[str, str], body: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        del handler.headers["If-Range"]
        version_of(headers, body)(handler, number)

    return answer


@pytest.mark.parametrize(
    ("answer", "body", "ranges"),
    [
        (version_of({"ETag": '"1"'}, BODY), BODY, [None, "bytes=100000-"]),
        (version_of({"Last-Modified": MONDAY}, BODY), BODY, [None, "bytes=100000-"]),
        (version_of({"ETag": 'W/"1"'}, BODY), BODY, [None, None]),
        (version_of({}, BODY), BODY, [None, None]),
        (then(version_of({"ETag": '"1"'}, BODY), version_of({"ETag": '"2"'}, OTHER)), OTHER, [None, "bytes=100000-"]),
        (then(version_of({}, BODY), version_of({}, OTHER)), OTHER, [None, None]),
        (
            then(version_of({"ETag": '"1"'}, BODY), ignores_conditions({"ETag": '"2"'}, OTHER)),
            OTHER,
            [None, "bytes=100000-", None],
        ),
        (
            then(version_of({"Last-Modified": MONDAY}, BODY), ignores_conditions({"Last-Modified": TUESDAY}, OTHER)),
            OTHER,
            [None, "bytes=100000-", None],
        ),
    ],
    ids=["etag", "date", "weak etag", "no version", "changed", "changed without a word", "no conditions", "nor dates"],
)
def test_only_parts_of_one_version_are_put_together(
    server: Server, transfer: Transfer, answer: Answer, body: bytes, ranges: list[str | None]
) -> None:
    server.answer = answer
    found = bytearray()
    for chunk in transfer.stream(server.url, headers={}, size=None, restart=found.clear):
        found += chunk
    assert found == body
    assert [request.get("Range") for request in server.requests] == ranges
    assert [request.get("If-Range") is not None for request in server.requests] == [r is not None for r in ranges]


def test_a_file_whose_rest_is_refused_begins_anew(server: Server, transfer: Transfer) -> None:
    def refuse_ranges(handler: BaseHTTPRequestHandler, number: int) -> None:
        if "Range" in handler.headers:
            send(handler, b"", status=416)
        else:
            version_of({"ETag": '"1"'}, BODY)(handler, number)

    server.answer = refuse_ranges
    found = bytearray()
    for chunk in transfer.stream(server.url, headers={}, size=None, restart=found.clear):
        found += chunk
    assert found == BODY


def test_a_file_that_always_breaks_off_where_it_did_is_given_up(server: Server, transfer: Transfer) -> None:
    server.answer = lambda handler, number: send(handler, BODY[:1000], length=len(BODY))
    with pytest.raises(Unreachable, match="broke off"):
        b"".join(transfer.stream(server.url, headers={}, size=None, restart=lambda: None))
    assert len(server.requests) == transfer.patience.tries


def test_a_download_that_makes_progress_is_never_given_up(server: Server, transfer: Transfer) -> None:
    def crumbs(handler: BaseHTTPRequestHandler, number: int) -> None:
        start = start_of(handler)
        send(handler, BODY[start : start + 60_000], status=206 if start else 200, length=len(BODY) - start)

    server.answer = crumbs
    assert b"".join(transfer.stream(server.url, headers={}, size=len(BODY))) == BODY
    assert len(server.requests) > transfer.patience.tries


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_tried_again_and_then_given_up(server: Server, transfer: Transfer, status: int) -> None:
    server.answer = lambda handler, number: send(handler, b"", status=status)
    with pytest.raises(Unreachable, match=f"answered {status}"):
        b"".join(transfer.stream(server.url, headers={}, size=10))
    assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "error"), [(401, AccessDenied), (403, AccessDenied), (404, ArtifactNotFound)])
def test_a_refusal_is_final(server: Server, transfer: Transfer, status: int, error: type[Exception]) -> None:
    server.answer = lambda handler, number: send(handler, b"", status=status)
    with pytest.raises(error):
        b"".join(transfer.stream(server.url, headers={}, size=10))
    assert len(server.requests) == 1


def test_retry_after_is_honoured(server: Server) -> None:
    waited: list[float] = []

    def busy_once(handler: BaseHTTPRequestHandler, number: int) -> None:
        if number:
            send(handler, BODY)
            return
        handler.send_response(503)
        handler.send_header("Retry-After", "17")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answer = busy_once
    transfer = Transfer(tls=ssl.create_default_context(), sleep=waited.append)
    assert b"".join(transfer.stream(server.url, headers={}, size=len(BODY))) == BODY
    assert waited == [17.0]


def test_credentials_do_not_follow_a_redirect_to_another_host(server: Server, transfer: Transfer) -> None:
    storage = Server()
    try:

        def redirect(handler: BaseHTTPRequestHandler, number: int) -> None:
            handler.send_response(307)
            handler.send_header("Location", storage.url)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        server.answer = redirect
        headers = {"Authorization": "Bearer secret"}
        assert b"".join(transfer.stream(server.url, headers=headers, size=len(BODY))) == BODY
        assert "Authorization" in server.requests[0]
        assert "Authorization" not in storage.requests[0]
    finally:
        storage.http.shutdown()
        storage.http.server_close()


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/b?x=1", "https://a.example.com/b?x=1"),
        ("b", "https://a.example.com/v2/b"),
        ("//c.example.com/b", "https://c.example.com/b"),
        ("https://c.example.com/b", "https://c.example.com/b"),
    ],
)
def test_a_location_is_read_as_seen_from_where_it_was_given(location: str, leads_to: str) -> None:
    assert follow("https://a.example.com/v2/a", location) == leads_to


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://a.example.com/b", "without TLS"),
        ("HTTP://c.example.com/b", "without TLS"),
        ("ftp://c.example.com/b", "no http or https"),
        ("https://[", "no http or https"),
    ],
)
def test_a_location_that_gives_up_tls_or_is_none_is_not_followed(location: str, says: str) -> None:
    for url in ("https://a.example.com/v2/a", "HTTPS://a.example.com/v2/a"):
        with pytest.raises(Unreachable, match=says):
            follow(url, location)


def test_nobody_listening_is_told_without_the_path(transfer: Transfer, server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:\d+") as refused:
        transfer.get(server.url + "?token=secret", headers={}, limit=10)
    assert "secret" not in str(refused.value)
