"""Four replicas behind one port, as on a node with four GPUs."""

from __future__ import annotations

import concurrent.futures
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cluster.serving.conftest import READY_WITHIN, Gate, Server
from tests.eventually import PATIENCE, eventually, never

BODY = {"prompt": "What is a Pod?", "generate_kwargs": {"max_new_tokens": 20, "eos_token_id": None}}
REPLICA = "ServeReplica:kaito"
REPLICAS = 4


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server], tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Four replicas that have all been seen loading for a while, and are ready."""
    gate = Gate(tmp_path_factory.mktemp("gate") / "template")
    running: Server = start_server("--replicas", str(REPLICAS), "--chat_template", str(gate.path), weights=tiny_folder)

    def loading() -> set[str]:
        assert running.process.poll() is None, running.log
        return set(re.findall(r"replica \d: Loading weights", running.log))

    eventually(lambda: len(loading()) == REPLICAS, timeout=2 * READY_WITHIN, what=lambda: running.log[-3000:])
    never(lambda: running.process.poll() is not None or running.healthy(), within=2.0)
    assert running.get("/progress").json()["state"] == "loading"
    gate.open()
    running.wait_healthy()
    return running


def ask(server: Server, times: int) -> set[int]:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return {answer.status_code for answer in pool.map(lambda _: server.chat(BODY), range(times))}


def answered_by(server: Server) -> set[int]:
    """The process ids of replicas that have counted a prompt."""
    return {
        int(match[1])
        for file in server.folder.glob("kaito-serving-*/metrics/counter_*.db")
        if (match := re.search(r"counter_(\d+)\.db$", file.name)) and b"vllm:prompt_tokens" in file.read_bytes()
    }


def test_it_is_ready_once_all_four_are_and_all_of_them_answer(server: Server) -> None:
    replicas = {process.pid for process in server.titled(REPLICA)}
    assert len(replicas) == REPLICAS
    assert server.get("/progress").json() == {"state": "ready", "progress": None, "message": ""}
    assert server.series("kaito_serving_state") == REPLICAS
    assert ask(server, 64) == {200}
    assert answered_by(server) >= replicas


def test_metrics_are_the_sums_of_all(server: Server) -> None:
    before = server.series("vllm:generation_tokens_total"), server.series("vllm:request_success_total")
    assert ask(server, 32) == {200}
    # A client may have its answer a moment before it is counted.
    eventually(lambda: server.series("vllm:request_success_total") - before[1] == 32)
    assert server.series("vllm:generation_tokens_total") - before[0] == 32 * 20
    eventually(lambda: server.series("kaito_serving_requests_total") == server.series("vllm:request_success_total"))


def test_the_death_of_one_costs_its_own_answers_and_nothing_else(server: Server) -> None:
    killed = server.titled(REPLICA)[0]
    tokens = server.series("vllm:generation_tokens_total")
    failed: list[str] = []
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            answer = server.chat(BODY)
            if answer.status_code != 200:
                failed.append(f"{answer.status_code} {answer.text}")
            health = server.get("/health")
            if health.status_code != 200:
                failed.append(f"unhealthy: {server.get('/progress').text}")

    users = [threading.Thread(target=go_on) for _ in range(4)]
    for user in users:
        user.start()
    try:
        killed.kill()
        killed.wait(PATIENCE)
        eventually(lambda: server.get("/progress").json()["message"].startswith("3 of 4 replicas answer."))
        eventually(lambda: server.get("/progress").json()["message"] == "", timeout=READY_WITHIN)
    finally:
        over.set()
        for user in users:
            user.join()
    # What the killed one was answering is lost, at most one answer of each user.
    assert len(failed) <= len(users), failed
    assert all(text.startswith("503 ") for text in failed), failed
    assert len(server.titled(REPLICA)) == REPLICAS
    assert server.series("vllm:generation_tokens_total") > tokens
    assert server.series("kaito_serving_state") == REPLICAS
    assert server.process.poll() is None
