"""A whole server with vLLM below its replica: asked, killed in parts, stopped; and nodes that compute together."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from tests.cluster.serving.conftest import free_port
from tests.eventually import PATIENCE, eventually

ROOT = Path(__file__).parents[3]
HELLO = {"prompt": "<|user|>\nHello<|end|>\n<|assistant|>\n", "return_full_text": False}
HELLO["generate_kwargs"] = {"do_sample": False, "max_new_tokens": 40}
GREETING = "Hello! Ask me about Kubernetes, GPUs or KAITO."
STAND_IN = "tests.stand_ins.vllm"


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    """The program vllm, played by our own engine."""
    program = tmp_path_factory.mktemp("vllm") / "vllm"
    program.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m {STAND_IN} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def server(start_server, tiny_folder, vllm):
    running = start_server(
        "--served_model_name",
        "phi",
        "--engine",
        "vllm",
        "--vllm",
        str(vllm),
        "--torch_dtype",
        "float32",
        weights=tiny_folder,
    )
    running.wait_healthy()
    return running


def greets(server) -> bool:
    answer = server.chat(HELLO)
    return answer.status_code == 200 and answer.json()["Result"].strip() == GREETING


def vllms(server) -> list[psutil.Process]:
    found = []
    for process in server.processes():
        try:
            if STAND_IN in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_both_surfaces_answer_over_vllm(server):
    assert greets(server)
    body = {"model": "phi", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    parts = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert "".join(parts) == GREETING


def test_vllms_own_metrics_are_passed_on_beside_ours(server):
    assert greets(server)
    text = httpx.get(f"{server.url}/metrics", headers={"Accept": "text/plain"}, timeout=PATIENCE).text
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(families) == len(set(families))
    assert "kaito_serving_requests_total" in families
    tokens = [line for line in text.splitlines() if line.startswith("vllm:generation_tokens_total{")]
    assert len(tokens) == 1
    assert float(tokens[0].rpartition(" ")[2]) > 0


def test_vllm_listens_on_the_loopback_address_only(server):
    (process,) = vllms(server)
    listening = [each.laddr.ip for each in process.net_connections("tcp") if each.status == "LISTEN"]
    assert listening == ["127.0.0.1"]


@pytest.mark.parametrize("part", [STAND_IN, "ServeReplica:kaito"])
def test_a_killed_vllm_or_replica_comes_back_without_leaving_a_second_vllm(server, part):
    (before,) = vllms(server)
    killed = before if part == STAND_IN else server.only(part)
    killed.kill()
    killed.wait(PATIENCE)
    eventually(
        lambda: server.healthy() and greets(server) and len(vllms(server)) == 1,
        timeout=3 * PATIENCE,
        every=0.2,
        what=lambda: server.log[-3000:],
    )
    assert vllms(server) != [before]
    assert not before.is_running()


def test_sigterm_ends_vllm_too(start_server, tiny_folder, vllm):
    server = start_server("--engine", "vllm", "--vllm", str(vllm), weights=tiny_folder)
    server.wait_healthy()
    below = server.processes()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []


def test_a_vllm_that_cannot_start_ends_the_server_in_vllms_own_words(start_server, tiny_folder, tmp_path):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho 'ValueError: No available memory for the cache blocks.'\nexit 1\n")
    program.chmod(0o755)
    server = start_server("--engine", "vllm", "--vllm", str(program), weights=tiny_folder)
    assert server.process.wait(2 * PATIENCE) == 1
    assert "No available memory for the cache blocks" in server.termination_message


# ---------------------------------------------------------------- nodes
FIRST, SECOND = "127.0.0.1", "127.0.0.2"  # two nodes of one machine, both reachable


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    port: int
    master_port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://{SECOND}:{self.port}"


def ask(worker: Worker, path: str) -> httpx.Response:
    return httpx.get(f"{worker.url}{path}", timeout=PATIENCE)


@pytest.fixture
def worker(tiny_folder, vllm, tmp_path):
    """Node 1 of 2, as a process of its own."""
    port, master_port = free_port(), free_port()
    command = [sys.executable, "-m", "kaito_serving", "--pretrained_model_name_or_path", str(tiny_folder)]
    command += ["--engine", "vllm", "--vllm", str(vllm), "--nnodes", "2", "--node_rank", "1"]
    command += ["--master_addr", FIRST, "--master_port", str(master_port), "--host", SECOND, "--port", str(port)]
    command += ["--termination_log", str(tmp_path / "termination-log")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    found = Worker(process, port, master_port, tmp_path)
    try:
        eventually(lambda: ask(found, "/health").status_code == 200, despite=httpx.HTTPError)
        yield found
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        for each in below:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(below, timeout=PATIENCE)


def test_a_node_computes_with_the_first_and_ends_when_that_is_gone(worker, tiny_folder, vllm):
    flags = ["--nnodes", "2", "--node-rank", "0", "--master-addr", FIRST, "--master-port", str(worker.master_port)]
    command = [str(vllm), "serve", str(tiny_folder), "--served-model-name", "phi", "--host", FIRST]
    command += ["--port", str(free_port()), "--pipeline-parallel-size", "2", *flags]
    first = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert "node 0 of 2 has joined the group" in first.stdout.readline()
        assert ask(worker, "/health").json() == {"status": "Healthy"}
        assert ask(worker, "/progress").json()["state"] == "ready"
        assert ask(worker, "/v1/models").status_code == 404
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert worker.process.wait(PATIENCE) == 1, (worker.folder / "log").read_text()
    assert "a node of the group is gone" in (worker.folder / "termination-log").read_text()


def test_a_node_that_is_told_to_stop_goes_on_until_the_first_has_stopped(worker):
    with socket.create_server((FIRST, worker.port)):  # node 0 still answers
        worker.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(5)
        assert ask(worker, "/health").status_code == 200
    assert worker.process.wait(PATIENCE) == 0, (worker.folder / "log").read_text()
