"""From the first moment on: what a server says while it starts, when its only replica dies, and when it cannot load."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from tests.cluster.serving.conftest import READY_WITHIN, Gate, Server
from tests.eventually import PATIENCE, eventually

BODY = {"prompt": "What is a Pod?", "generate_kwargs": {"max_new_tokens": 5}}
COMPLETION = {"model": "tiny", "prompt": "What is a Pod?", "max_tokens": 5}
REPLICA = "ServeReplica:kaito"


class Watcher:
    """Asks everything again and again, and finds fault with whatever does not belong into `start` or replacement."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.states: list[str] = []
        self.messages: set[str] = set()
        self.refused = 0

    def look(self) -> bool:
        """Ask everything once; whether the server is healthy."""
        try:
            with httpx.Client(base_url=self.server.url, timeout=PATIENCE) as client:
                health, progress = client.get("/health"), client.get("/progress")
                questions = [
                    client.post("/chat", json=BODY),
                    client.post("/v1/completions", json=COMPLETION),
                    client.get("/v1/models"),
                    client.post("/tokenize", json={"prompt": "x"}),
                ]
        except httpx.ConnectError:
            assert "ready" not in self.states, "refused although it had been ready"
            self.refused += 1
            return False
        assert progress.status_code == 200
        told = progress.json()
        assert set(told) == {"state", "progress", "message"}
        if told["state"] != (self.states or [""])[-1]:
            self.states.append(told["state"])
        self.messages.add(told["message"])
        assert health.status_code in (200, 500)
        assert set(health.json()) == ({"status"} if health.status_code == 200 else {"detail"})
        for answer in questions:
            assert answer.status_code in (200, 503), f"{answer.request.url}: {answer.status_code} {answer.text}"
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) > 0
                shape = "detail" if answer.request.url.path == "/chat" else "error"
                assert shape in answer.json()
        return health.status_code == 200 and {answer.status_code for answer in questions} == {200}

    def until_healthy(self) -> None:
        eventually(
            self.look, timeout=READY_WITHIN, what=lambda: f"{self.states}, {self.messages}:\n{self.server.log[-3000:]}"
        )


@pytest.fixture(scope="module")
def weights(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("start") / "weights"))


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server], weights: Path) -> Server:
    """A server that has just been started."""
    started: Server = start_server("--served_model_name", "tiny", weights=weights)
    return started


def kill_replica(server: Server) -> None:
    process = server.only(REPLICA)
    process.kill()
    process.wait(PATIENCE)


def test_a_server_is_refused_then_loads_then_is_ready(server: Server) -> None:
    start = Watcher(server)
    start.until_healthy()
    assert start.refused, "the port was never closed: the test came too late"
    assert start.states == ["loading", "ready"]


def test_the_death_of_the_only_replica_is_told_until_its_successor_answers(server: Server) -> None:
    server.wait_healthy()
    assert server.chat(BODY).status_code == 200
    tokens = server.series("vllm:prompt_tokens_total")
    kill_replica(server)
    replacement = Watcher(server)
    eventually(lambda: not replacement.look())
    replacement.until_healthy()
    assert replacement.states[-2:] == ["restarting", "ready"]
    assert any("A process of the model died." in message for message in replacement.messages)
    assert server.series("vllm:prompt_tokens_total") > tokens > 0


def test_a_replica_that_cannot_load_again_makes_the_server_unhealthy_until_it_can(
    server: Server, weights: Path
) -> None:
    server.wait_healthy()
    hidden = weights / "hidden"
    (weights / "model.safetensors").rename(hidden)
    kill_replica(server)
    broken = Watcher(server)
    eventually(lambda: not broken.look() and "failed" in broken.states, timeout=READY_WITHIN)
    assert any("holds no weights" in message for message in broken.messages)
    assert "holds no weights" in server.log
    assert server.get("/health").status_code == 500
    assert server.process.poll() is None
    hidden.rename(weights / "model.safetensors")
    broken.until_healthy()
    assert broken.states[-1] == "ready"


def test_a_server_that_still_loads_ends_when_it_is_asked_to(
    start_server: Callable[..., Server], tiny_folder: Path, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "template")
    server = start_server("--chat_template", str(gate.path), weights=tiny_folder)

    def loads() -> bool:
        return str(server.get("/progress").json()["message"]) == "loading weights"

    eventually(loads, timeout=READY_WITHIN, despite=httpx.HTTPError)
    below = server.processes()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []


def test_a_server_that_was_killed_leaves_nothing_that_the_next_one_reads(
    start_server: Callable[..., Server], tiny_folder: Path
) -> None:
    first = start_server(weights=tiny_folder)
    first.wait_healthy()
    assert first.chat(BODY).status_code == 200
    below = first.processes()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    for process in below[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(below[1:], timeout=PATIENCE)
    (left,) = first.folder.glob("kaito-serving-*")
    assert os.listdir(left / "metrics")

    second = start_server(weights=tiny_folder, folder=first.folder)
    second.wait_healthy()
    assert not left.exists()
    assert second.series("vllm:prompt_tokens_total") == 0
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(PATIENCE) == 0
    lines = second.log.splitlines()
    assert [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO \w", line)] == []
    assert not list(second.folder.glob("kaito-serving-*"))
