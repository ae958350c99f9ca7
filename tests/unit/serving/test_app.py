"""The HTTP contract of KAITO's inference server, asked over HTTP (without Ray) of a real model."""

import ast
import asyncio
import contextlib
import json
import threading
import time
from pathlib import Path

import httpx
import pytest

from kaito_serving.errors import StartupError
from kaito_serving.http.app import LARGEST_BODY, build
from kaito_serving.http.metrics import MeteredEngine, ServingMetrics
from kaito_serving.options import Options
from kaito_serving.run.service import ModelService

transformers = pytest.importorskip("transformers")

NOWHERE = Path("/nonexistent")
HARDWARE = {"gpu_info": None, "cpu_info": {"load_percentage": 1.0}}


@contextlib.asynccontextmanager
async def client_of(service, *, wait=True, **settings):
    """A client of the application, inside its lifespan."""
    app = build(service, hardware=lambda: HARDWARE, **settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://model", timeout=60) as client:
            async with asyncio.timeout(30):
                while wait and (await client.get("/health")).status_code != 200:
                    await asyncio.sleep(0.02)
            yield client


def as_json(body):
    """A body whose characters are all ASCII, so that it can hold half of a surrogate pair."""
    return {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}}


@pytest.fixture
def ask(tiny, make_engine, make_surfaces):
    """Send requests to a fresh server: `ask(body, ...)` gives the answers; `with_client` runs any work."""

    def with_client(work, *, api_keys=(), request_timeout=60.0, body_timeout=30.0, template=None, **changes):
        if template is not None:
            tiny.tokenizer.chat_template = template
        options = Options(served_model_name=("tiny",), adapters_dir=NOWHERE, **changes)

        def load(metrics):
            engine = MeteredEngine(make_engine(tiny), metrics, monotonic=time.monotonic)
            return make_surfaces(tiny, engine, options)

        metrics = ServingMetrics(model="tiny", version="0")
        service = ModelService(load=load, metrics=metrics, monotonic=time.monotonic)
        limits = {"request_timeout": request_timeout, "body_timeout": body_timeout}

        async def whole():
            async with client_of(service, api_keys=api_keys, **limits) as client:
                return await work(client)

        return asyncio.run(whole())

    def answers(*bodies, **changes):
        async def work(client):
            return await asyncio.gather(*(client.post("/chat", **as_json(body)) for body in bodies))

        return with_client(work, **changes)

    answers.with_client = with_client
    return answers


@pytest.fixture
def pipeline(tiny, reference):
    """transformers' own pipeline on the same weights."""
    return transformers.pipeline("text-generation", model=reference, tokenizer=tiny.tokenizer)


GREEDY = {"do_sample": False, "max_length": 60}


def test_the_quick_starts_request_is_answered(ask):
    (answer,) = ask({"prompt": "What is Kubernetes?"})
    assert answer.status_code == 200
    assert list(answer.json()) == ["Result"]
    assert answer.json()["Result"].startswith("What is Kubernetes? ")


@pytest.mark.parametrize("full", [True, False, None])
def test_three_prompts_are_answered_as_by_the_pipeline(ask, pipeline, tiny, full):
    prompts = ["What is a Pod?", "Is a GPU", "<|user|>\nWhat is KAITO?<|end|>\n<|assistant|>\n"]
    eos = sorted(tiny.end_tokens)
    expected = [
        pipeline(p, return_full_text=full is not False, eos_token_id=eos, **GREEDY)[0]["generated_text"]
        for p in prompts
    ]
    answers = ask(*({"prompt": p, "return_full_text": full, "generate_kwargs": GREEDY} for p in prompts))
    assert [answer.json()["Result"] for answer in answers] == expected


def test_a_prefix_is_read_and_not_returned(ask, pipeline, tiny):
    eos = sorted(tiny.end_tokens)
    expected = pipeline(" is a GPU?", prefix="What", eos_token_id=eos, **GREEDY)[0]["generated_text"]
    (answer,) = ask({"prompt": " is a GPU?", "prefix": "What", "generate_kwargs": GREEDY})
    assert answer.json()["Result"] == expected
    assert expected.startswith(" is a GPU?")


def test_a_long_prompt_with_hole_keeps_its_end(ask, tiny):
    prompt = "words " * 5000 + "What is a Pod?"
    plain, hole = ask(
        {"prompt": prompt, "generate_kwargs": {"max_new_tokens": 5}},
        {"prompt": prompt, "generate_kwargs": {"max_new_tokens": 300}, "handle_long_generation": "hole"},
    )
    assert plain.status_code == 400
    assert "context" in plain.json()["detail"]
    assert hole.status_code in (200, 400)  # the cache of this test is smaller than the tokenizer's limit


def test_upstreams_example_body_with_every_neutral_value_is_accepted(ask):
    everything = {
        "max_length": 40,
        "min_length": 0,
        "do_sample": True,
        "early_stopping": False,
        "num_beams": 1,
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
        "temperature": 1.0,
        "top_k": 10,
        "top_p": 1,
        "typical_p": 1,
        "repetition_penalty": 1,
        "length_penalty": 1,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "bad_words_ids": None,
        "num_return_sequences": 1,
        "output_scores": False,
        "return_dict_in_generate": False,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "remove_invalid_values": None,
    }
    body = {
        "prompt": "What is a Pod?",
        "return_full_text": True,
        "clean_up_tokenization_spaces": False,
        "prefix": None,
        "handle_long_generation": None,
        "generate_kwargs": everything,
        "something_else": 1,
    }
    (answer,) = ask(body)
    assert answer.status_code == 200


def test_several_answers_are_joined_with_nothing_between(ask):
    (many,) = ask({"prompt": "Hi", "generate_kwargs": {"num_return_sequences": 3, "max_new_tokens": 4}})
    assert many.json()["Result"].count("Hi") >= 3


def test_conversations_are_answered_with_the_repr_of_a_message(ask, tiny, greedy):
    messages = [{"role": "user", "content": "What is a node?"}]
    text = tiny.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = tiny.tokenizer.decode(greedy(ids, 60, eos=sorted(tiny.end_tokens)), skip_special_tokens=True)
    body = {"messages": messages, "generate_kwargs": {"do_sample": False, "max_new_tokens": 60}}
    (answer,) = ask(body, pipeline="conversational")
    assert ast.literal_eval(answer.json()["Result"]) == {"role": "assistant", "content": expected}
    assert "machine" in expected


def test_an_answer_ends_where_the_model_ends_its_turn_unless_the_tokenizers_end_is_asked_for(ask, tiny):
    body = {"prompt": "<|user|>\nHello<|end|>\n<|assistant|>\n", "return_full_text": False}
    body["generate_kwargs"] = {"do_sample": False}
    (short,) = ask(body)
    (long,) = ask(body, chat_stop="tokenizer")
    assert short.json()["Result"] == "Hello! Ask me about Kubernetes, GPUs or KAITO."
    assert len(long.json()["Result"]) > len(short.json()["Result"])
    assert len(tiny.end_tokens) == 2


def test_a_stop_string_and_a_time_limit_end_an_answer(ask):
    kwargs = {"do_sample": False, "max_new_tokens": 60, "eos_token_id": None}
    (whole,) = ask({"prompt": "What is a Pod?", "generate_kwargs": kwargs})
    text = whole.json()["Result"]
    string = text[30:36]
    stopped, timed = ask(
        {"prompt": "What is a Pod?", "generate_kwargs": kwargs | {"stop_strings": string}},
        {"prompt": "What is a Pod?", "generate_kwargs": kwargs | {"max_new_tokens": 3000, "max_time": 0.3}},
    )
    assert string in stopped.json()["Result"]
    assert len(stopped.json()["Result"]) < len(text)
    assert timed.status_code == 200


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "Text generation parameter prompt required"),
        ({"prompt": None}, "Text generation parameter prompt required"),
        ({"prompt": ""}, "Text generation parameter prompt required"),
        ({"messages": [{"role": "user", "content": "x"}]}, "Text generation parameter prompt required"),
        ({"prompt": "x", "handle_long_generation": "cut"}, "handle_long_generation"),
        ({"prompt": "x", "adapters": {"ghost": 1.0}}, "Unknown adapter ghost"),
        ({"prompt": "x", "adapters": {"gh\ud800st": 1.0}}, "Unknown adapter gh\\ud800st"),
        ({"prompt": "x", "generate_kwargs": {"wrong_key": 1}}, "Unknown generate_kwargs key 'wrong_key'"),
        ({"prompt": "x " * 300, "generate_kwargs": {"max_length": 100}}, "max_length 100 leaves no room"),
        ({"prompt": "x", "generate_kwargs": {"max_new_tokens": 100_000}}, "the context is"),
        ({"prompt": "x", "generate_kwargs": {"top_p": 2.0}}, "top_p cannot be 2.0"),
        ({"prompt": "x", "generate_kwargs": {"num_beams": 2}}, "num_beams must be 1"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_answered_get_400_with_a_sentence(ask, body, detail):
    (answer,) = ask(body)
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": 5}, ["body", "prompt"]),
        ({"prompt": "x", "generate_kwargs": {"eos_token_id": [1, 2]}}, ["body", "generate_kwargs", "eos_token_id"]),
        ({"prompt": "x", "generate_kwargs": {"temperature": "hot"}}, ["body", "generate_kwargs", "temperature"]),
        ({"prompt": "x", "generate_kwargs": {"max_length": None}}, ["body", "generate_kwargs", "max_length"]),
        ({"prompt": "x", "adapters": {"a": 7}}, ["body", "adapters", "a"]),
    ],
    ids=str,
)
def test_wrong_types_get_422_with_the_place(ask, body, field):
    (answer,) = ask(body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == field


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"\xff\xfe", 422),
        (b'{"prompt": "x", "generate_kwargs": {"temperature": NaN}}', 422),
        (b'{"prompt": "x", "generate_kwargs": {"temperature": Infinity}}', 422),
        (b'{"prompt": "x", "generate_kwargs": {"min_p": NaN}}', 400),
        (b'{"prompt": "x \\ud800 y"}', 400),
        (b'{"prompt": "' + b"x" * LARGEST_BODY + b'"}', 413),
        (b"[" * 200_000, 400),
    ],
    ids=["empty", "half", "list", "bytes", "nan", "infinity", "nan-extra", "surrogate", "large", "deep"],
)
def test_bodies_that_are_no_requests_are_refused_and_harm_nobody(ask, content, status):
    async def work(client):
        refused = await client.post("/chat", content=content, headers={"Content-Type": "application/json"})
        return refused, await client.post("/chat", json={"prompt": "Hi"})

    refused, after = ask.with_client(work)
    assert refused.status_code == status
    assert "detail" in refused.json()
    assert after.status_code == 200


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content.index('aardvark') }}",
        "{{ '%(who)s' % {} }}",
        "{{ 1 // (messages | length - 1) }}",
        "{% for _ in range(10 ** 9) %}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
    ids=["ValueError", "KeyError", "ZeroDivisionError", "OverflowError", "TemplateError"],
)
def test_whatever_a_chat_template_raises_is_said_to_who_asked(ask, template):
    (answer,) = ask({"messages": [{"role": "user", "content": "x"}]}, pipeline="conversational", template=template)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("The messages do not suit the chat template: ")


def test_messages_are_required_in_the_conversational_pipeline(ask):
    answers = ask({"prompt": "x"}, {"messages": []}, {"messages": None}, pipeline="conversational")
    assert {answer.status_code for answer in answers} == {400}
    assert {answer.json()["detail"] for answer in answers} == {"Conversational parameter messages required"}


def test_an_answer_that_takes_too_long_gets_408(ask):
    body = {"prompt": "x", "generate_kwargs": {"max_new_tokens": 3000, "eos_token_id": None}}
    (answer,) = ask(body, request_timeout=0.2)
    assert answer.status_code == 408


def test_health_root_and_metrics(ask):
    async def work(client):
        await client.post("/chat", json={"prompt": "Hi"})
        await client.post("/chat", json={"prompt": ""})
        plain = await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
        paths = ("/", "/health", "/healthz", "/progress", "/metrics", "/metrics/prometheus")
        return [await client.get(path) for path in paths], plain

    (root, health, healthz, progress, metrics, series), plain = ask.with_client(work)
    assert root.json() == {"message": "Server is running"}
    assert progress.json() == {"state": "ready", "progress": None, "message": ""}
    assert health.json() == healthz.json() == {"status": "Healthy"}
    assert metrics.json() == HARDWARE
    for text in (series.text, plain.text):
        assert 'kaito_serving_requests_total{code="200",endpoint="/chat",model="tiny"} 1.0' in text
        assert 'kaito_serving_requests_total{code="400",endpoint="/chat",model="tiny"} 1.0' in text
        assert 'vllm:generation_tokens_total{model_name="tiny"}' in text
        assert 'vllm:kv_cache_usage_perc{model_name="tiny"} 0.0' in text


def test_while_the_model_loads_health_and_progress_say_so_and_chat_answers_503():
    def load(metrics):
        loading.step("loading weights", 0.42)
        assert over.wait(60)
        raise StartupError("The weights are damaged.")

    over = threading.Event()
    loading = ModelService(load=load, metrics=ServingMetrics(model="m", version="0"), monotonic=time.monotonic)

    async def work():
        async with client_of(loading, wait=False) as client:
            async with asyncio.timeout(60):
                while (await client.get("/progress")).json()["message"] != "loading weights":
                    await asyncio.sleep(0.01)
            paths = ("/progress", "/healthz")
            answers = [*[await client.get(path) for path in paths], await client.post("/chat", json={"prompt": "x"})]
            over.set()
            async with asyncio.timeout(60):
                while (await client.get("/progress")).json()["state"] == "loading":
                    await asyncio.sleep(0.01)
            return [*answers, await client.get("/progress")]

    progress, health, chat, failed = asyncio.run(work())
    assert (progress.status_code, failed.status_code) == (200, 200)
    assert progress.json() == {"state": "loading", "progress": 0.42, "message": "loading weights"}
    assert failed.json() == {"state": "failed", "progress": None, "message": "The weights are damaged."}
    assert (health.status_code, health.json()) == (500, {"detail": "Model not initialized"})
    assert (chat.status_code, chat.json()) == (503, {"detail": "Model not initialized"})


def test_a_probe_may_wait_for_the_model_and_is_answered_when_it_is_there(tiny, make_engine, make_surfaces):
    def load(metrics):
        assert over.wait(60)
        return make_surfaces(tiny, MeteredEngine(make_engine(tiny), metrics, monotonic=time.monotonic), Options())

    over = threading.Event()
    loading = ModelService(load=load, metrics=ServingMetrics(model="m", version="0"), monotonic=time.monotonic)

    async def work():
        async with client_of(loading, wait=False) as client:
            early = await client.get("/health?wait=0.2")
            late = asyncio.create_task(client.get("/health?wait=600"))
            assert not (await asyncio.wait([late], timeout=0.3))[0]
            over.set()
            return early, await asyncio.wait_for(late, 60), await client.get("/health?wait=x")

    early, late, wrong = asyncio.run(work())
    assert (early.status_code, early.json()) == (500, {"detail": "Model not initialized"})
    assert (late.status_code, late.json()) == (200, {"status": "Healthy"})
    assert wrong.status_code == 422


def test_with_api_keys_chat_needs_one_and_health_does_not(ask):
    async def work(client):
        ask = {"json": {"prompt": "Hi"}}
        return [
            (await client.post("/chat", **ask)).status_code,
            (await client.post("/chat", headers={"Authorization": "Bearer wrong"}, **ask)).status_code,
            (await client.post("/chat", headers={"Authorization": "Bearer two"}, **ask)).status_code,
            (await client.get("/health")).status_code,
        ]

    assert ask.with_client(work, api_keys=("one", "two")) == [401, 401, 200, 200]
