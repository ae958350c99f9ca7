"""Requests made to break a server, beside clients who only want an answer: they get it, and it is right."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Callable

import httpx
import pytest
from tests.eventually import PATIENCE

transformers = pytest.importorskip("transformers")

GOOD = ["What is Kubernetes?", "What is a GPU?", "Is a node", "The model reads"]
NEW = 24


@pytest.fixture(scope="module")
def server(start_server, tiny_folder):
    running = start_server("--served_model_name", "tiny", weights=tiny_folder)
    running.wait_healthy()
    return running


@pytest.fixture(scope="module")
def expected(tiny_folder) -> dict[str, str]:
    """transformers' own greedy answers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    answers = {}
    for prompt in GOOD:
        ids = tokenizer(prompt, return_tensors="pt")
        row = network.generate(**ids, do_sample=False, max_new_tokens=NEW, eos_token_id=[-1], pad_token_id=0)[0]
        before = tokenizer.decode(ids["input_ids"][0], skip_special_tokens=True)
        answers[prompt] = tokenizer.decode(row, skip_special_tokens=True)[len(before) :]
    return answers


def chat(**kwargs: object) -> tuple[str, bytes]:
    return "/chat", json.dumps({"prompt": "x", "generate_kwargs": kwargs}).encode()


def completion(**fields: object) -> tuple[str, bytes]:
    return "/v1/completions", json.dumps({"model": "tiny", "prompt": "x", **fields}).encode()


HOSTILE: list[Callable[[random.Random], tuple[str, bytes]]] = [
    lambda _: chat(pad_token_id=10**9),
    lambda _: chat(suppress_tokens=list(range(1000))),
    lambda _: chat(repetition_penalty=1e-38),
    lambda _: chat(exponential_decay_length_penalty=[0, 1e30], max_new_tokens=50),
    lambda _: chat(temperature=1e-300),
    lambda _: chat(top_k=10**18),
    lambda _: chat(num_beams=16, num_return_sequences=16),
    lambda _: chat(max_new_tokens=10**15),
    lambda _: chat(bad_words_ids=[[token] for token in range(600)]),
    lambda _: chat(stop_strings=["x"] * 5000),
    lambda _: chat(no_repeat_ngram_size=1, max_new_tokens=100),
    lambda _: chat(typical_p=1e-9, eta_cutoff=0.99, epsilon_cutoff=0.99),
    lambda _: ("/chat", b'{"prompt": "' + b"\\u0000" * 5000 + b'"}'),
    lambda _: ("/chat", b"[" * 100_000),
    lambda _: ("/chat", b'{"prompt": "x", "generate_kwargs": {"temperature": NaN}}'),
    lambda chance: ("/chat", chance.randbytes(chance.randrange(2000))),
    lambda _: completion(prompt=[10**9]),
    lambda _: completion(prompt=[-1]),
    lambda _: completion(prompt=["x"] * 1000),
    lambda _: completion(n=10**9),
    lambda _: completion(logit_bias={str(token): -100 for token in range(1000)}),
    lambda _: completion(logit_bias={"99999999": 1}),
    lambda _: completion(stop=["x"] * 5000),
    lambda _: completion(temperature=1e308, top_p=1e-12),
    lambda _: completion(stop_token_ids=[10**12]),
    lambda _: completion(response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}),
    lambda _: completion(
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "(a+)+$"}}},
        max_tokens=20,
    ),
    lambda _: completion(prompt="y " * 100_000),
    lambda _: completion(logprobs=20, echo=True, max_tokens=0, prompt="z " * 1000),
    lambda _: completion(stream=True, max_tokens=3, presence_penalty=2, frequency_penalty=-2),
]


async def vanish(url: httpx.URL, path: str, body: bytes) -> None:
    """Send a request and be gone before its answer."""

    def send() -> None:
        with socket.create_connection((url.host, url.port), timeout=PATIENCE) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\n"
            connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)

    await asyncio.to_thread(send)


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.soak)])
def test_hostile_requests_harm_nobody(server, expected, count):
    chance = random.Random(11)
    statuses: dict[int, int] = {}

    async def attack(client: httpx.AsyncClient, at: int) -> None:
        path, body = HOSTILE[at % len(HOSTILE)](chance)
        if at % 10 == 0:
            path, body = completion(max_tokens=2000, ignore_eos=True)
            await vanish(httpx.URL(server.url), path, body)
            return
        answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (HOSTILE[at % len(HOSTILE)](chance)[1][:200], answer.text[:300])
        if answer.status_code >= 400:
            assert len(answer.text) < 2000

    async def attackers(client: httpx.AsyncClient) -> None:
        for start in range(0, count, 20):
            await asyncio.gather(*(attack(client, at) for at in range(start, min(count, start + 20))))

    async def good(client: httpx.AsyncClient, at: int, over: asyncio.Event) -> int:
        asked = 0
        while not over.is_set():
            prompt = GOOD[(at + asked) % len(GOOD)]
            body = {"model": "tiny", "prompt": prompt, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["text"] == expected[prompt]
            asked += 1
        return asked

    async def work() -> list[int]:
        over = asyncio.Event()
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            async with asyncio.TaskGroup() as group:
                clients = [group.create_task(good(client, at, over)) for at in range(16)]
                await attackers(client)
                over.set()
            return [task.result() for task in clients]

    before = server.only("ServeReplica").pid
    answered = asyncio.run(work())
    assert min(answered) >= 1
    assert statuses.get(400, 0) > count / 3
    assert server.only("ServeReplica").pid == before
    series = server.get("/metrics/prometheus").text
    assert "kaito_serving_engine_restarts_total 0.0" in series
