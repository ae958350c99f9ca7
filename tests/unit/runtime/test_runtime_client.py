from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.eventually import PATIENCE
from tests.unit.runtime.tiny_server import TinyServer, answer, stream

from kaito_hooks.runtime import (
    ApiError,
    Client,
    ConnectionFailed,
    Gone,
    LeadershipLost,
    Metrics,
    Resource,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
    WatchEvent,
)

THING = Resource(group="example.com", version="v1", plural="things", kind="Thing", namespaced=True)
NODE = Resource(group="", version="v1", plural="nodes", kind="Node", namespaced=False)


def test_paths_are_those_of_the_api() -> None:
    assert (
        THING.path(namespace="ns", name="a", subresource="status")
        == "/apis/example.com/v1/namespaces/ns/things/a/status"
    )
    assert THING.path() == "/apis/example.com/v1/things"
    assert NODE.path(name="n") == "/api/v1/nodes/n"
    assert (THING.api_version, NODE.api_version) == ("example.com/v1", "v1")


def test_a_namespaced_object_without_a_namespace_is_never_addressed() -> None:
    with pytest.raises(ValueError, match="no namespace was given"):
        THING.path(name="a")
    with pytest.raises(ValueError, match="empty name"):
        NODE.path(name="")


def test_a_name_cannot_leave_its_path_segment() -> None:
    assert NODE.path(name="../pods?x=1") == "/api/v1/nodes/..%2Fpods%3Fx%3D1"


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_says_when_to_come_back_and_is_not_tried_again_by_itself(tmp_path: Path, status: int) -> None:
    with TinyServer(answer(status, {"kind": "Status", "message": "busy"}, Retry_After="4")) as server:
        with pytest.raises((TooManyRequests, ServiceUnavailable)) as caught:
            server.client(tmp_path).get(NODE, "n")
        assert caught.value.retry_after == 4
        assert len(server.requests) == 1


def test_a_request_carries_the_token_the_user_agent_and_json(tmp_path: Path) -> None:
    with TinyServer(answer(201, {"metadata": {"name": "a"}})) as server:
        client = server.client(tmp_path, user_agent="kaito-test")
        client.create(THING, {"metadata": {"name": "ä", "namespace": "ns"}})
        (request,) = server.requests
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.headers["User-Agent"] == "kaito-test"
    assert request.headers["Content-Type"] == "application/json"
    assert request.json == {
        "apiVersion": "example.com/v1",
        "kind": "Thing",
        "metadata": {"name": "ä", "namespace": "ns"},
    }


def test_credentials_are_asked_for_once_and_again_when_they_are_refused(tmp_path: Path) -> None:
    """A plugin prints a new token, which has expired already, each time that it is run."""
    tokens, plugin = tmp_path / "tokens", tmp_path / "plugin"
    status = """{"token": "token-%d", "expirationTimestamp": "2020-01-01T00:00:00Z"}"""
    plugin.write_text(
        f"""#!/bin/sh
echo one >> {tokens}
printf '{{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {status}}}' \
  $(wc -l < {tokens})
"""
    )
    plugin.chmod(0o755)
    exec_plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    with TinyServer(answer(200, {})) as server:
        client = server.client(tmp_path, user={"exec": exec_plugin})
        for _ in range(3):
            client.get(NODE, "n")
        server.script = answer(401, {"kind": "Status", "message": "expired"})
        with pytest.raises(Unauthorized):
            client.get(NODE, "n")
        server.script = answer(200, {})
        client.get(NODE, "n")
        sent = [request.headers["authorization"] for request in server.requests]
    assert len(set(sent[:4])) == 1
    assert sent[4] != sent[0]


def test_nobody_listening_is_a_connection_failure(tmp_path: Path) -> None:
    with TinyServer(answer(200, {})) as server:
        client = server.client(tmp_path)
    with pytest.raises(ConnectionFailed) as caught:
        client.get(NODE, "n")
    assert caught.value.status == 0


def test_a_server_that_never_answers_costs_the_timeout_and_no_more(tmp_path: Path) -> None:
    with TinyServer(lambda handler: server.finished.wait(2 * PATIENCE) and None) as server:
        began = time.monotonic()
        with pytest.raises(ConnectionFailed, match="no answer in time"):
            server.client(tmp_path, timeout=0.5).get(NODE, "n")
        assert time.monotonic() - began < PATIENCE


def test_an_answer_that_drips_in_costs_the_timeout_and_no_more(tmp_path: Path) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not server.finished.wait(0.05):
            handler.wfile.write(b" ")

    with TinyServer(drip) as server:
        began = time.monotonic()
        with pytest.raises(ConnectionFailed, match="no answer in time"):
            server.client(tmp_path, timeout=0.5).get(NODE, "n")
        assert time.monotonic() - began < PATIENCE


def test_a_host_that_does_not_accept_costs_the_connect_timeout_and_no_more(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):  # fill the backlog: further connection attempts get no answer at all
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
            waiting.append(one)
        with TinyServer(answer(200, {})) as server:
            server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            client = server.client(tmp_path, timeout=0.5)
        began = time.monotonic()
        with pytest.raises(ConnectionFailed):
            client.get(NODE, "n")
        assert time.monotonic() - began < PATIENCE
        for one in waiting:
            one.close()


@pytest.mark.parametrize("body", [b"", b"<html>a login page</html>"], ids=["nothing", "a web page"])
def test_a_success_that_is_not_json_is_an_error(tmp_path: Path, body: bytes) -> None:
    with TinyServer(answer(200, body)) as server, pytest.raises(ApiError, match="not JSON"):
        server.client(tmp_path).get(NODE, "n")


def test_an_answer_that_breaks_off_is_a_connection_failure(tmp_path: Path) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b'{"metadata":')
        handler.close_connection = True

    with TinyServer(half) as server, pytest.raises(ConnectionFailed):
        server.client(tmp_path).get(NODE, "n")


def test_a_list_is_read_page_by_page_and_its_items_say_their_kind(tmp_path: Path) -> None:
    def pages(handler: BaseHTTPRequestHandler) -> None:
        if "continue=more" in handler.path:
            body: Any = {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "b"}}]}
        else:
            body = {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [{"metadata": {"name": "a"}}]}
        answer(200, body)(handler)

    with TinyServer(pages) as server:
        found = server.client(tmp_path).list(NODE, page_size=1)
        assert [obj["metadata"]["name"] for obj in found.items] == ["a", "b"]
        assert {(obj["apiVersion"], obj["kind"]) for obj in found.items} == {("v1", "Node")}
        assert found.resource_version == "7"
        assert ["limit=1" in request.path for request in server.requests] == [True, True]


def test_a_list_whose_pages_expire_starts_over_and_mixes_no_states(tmp_path: Path) -> None:
    def pages(handler: BaseHTTPRequestHandler) -> None:
        if "continue=" in handler.path:
            answer(410, {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})(handler)
        elif "limit=" in handler.path:
            meta = {"resourceVersion": "7", "continue": "more"}
            answer(200, {"metadata": meta, "items": [{"metadata": {"name": "old"}}]})(handler)
        else:
            items = [{"metadata": {"name": "new"}}]
            answer(200, {"metadata": {"resourceVersion": "9"}, "items": items})(handler)

    with TinyServer(pages) as server:
        found = server.client(tmp_path).list(NODE)
    assert [obj["metadata"]["name"] for obj in found.items] == ["new"]
    assert found.resource_version == "9"


def test_a_fenced_client_reads_but_does_not_write(tmp_path: Path) -> None:
    def closed() -> float:
        raise LeadershipLost("somebody else leads")

    with TinyServer(answer(200, {"metadata": {"name": "n"}})) as server:
        client = server.client(tmp_path).fenced(closed)
        client.get(NODE, "n")
        node = {"metadata": {"name": "n", "resourceVersion": "1"}}
        for write in (
            lambda: client.create(NODE, node),
            lambda: client.update(NODE, node, subresource="status"),
            lambda: client.apply(NODE, node, field_manager="me"),
            lambda: client.patch(NODE, "n", {}),
            lambda: client.delete(NODE, "n"),
        ):
            with pytest.raises(LeadershipLost):
                write()
        assert [request.method for request in server.requests] == ["GET"]


def test_a_write_is_given_no_more_time_than_the_lease_has_left(tmp_path: Path) -> None:
    with TinyServer(lambda handler: server.finished.wait(2 * PATIENCE) and None) as server:
        client = server.client(tmp_path, timeout=2 * PATIENCE).fenced(lambda: 0.3)
        began = time.monotonic()
        with pytest.raises(ConnectionFailed):
            client.patch(NODE, "n", {})
        assert time.monotonic() - began < PATIENCE


def test_every_request_is_counted_under_client_gos_name(tmp_path: Path) -> None:
    metrics = Metrics()
    with TinyServer(answer(404, {}, Connection="close")) as server:
        client = server.client(tmp_path)
        client.observe(metrics.observe_request)
        with pytest.raises(ApiError):
            client.get(NODE, "n")
        host = server.url.removeprefix("http://")
    with pytest.raises(ConnectionFailed):
        client.get(NODE, "n")
    value = metrics.registry.get_sample_value
    assert value("rest_client_requests_total", {"code": "404", "method": "GET", "host": host}) == 1
    assert value("rest_client_requests_total", {"code": "<error>", "method": "GET", "host": host}) == 1


def line(kind: str, name: str, version: str) -> bytes:
    return (
        json.dumps({"type": kind, "object": {"metadata": {"name": name, "resourceVersion": version}}}).encode() + b"\n"
    )


def watch(client: Client, **settings: Any) -> list[WatchEvent]:
    return list(client.watch(NODE, resource_version="1", timeout_seconds=60, **settings))


@pytest.mark.parametrize("size", [1, 7, 64, 100000], ids=lambda size: f"{size} bytes at a time")
def test_a_watch_reads_its_lines_however_they_are_cut(tmp_path: Path, size: int) -> None:
    data = line("ADDED", "a", "2") + line("MODIFIED", "ä" * 50, "3") + b"\n" + line("BOOKMARK", "", "9")
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    with TinyServer(stream(*chunks)) as server:
        events = watch(server.client(tmp_path))
    assert [(event.type, event.object["metadata"]["resourceVersion"]) for event in events] == [
        ("ADDED", "2"),
        ("MODIFIED", "3"),
        ("BOOKMARK", "9"),
    ]


@pytest.mark.parametrize(
    "script",
    [
        stream(line("ADDED", "a", "2"), ends=False),
        stream(line("ADDED", "a", "2") + b'{"type":"MOD', ends=False),
        stream(line("ADDED", "a", "2") + b'{"type":"MOD'),
        stream(line("ADDED", "a", "2"), b"no json\n"),
        stream(line("ADDED", "a", "2"), b'["no", "event"]\n'),
        stream(line("ADDED", "a", "2"), b'{"object": {}}\n'),
    ],
    ids=["no last chunk", "cut in a line", "ends in a line", "no json", "no object", "no type"],
)
def test_a_watch_that_does_not_end_in_order_says_so(tmp_path: Path, script: Any) -> None:
    with TinyServer(script) as server:
        events = server.client(tmp_path).watch(NODE, resource_version="1", timeout_seconds=60)
        assert next(events).type == "ADDED"
        with pytest.raises(ConnectionFailed, match="the watch"):
            next(events)


def test_an_expired_resource_version_within_a_watch_is_gone(tmp_path: Path) -> None:
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    expired = json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"
    with TinyServer(stream(expired)) as server, pytest.raises(Gone, match="too old"):
        watch(server.client(tmp_path))


def test_an_expired_resource_version_at_the_start_of_a_watch_is_gone(tmp_path: Path) -> None:
    expired = {"kind": "Status", "code": 410, "message": "too old"}
    with TinyServer(answer(410, expired)) as server, pytest.raises(Gone):
        watch(server.client(tmp_path))


def test_a_watch_that_falls_silent_is_dead(tmp_path: Path) -> None:
    def silent(handler: BaseHTTPRequestHandler) -> None:
        stream(line("ADDED", "a", "2"), ends=False)(handler)
        server.finished.wait(2 * PATIENCE)

    with TinyServer(silent) as server:
        began = time.monotonic()
        with pytest.raises(ConnectionFailed, match="fell silent"):
            watch(server.client(tmp_path), silence=0.4)
        assert time.monotonic() - began < PATIENCE


def test_a_watch_can_be_closed_from_another_thread_while_it_waits(tmp_path: Path) -> None:
    def silent(handler: BaseHTTPRequestHandler) -> None:
        stream(line("ADDED", "a", "2"), ends=False)(handler)
        server.finished.wait(2 * PATIENCE)

    with TinyServer(silent) as server:
        events = server.client(tmp_path).watch(NODE, resource_version="1", timeout_seconds=60, silence=2 * PATIENCE)
        assert next(events).type == "ADDED"
        rest: list[WatchEvent] = []
        reader = threading.Thread(target=lambda: rest.extend(events), daemon=True)
        reader.start()
        events.close()
        reader.join(PATIENCE)
        assert not reader.is_alive()
        assert rest == []


def test_no_configuration_at_all_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="no usable Kubernetes configuration"):
        Client.load(kubeconfig=str(tmp_path / "absent"))
