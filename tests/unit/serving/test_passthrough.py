"""/v1 handed on to a vLLM whose answers the test writes: what arrives there, and what comes back."""

import asyncio
import json
import re
import time

import httpx
import pytest
from starlette.responses import JSONResponse, StreamingResponse
from tests.eventually import PATIENCE, eventually_here
from tests.stand_ins.scripted import Alive, Scripted, listening
from tests.unit.serving.test_adapters import make

from kaito_serving.engine.base import Limits, Request, SamplingParams
from kaito_serving.engine.vllm.engine import VllmEngine
from kaito_serving.http import sse
from kaito_serving.http.app import build
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.lora.read import read
from kaito_serving.model.folder import inspect
from kaito_serving.model.load import load_tokenizer
from kaito_serving.options import Options
from kaito_serving.run.service import ModelService
from kaito_serving.run.vllm import model_settings, surfaces

pytest.importorskip("peft")

ONE = {"model": "tiny", "prompt": "x", "adapters": {"one": 0.5}}
ODD = "a\u2028b\x85c\u2029d"  # ends of lines to Python, and none to JSON and to events


@pytest.fixture(scope="module")
def adapter(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "one"
    make(tiny_folder, folder, seed=0, r=2, lora_alpha=2, target_modules=["o_proj"])
    return read(folder)


@pytest.fixture
def served(tiny_folder, adapter, tmp_path):
    """Run `work(http, vllm, engine)`: a client of our server, which hands on to `vllm`."""
    folder = inspect(tiny_folder)
    tokenizer = load_tokenizer(folder, None)
    options = Options(weights=str(tiny_folder), served_model_name=("tiny",))

    def serve(work, **limits):
        async def whole():
            vllm = Scripted()
            async with listening(vllm.application()) as url:
                engine = VllmEngine(
                    Alive(),
                    url=url,
                    model="tiny",
                    limits=Limits(vocabulary=len(tokenizer), context=2048),
                    adapters={"one": adapter},
                    strengths={"one": 0.0},
                    lora_rank=8,
                    mixes=tmp_path / "mixes",
                    max_waiting=8,
                    monotonic=time.monotonic,
                )
                service = ModelService(
                    load=lambda _: surfaces(tokenizer, engine, model_settings(folder, tokenizer), options),
                    metrics=ServingMetrics(model="tiny", version="0"),
                    monotonic=time.monotonic,
                )
                app = build(service, hardware=dict, passing=True, **limits)
                async with (
                    listening(app) as front,
                    httpx.AsyncClient(base_url=front, timeout=PATIENCE) as http,
                ):
                    await eventually_here(lambda: service.unready() is None)
                    async with asyncio.timeout(2 * PATIENCE):
                        return await work(http, vllm, engine)

        return asyncio.run(whole())

    return serve


def events(*bodies) -> StreamingResponse:
    """An answer in events, with JSON as vLLM writes it: all characters as they are."""
    lines = [f"data: {json.dumps(body, ensure_ascii=False)}\n\n" for body in bodies]
    return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


def texts(answer: httpx.Response) -> list[dict]:
    *lines, done = answer.content.decode().removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("body", [{"model": "tiny", "prompt": "x"}, ONE], ids=["as-it-is", "renamed"])
def test_a_stream_comes_as_it_is_whatever_characters_are_in_it(served, body):
    async def work(http, vllm, engine):
        vllm.answer = lambda asked: events({"model": asked["model"], "choices": [{"text": ODD}]})
        return await http.post("/v1/completions", json=body | {"stream": True})

    assert texts(served(work)) == [{"model": "tiny", "choices": [{"text": ODD}]}]


def test_chunks_are_read_whatever_characters_are_in_their_text(served):
    async def work(http, vllm, engine):
        choice = {"index": 0, "text": ODD, "token_ids": [7], "finish_reason": "stop", "stop_reason": None}
        vllm.answer = lambda asked: events({"choices": [choice]})
        request = Request(prompt_ids=(1,), params=SamplingParams(max_tokens=1))
        return [chunk async for chunk in engine.submit(request)]

    (chunk,) = served(work)
    assert chunk.token_ids == (7,)


def test_an_event_that_comes_in_pieces_is_one(served):
    async def work(http, vllm, engine):
        whole = f"data: {json.dumps({'model': 'm', 'text': 'ä€🙂'}, ensure_ascii=False)}\n\ndata: [DONE]\n\n".encode()
        pieces = [whole[at : at + 1] for at in range(len(whole))]
        vllm.answer = lambda asked: StreamingResponse(iter(pieces), media_type="text/event-stream")
        return await http.post("/v1/completions", json=ONE | {"stream": True})

    assert texts(served(work)) == [{"model": "tiny", "text": "ä€🙂"}]


def test_a_stream_that_waits_is_kept_alive_between_its_events(served, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_EVERY", 0.05)
    goes_on = [asyncio.Event() for _ in range(3)]

    async def parts():
        for part, may in zip([b'data: {"id": ', b'"1"}\n\n', b"data: [DONE]\n\n"], goes_on, strict=True):
            await may.wait()
            yield part

    async def work(http, vllm, engine):
        vllm.answer = lambda asked: StreamingResponse(parts(), media_type="text/event-stream")
        said = b""
        body = {"model": "tiny", "prompt": "x", "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            coming = answer.aiter_raw()
            while said.count(sse.KEEP_ALIVE) < 2:
                said += await anext(coming)
            goes_on[0].set()
            await asyncio.sleep(1)  # in the middle of an event nothing else comes
            goes_on[1].set()
            while said.partition(b'"1"}')[2].count(sse.KEEP_ALIVE) < 2:
                said += await anext(coming)
            goes_on[2].set()
            return said + b"".join([part async for part in coming])

    comments = rb"(: keep-alive\n\n){2,}"
    assert re.fullmatch(comments + rb'data: \{"id": "1"\}\n\n' + comments + rb"data: \[DONE\]\n\n", served(work))


def test_requests_are_counted_for_the_adapters_that_they_name(served):
    async def work(http, vllm, engine):
        for body in (ONE, ONE | {"stream": True}, {"model": "tiny:one", "prompt": "x"}):
            assert (await http.post("/v1/completions", json=body)).status_code == 200
        for changes in ({"adapters": None}, {"adapters": {"invented": 1.0}}, {"adapters": None, "model": "invented"}):
            await http.post("/v1/completions", json=ONE | changes)
        return (await http.get("/metrics/prometheus")).text

    counted = re.findall(r"kaito_serving_adapter_requests_total({.*)", served(work))
    assert counted == ['{adapter="one"} 3.0']


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "n": 129},
        {"prompt": "x", "n": "129"},
        {"prompt": ["x"] * 65, "n": 2},
        {"prompt": [[1]] * 129},
        {"messages": [], "n": 10**6},
    ],
    ids=["n", "text", "prompts-times-n", "ids", "chat"],
)
def test_one_request_does_not_ask_for_more_answers_than_our_own_engine_gives(served, body):
    async def work(http, vllm, engine):
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        answer = await http.post(path, json=body)
        assert vllm.bodies == []
        return answer

    answer = served(work)
    assert answer.status_code == 400
    assert "1 to 128 are given at once" in answer.json()["error"]["message"]


def test_beams_are_refused_as_by_our_own_engine(served):
    async def work(http, vllm, engine):
        answer = await http.post("/v1/completions", json={"prompt": "x", "n": 2, "use_beam_search": True})
        assert vllm.bodies == []
        return answer

    answer = served(work)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Beam search is not served."


def test_every_answer_of_a_request_takes_a_place(served):
    async def work(http, vllm, engine):
        gate = asyncio.Event()

        async def wait():
            await gate.wait()
            yield "data: [DONE]\n\n"

        vllm.answer = lambda asked: StreamingResponse(wait(), media_type="text/event-stream")
        many = [asyncio.create_task(http.post("/v1/completions", json={"prompt": ["x"] * 64, "n": 2})) for _ in "ab"]
        await eventually_here(lambda: len(vllm.bodies) == 2)
        assert (engine.stats().running, engine.stats().waiting) == (256, 0)
        refused = await http.post("/v1/completions", json={"prompt": "x", "n": 9})
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*many)] == [200, 200]
        assert engine.stats().running == 0

    served(work)


def test_a_token_list_is_one_prompt(served):
    async def work(http, vllm, engine):
        return await http.post("/v1/completions", json={"prompt": [1] * 1000, "n": None})

    assert served(work).status_code == 200


@pytest.mark.parametrize("before", ["the-answer-begins", "the-first-event", "the-second-event"])
@pytest.mark.parametrize("body", [{"prompt": "x"}, ONE], ids=["as-it-is", "renamed"])
def test_a_client_that_leaves_is_given_up_whenever_it_does(served, before, body):
    async def work(http, vllm, engine):
        begun, left = asyncio.Event(), asyncio.Event()

        async def drip():
            if before == "the-second-event":
                yield 'data: {"choices": []}\n\n'
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

        def answer(asked):
            return StreamingResponse(drip(), media_type="text/event-stream")

        vllm.answer = answer
        if before == "the-answer-begins":
            vllm.silent = left
        async with asyncio.timeout(PATIENCE):
            asking = asyncio.create_task(http.post("/v1/completions", json=body | {"stream": True}))
            await (eventually_here(lambda: vllm.bodies) if before == "the-answer-begins" else begun.wait())
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await left.wait()
        await eventually_here(lambda: engine.stats().running == 0)
        await engine.unload_adapter("one")
        assert vllm.known == {}

    served(work)


def test_what_vllm_says_of_a_refusal_reaches_the_client(served):
    async def work(http, vllm, engine):
        refusal = {"error": {"message": "busy", "type": "x", "param": None, "code": 429}}
        vllm.answer = lambda asked: JSONResponse(refusal, status_code=429, headers={"Retry-After": "7"})
        return refusal, [await http.post("/v1/completions", json=body) for body in ({"prompt": "x"}, ONE)]

    refusal, answers = served(work)
    for answer in answers:
        assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (429, refusal, "7")
