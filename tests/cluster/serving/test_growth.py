"""What a server keeps of the requests that it had: nothing, whether their clients waited or not."""

from __future__ import annotations

import json
import random
import re
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psutil
import pytest
from tests.eventually import PATIENCE, eventually

USERS = 16
VANISHED = 1000
ASKED = 20_000
WARM_UP = 2000  # requests, after which whatever is made once has been made
# Bytes a request. The libraries' bounded caches still fill at a quarter of it; what the engine and the HTTP server hold
# of a request while it runs is a multiple.
KEPT = 2048
LONG = {"model": "tiny", "prompt": "What is a Pod?", "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(start_server, tiny_folder):
    running = start_server("--served_model_name", "tiny", weights=tiny_folder)
    running.wait_healthy()
    return running


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds: open files, threads, bytes of memory that it shares with no other process."""

    files: int
    threads: int
    memory: int

    @classmethod
    def of(cls, process: psutil.Process) -> Footprint:
        return cls(process.num_fds(), process.num_threads(), process.memory_full_info().uss)


def sent(url: httpx.URL, body: dict, *, part: float = 1.0) -> socket.socket:
    """A connection on which a request for a completion, or the first part of it, has been sent."""
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((url.host, url.port), timeout=PATIENCE)
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[: int(len(content) * part)])
    return connection


def reset(connection: socket.socket) -> None:
    """Close as a machine does whose process was killed with unread data: without a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def before_the_first_token(url: httpx.URL) -> None:
    reset(sent(url, {**LONG, "stream": True}))


def in_the_middle_of_a_stream(url: httpx.URL) -> None:
    connection = sent(url, {**LONG, "stream": True})
    came = b""
    while b"data: " not in came:
        came += connection.recv(4096)
        assert b" 200 OK" in came.splitlines()[0], came
    reset(connection)


def with_a_goodbye(url: httpx.URL) -> None:
    connection = sent(url, {**LONG, "stream": True})
    connection.recv(1)
    connection.close()


def while_a_whole_answer_is_computed(url: httpx.URL) -> None:
    reset(sent(url, {**LONG, "n": 2}))


def in_the_middle_of_the_body(url: httpx.URL) -> None:
    reset(sent(url, LONG, part=0.5))


VANISH: list[Callable[[httpx.URL], None]] = [
    before_the_first_token,
    in_the_middle_of_a_stream,
    with_a_goodbye,
    while_a_whole_answer_is_computed,
    in_the_middle_of_the_body,
]


def vanish(server, count: int) -> None:
    url = httpx.URL(server.url)
    with ThreadPoolExecutor(USERS) as pool:
        list(pool.map(lambda at: VANISH[at % len(VANISH)](url), range(count)))


def is_idle(server) -> bool:
    series = httpx.get(f"{server.url}/metrics/prometheus", timeout=PATIENCE).text
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    found = re.findall(rf"^vllm:({'|'.join(names)})\{{.*\}} (\S+)$", series, re.MULTILINE)
    assert sorted(name for name, _ in found) == sorted(names)
    return all(float(value) == 0 for _, value in found)


def test_a_thousand_vanished_clients_leave_nothing(server):
    replica = server.only("ServeReplica")
    vanish(server, 5 * USERS)
    eventually(lambda: is_idle(server))
    before = Footprint.of(replica)
    vanish(server, VANISHED)
    eventually(lambda: is_idle(server), what="requests of clients that are gone still run")

    # A connection for each user may be kept for the next request, and a thread for what they ask at the same time.
    def small() -> bool:
        now = Footprint.of(replica)
        return now.files <= before.files + USERS and now.threads <= before.threads + USERS

    eventually(small, what=lambda: f"{before} has become {Footprint.of(replica)} after {VANISHED} vanished clients")
    print(f"\n{VANISHED} vanished clients: {before} before, {Footprint.of(replica)} after")
    assert server.chat({"prompt": "What is a Pod?"}).status_code == 200
    assert server.only("ServeReplica").pid == replica.pid


def requests(count: int) -> Iterator[tuple[str, dict, dict[str, str]]]:
    """Path, body and headers of requests of all kinds; hardly any two are alike, and each has a client of its own."""
    chance = random.Random(20)
    for at in range(count):
        text = f"{at} " + "word " * chance.randrange(1, 60)
        chat = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
        raw = {"model": "tiny", "prompt": text, "max_tokens": 4}
        schema = {"type": "object", "properties": {f"p{at}": {"type": "boolean"}}, "required": [f"p{at}"]}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        kinds: list[tuple[str, dict]] = [
            ("/v1/chat/completions", {**chat, "stream": True}),
            ("/v1/chat/completions", chat),
            ("/v1/completions", {**raw, "n": 2, "seed": at, "logprobs": 3}),
            ("/v1/completions", {**raw, "stop": [f"{at}"], "frequency_penalty": 0.5}),
            ("/v1/completions", {**raw, "logit_bias": {str(chance.randrange(300)): 5}, "stream": True}),
            ("/chat", {"prompt": text, "generate_kwargs": {"max_new_tokens": 4, "no_repeat_ngram_size": 2}}),
            ("/chat", {"prompt": text, "generate_kwargs": {f"unknown_{at}": 1}}),
            ("/v1/completions", {**raw, "model": f"nobody-{at}"}),
            ("/tokenize", raw),
        ]
        if at % 20 == 0:
            kinds = [("/v1/chat/completions", {**chat, "response_format": form, "max_tokens": 12})]
        path, body = kinds[at % len(kinds)]
        yield path, body, {"Authorization": f"Bearer user-{at}"}


def ask(server, count: int) -> dict[int, int]:
    """How many answers had which status."""
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=server.url, timeout=2 * PATIENCE) as client, ThreadPoolExecutor(USERS) as pool:

        def one(given: tuple[str, dict, dict[str, str]]) -> int:
            path, body, headers = given
            return client.post(path, json=body, headers=headers).status_code

        for status in pool.map(one, requests(count)):
            statuses[status] = statuses.get(status, 0) + 1
    return statuses


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_server_does_not_grow_with_the_requests_that_it_answers(server):
    replica = server.only("ServeReplica")
    ask(server, WARM_UP)
    vanish(server, 5 * USERS)
    before = Footprint.of(replica)
    statuses = ask(server, ASKED - WARM_UP)
    assert set(statuses) == {200, 400, 404}
    eventually(lambda: is_idle(server))
    after = Footprint.of(replica)
    print(f"\n{statuses}: {before} before, {after} after, {(after.memory - before.memory) / 2**20:+.1f} MiB")
    assert after.memory - before.memory < KEPT * ASKED
    assert after.files <= before.files + USERS
    assert after.threads <= before.threads + USERS
    assert server.only("ServeReplica").pid == replica.pid
