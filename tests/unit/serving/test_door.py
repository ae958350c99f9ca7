"""A real HAProxy in front of applications on sockets: who gets which request, and what it says by itself."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import UnixStreamServer

import httpx
import pytest
from tests.eventually import eventually

from kaito_local.machine.ports import free_ports
from kaito_serving.errors import ServerFailed
from kaito_serving.run.door import Door, configuration


class App(BaseHTTPRequestHandler):
    """Answers with its name and who asked, /health with the server's status; a dying one answers /health alone."""

    protocol_version = "HTTP/1.1"
    server: Listening

    def do_GET(self) -> None:
        if self.server.dying and self.path != "/health":
            self.close_connection = True
            return
        if self.path != "/health":
            self.server.asked += 1
            self.server.may_answer.wait(60.0)
        status = self.server.status if self.path == "/health" else 200
        body = json.dumps({"name": self.server.name, "for": self.headers.get_all("x-forwarded-for")}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def address_string(self) -> str:
        return ""


class Listening(UnixStreamServer, ThreadingHTTPServer):
    """An application named `name` on a socket; it has been asked so often, and answers when it may."""

    def __init__(self, path: Path, *, dying: bool) -> None:
        self.name, self.status, self.dying = path.stem, 200, dying
        self.asked, self.may_answer = 0, threading.Event()
        self.may_answer.set()
        self.path = path
        super().__init__(str(path), App)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def server_bind(self) -> None:
        UnixStreamServer.server_bind(self)
        self.server_name, self.server_port = "", 0

    def end(self) -> None:
        self.path.unlink(missing_ok=True)
        self.shutdown()
        self.server_close()


class House:
    """A door over three places for replicas, and the application that speaks for all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = [folder / f"replica-{number}.sock" for number in range(3)]
        [self.port] = free_ports(1)
        self.open: list[Listening] = []
        self.state = self.listen(folder / "state.sock")
        self.door = self.make_door()

    def make_door(self, folder: Path | None = None, host: str = "127.0.0.1") -> Door:
        folder = folder or self.folder
        settings = configuration(
            host=host,
            port=self.port,
            state=self.state.path,
            replicas=self.places,
            longest=60.0,
            unavailable=Door.unavailable(folder),
            control=Door.control(folder),
            threads=1,
        )
        return Door(folder, settings, host=host, port=self.port)

    def listen(self, path: Path, *, dying: bool = False) -> Listening:
        self.open.append(Listening(path, dying=dying))
        return self.open[-1]

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=60.0)

    def name(self, path: str = "/chat") -> str:
        return str(self.get(path).json()["name"])

    def routed(self, count: int) -> None:
        """Wait until requests go to `count` replicas."""
        eventually(lambda: self.door.routed() == count, what=lambda: f"{self.door.routed()} instead of {count}")


@pytest.fixture
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="ks-", dir="/tmp") as folder:  # a socket's path may have 107 bytes
        made = House(Path(folder))
        made.door.open()
        yield made
        made.door.close()
        for each in made.open:
            each.end()


def test_without_replicas_every_request_goes_to_whoever_speaks_for_them(house):
    for path in ("/", "/health", "/chat", "/v1/models", "/metrics"):
        assert house.name(path) == "state"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_pod_of_either_family_of_addresses_is_asked(house):
    house.door.close()
    house.door = house.make_door(host="")
    house.door.open()
    for host in ("127.0.0.1", "[::1]"):
        assert httpx.get(f"http://{host}:{house.port}/health", timeout=60.0).json()["name"] == "state"


def test_replicas_share_the_requests_and_the_state_is_told_for_all_of_them(house):
    house.listen(house.places[0])
    house.listen(house.places[2])
    house.routed(2)
    assert {house.name() for _ in range(8)} == {"replica-0", "replica-2"}
    for path in ("/", "/health", "/healthz", "/progress", "/metrics", "/metrics/prometheus", "/openapi.json"):
        assert house.name(path) == "state"


def test_a_probe_that_waits_is_held_until_the_state_answers(house):
    house.listen(house.places[0])
    house.routed(1)
    house.state.may_answer.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(house.name, "/health?wait=50")
        eventually(lambda: house.state.asked == 1)
        assert not waiting.done()
        house.state.may_answer.set()
        assert waiting.result() == "state"


def test_a_replica_that_is_not_well_gets_no_requests(house):
    replica = house.listen(house.places[0])
    house.routed(1)
    replica.status = 500
    eventually(lambda: house.name() == "state")
    assert house.door.routed() == 0
    replica.status = 200
    house.routed(1)
    assert house.name() == "replica-0"


def test_a_request_that_finds_its_replica_gone_is_answered_by_another_at_once(house):
    replica = house.listen(house.places[0])
    house.routed(1)
    replica.end()
    assert [house.name() for _ in range(20)] == ["state"] * 20


def test_a_replica_that_dies_under_a_request_costs_it_503_in_both_shapes(house):
    house.listen(house.places[0], dying=True)
    house.routed(1)
    answer = house.get("/chat")
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, "5"), answer.text
    assert answer.json()["detail"] == answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "service_unavailable_error"


def test_clients_cannot_say_who_they_are(house):
    house.listen(house.places[0])
    house.routed(1)
    assert house.get("/chat", **{"x-forwarded-for": "8.8.8.8"}).json()["for"] == ["127.0.0.1"]


def test_a_haproxy_that_died_is_started_again(house):
    killed = house.door.pid
    assert not house.door.keep_open()
    subprocess.run(["kill", "-9", str(killed)], check=True)
    eventually(house.door.keep_open)
    assert house.door.pid != killed
    assert house.name() == "state"


def test_a_port_that_is_taken_is_said_in_a_sentence(house):
    said = rf"^The server cannot listen on 127\.0\.0\.1:{house.port}: .*in use"
    with tempfile.TemporaryDirectory(prefix="ks-", dir="/tmp") as other, pytest.raises(ServerFailed, match=said):
        house.make_door(Path(other)).open()


def test_a_draining_door_answers_and_sends_clients_away_with_the_answer(house):
    house.listen(house.places[0])
    house.routed(1)
    with httpx.Client(base_url=f"http://127.0.0.1:{house.port}", timeout=60.0) as client:
        assert client.get("/chat").headers.get("connection") != "close"
        house.door.drain()
        for _ in range(2):
            answer = client.get("/chat")
            assert (answer.json()["name"], answer.headers.get("connection")) == ("replica-0", "close")


def test_a_door_that_stops_listening_finishes_what_runs_and_closes_what_is_idle(house):
    replica = house.listen(house.places[0])
    house.routed(1)
    with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", house.port), timeout=60.0) as idle:
        idle.sendall(b"GET /chat HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in idle.recv(4096)
        replica.may_answer.clear()
        running = pool.submit(house.name)
        eventually(lambda: replica.asked == 2)
        house.door.stop_listening()
        while idle.recv(4096):
            pass
        with pytest.raises(httpx.ConnectError):
            house.get("/chat")
        replica.may_answer.set()
        assert running.result(60.0) == "replica-0"


def test_a_closed_door_takes_no_connections(house):
    began = time.monotonic()
    house.door.close()
    with pytest.raises(httpx.ConnectError):
        house.get("/")
    assert time.monotonic() - began < 60
