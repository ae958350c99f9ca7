"""OpenAI's API: by its official client where that can say it, by plain HTTP where a client must be wrong.

Tests marked `both` are one conformance suite for two engines: ours, and vLLM as a child to which /v1 is handed on.
"""

import asyncio
import json

import httpx
import pytest
import uvicorn
from tests.eventually import PATIENCE, eventually_here

from kaito_serving.http.app import build
from kaito_serving.http.metrics import MeteredEngine, ServingMetrics
from kaito_serving.lora.layer import AdapterSet
from kaito_serving.options import Options
from kaito_serving.run.service import ModelService

openai = pytest.importorskip("openai")

KEY = {"Authorization": "Bearer one"}
HELLO = [{"role": "user", "content": "Hello"}]
GREETING = "Hello! Ask me about Kubernetes, GPUs or KAITO."  # the tiny model was trained to answer so
GREEDY = {"model": "tiny", "temperature": 0}

both = pytest.mark.parametrize("served", ["transformers", "vllm"], indirect=True)


@pytest.fixture
def engine(tiny, make_engine):
    """Its adapters may have eight columns together."""
    adapters = AdapterSet(tiny.network, ranks=8, dtype=tiny.network.dtype, device=tiny.device)
    return make_engine(tiny, adapters)


@pytest.fixture
def served(request, tiny, tiny_folder):
    """Run `work(http, client)`: plain HTTP and the official client, both of one server with the engine named."""
    named = getattr(request, "param", "transformers")
    options = Options(weights=str(tiny_folder), served_model_name=("tiny", "workspace-tiny"))
    if named == "vllm":
        over_vllm = request.getfixturevalue("over_vllm")
        load = lambda metrics: over_vllm(options, tiny.tokenizer)  # noqa: E731
    else:
        make_surfaces, engine = request.getfixturevalue("make_surfaces"), request.getfixturevalue("engine")
        load = lambda metrics: make_surfaces(  # noqa: E731
            tiny, MeteredEngine(engine, metrics, monotonic=lambda: 0.0), options
        )

    def serve(work, *, api_keys=(), **limits):
        metrics = ServingMetrics(model="tiny", version="0")
        service = ModelService(load=load, metrics=metrics, monotonic=lambda: 0.0)

        async def whole():
            app = build(service, hardware=dict, api_keys=api_keys, passing=named == "vllm", **limits)
            server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
            serving = asyncio.create_task(server.serve())
            try:
                async with asyncio.timeout(2 * PATIENCE):
                    await eventually_here(lambda: server.started and service.unready() is None)
                    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
                    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
                        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="one", max_retries=0)
                        return await work(http, client)
            finally:
                server.should_exit = True
                await serving

        return asyncio.run(whole())

    return serve


@both
def test_a_chat_completion_has_openais_shape_and_the_models_answer(served, tiny):
    answer = served(lambda http, client: client.chat.completions.create(messages=HELLO, **GREEDY))
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", GREETING)
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    text = tiny.tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, tokenize=False)
    prompt = len(tiny.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.total_tokens == prompt + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 5


@both
def test_a_stream_brings_the_same_answer_in_pieces(served):
    async def work(http, client):
        whole = await client.chat.completions.create(messages=HELLO, **GREEDY)
        stream = await client.chat.completions.create(
            messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
        return whole, [chunk async for chunk in stream]

    whole, chunks = served(work)
    *parts, usage = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == GREETING
    assert [part.choices[0].finish_reason for part in parts][-1] == "stop"
    assert all(part.choices[0].finish_reason is None for part in parts[:-1])
    assert {part.object for part in chunks} == {"chat.completion.chunk"}
    assert len({part.id for part in chunks}) == 1
    assert usage.choices == []
    assert usage.usage == whole.usage


@both
def test_the_events_of_a_stream_are_what_the_standard_and_the_api_say(served):
    async def work(http, client):
        body = {**GREEDY, "messages": HELLO, "stream": True}
        return await http.post("/v1/chat/completions", json=body)

    answer = served(work)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    assert "usage" not in json.loads(events[0].removeprefix("data: "))


@both
def test_completions_continue_a_text_a_list_and_token_ids(served, tiny, greedy):
    prompts = ["What is a Pod?", "Is a GPU"]
    ids = [tiny.tokenizer(prompt)["input_ids"] for prompt in prompts]
    ends = sorted(tiny.end_tokens)
    expected = []
    for each in ids:
        whole = tiny.tokenizer.decode([*each, *greedy(each, 12, eos=ends)], skip_special_tokens=True)
        expected.append(whole[len(tiny.tokenizer.decode(each, skip_special_tokens=True)) :])

    async def work(http, client):
        settings = {**GREEDY, "max_tokens": 12}
        return [
            await client.completions.create(prompt=prompts[0], **settings),
            await client.completions.create(prompt=prompts, **settings),
            await client.completions.create(prompt=ids[1], **settings),
            await client.completions.create(prompt=ids, **settings),
        ]

    one, both, from_ids, all_ids = served(work)
    assert [choice.text for choice in one.choices] == expected[:1]
    assert [choice.text for choice in both.choices] == expected
    assert [choice.text for choice in from_ids.choices] == expected[1:]
    assert [choice.text for choice in all_ids.choices] == expected
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.usage.prompt_tokens == sum(map(len, ids))


@both
def test_completions_have_sixteen_tokens_unless_told_and_chats_end_by_themselves(served):
    async def work(http, client):
        return await client.completions.create(prompt="x", model="tiny", temperature=0, extra_body={"ignore_eos": True})

    answer = served(work)
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


@both
def test_several_answers_to_a_seed_differ_and_come_again(served):
    async def work(http, client):
        settings = {"messages": HELLO, "model": "tiny", "n": 3, "seed": 5, "temperature": 1.5, "max_tokens": 20}
        return [await client.chat.completions.create(**settings) for _ in range(2)]

    first, second = ([choice.message.content for choice in answer.choices] for answer in served(work))
    assert first == second
    assert len(set(first)) == 3


@both
def test_a_stop_string_is_not_part_of_the_answer_streamed_or_not(served):
    async def work(http, client):
        settings = {**GREEDY, "messages": HELLO, "stop": ["GPUs", "never"]}
        whole = await client.chat.completions.create(**settings)
        stream = await client.chat.completions.create(stream=True, **settings)
        return whole.choices[0], "".join([c.choices[0].delta.content or "" async for c in stream])

    choice, streamed = served(work)
    assert choice.message.content == streamed == "Hello! Ask me about Kubernetes, "
    assert choice.finish_reason == "stop"


@both
def test_what_might_begin_a_stop_string_comes_late_but_comes(served):
    async def work(http, client):
        stream = await client.chat.completions.create(stream=True, messages=HELLO, stop=["KAITO. Or not"], **GREEDY)
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    assert served(work) == GREETING


@both
def test_logprobs_of_a_chat(served):
    async def work(http, client):
        settings = {**GREEDY, "messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 5}
        whole = await client.chat.completions.create(**settings)
        stream = await client.chat.completions.create(stream=True, **settings)
        streamed = [
            entry async for c in stream for entry in (c.choices[0].logprobs or []) and c.choices[0].logprobs.content
        ]
        return whole, streamed

    whole, streamed = served(work)
    content = whole.choices[0].logprobs.content
    assert len(content) == 5
    assert "".join(entry.token for entry in content) == whole.choices[0].message.content
    for entry in content:
        assert entry.logprob <= 0
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert len(entry.top_logprobs) == 2
    assert streamed == content


@both
def test_an_echo_brings_the_logprobs_of_the_prompt(served, tiny):
    prompt = "What is a Pod?"
    ids = tiny.tokenizer(prompt)["input_ids"]

    async def work(http, client):
        return await client.completions.create(prompt=prompt, echo=True, logprobs=1, max_tokens=0, **GREEDY)

    (choice,) = served(work).choices
    assert choice.text == prompt
    assert len(choice.logprobs.tokens) == len(ids)
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    offsets = choice.logprobs.text_offset
    assert [prompt[a:b] for a, b in zip(offsets, [*offsets[1:], len(prompt)], strict=True)] == choice.logprobs.tokens


@both
def test_a_schema_and_any_object_shape_the_answer(served):
    schema = {
        "type": "object",
        "properties": {"ready": {"type": "boolean"}},
        "required": ["ready"],
        "additionalProperties": False,
    }

    async def work(http, client):
        named = {"type": "json_schema", "json_schema": {"name": "pod", "schema": schema, "strict": True}}
        settings = {**GREEDY, "messages": HELLO, "max_tokens": 100}
        return [
            await client.chat.completions.create(response_format=named, **settings),
            await client.chat.completions.create(response_format={"type": "json_object"}, **settings),
        ]

    typed, free = served(work)
    assert set(json.loads(typed.choices[0].message.content)) == {"ready"}
    assert free.choices[0].message.content.lstrip().startswith("{")


@both
def test_models_are_listed_and_found(served):
    async def work(http, client):
        listed = [model async for model in client.models.list()]
        found = await client.models.retrieve("tiny")
        with pytest.raises(openai.NotFoundError) as failure:
            await client.models.retrieve("gpt-4")
        return listed, found, failure.value

    listed, found, failure = served(work)
    assert [model.id for model in listed] == ["tiny", "workspace-tiny"]
    assert found.id == "tiny"
    assert found.max_model_len > 0
    assert failure.code == "model_not_found"


@both
def test_tokens_there_and_back(served, tiny):
    async def work(http, client):
        text = await http.post("/tokenize", json={"prompt": "What is a Pod?"})
        chat = await http.post("/tokenize", json={"messages": HELLO})
        back = await http.post("/detokenize", json={"tokens": text.json()["tokens"]})
        return text.json(), chat.json(), back.json()

    text, chat, back = served(work)
    assert text["tokens"] == tiny.tokenizer("What is a Pod?")["input_ids"]
    assert text["count"] == len(text["tokens"])
    rendered = tiny.tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, tokenize=False)
    assert chat["tokens"] == tiny.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert back == {"prompt": "What is a Pod?"}


CHAT = {"model": "tiny", "messages": HELLO}
COMPLETION = {"model": "tiny", "prompt": "x"}


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("chat/completions", {**CHAT, "model": "gpt-4"}, 404, "gpt-4"),
        ("chat/completions", {**CHAT, "model": "tiny:ghost"}, 404, "tiny:ghost"),
        ("chat/completions", {**CHAT, "model": "gh\ud800st"}, 404, "gh\\ud800st"),
        ("chat/completions", {**CHAT, "adapters": {"gh\ud800st": 1.0}}, 404, "gh\\ud800st"),
        ("chat/completions", {**CHAT, "adapters": {"ghost": 1.0}}, 404, "ghost"),
        ("chat/completions", {**CHAT, "adapters": {"ghost": 2.0}}, 400, "adapters"),
        ("chat/completions", {"model": "tiny"}, 400, "messages"),
        ("chat/completions", {**CHAT, "messages": []}, 400, "messages"),
        ("chat/completions", {**CHAT, "messages": "Hi"}, 400, "messages"),
        ("chat/completions", {**CHAT, "messages": [{"role": "clown", "content": "x"}]}, 400, "role"),
        ("chat/completions", {**CHAT, "messages": [{"role": "tool", "content": "x"}]}, 400, "tool"),
        (
            "chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "image_url",
        ),
        ("chat/completions", {**CHAT, "temperature": -1}, 400, "temperature"),
        ("chat/completions", {**CHAT, "temperature": "hot"}, 400, "temperature"),
        ("chat/completions", {**CHAT, "top_p": 0}, 400, "top_p"),
        ("chat/completions", {**CHAT, "n": 17}, 400, "n"),
        ("chat/completions", {**CHAT, "max_tokens": 10**6}, 400, "context"),
        ("chat/completions", {**CHAT, "stop": ["x"] * 5000}, 400, "stop"),
        ("chat/completions", {**CHAT, "stop": ""}, 400, "stop"),
        ("chat/completions", {**CHAT, "logit_bias": {"99999": 1}}, 400, "99999"),
        ("chat/completions", {**CHAT, "logit_bias": {"x": 1}}, 400, "logit_bias"),
        ("chat/completions", {**CHAT, "logit_bias": {"5": 101}}, 400, "logit_bias"),
        ("chat/completions", {**CHAT, "top_logprobs": 2}, 400, "top_logprobs"),
        ("chat/completions", {**CHAT, "tools": [{"type": "function"}]}, 400, "tools"),
        ("chat/completions", {**CHAT, "stream_options": {"include_usage": True}}, 400, "stream"),
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
            400,
            "JSON schema",
        ),
        ("chat/completions", {**CHAT, "response_format": {"type": "xml"}}, 400, "response_format"),
        ("completions", {"model": "tiny"}, 400, "prompt"),
        ("completions", {**COMPLETION, "prompt": ""}, 400, "prompt"),
        ("completions", {**COMPLETION, "prompt": []}, 400, "answers"),
        ("completions", {**COMPLETION, "prompt": [10**6]}, 400, "1000000"),
        ("completions", {**COMPLETION, "prompt": [-1]}, 400, "prompt"),
        ("completions", {**COMPLETION, "prompt": ["x"] * 200}, 400, "128"),
        ("completions", {**COMPLETION, "suffix": "end"}, 400, "suffix"),
        ("completions", {**COMPLETION, "best_of": 3}, 400, "best_of"),
        ("completions", {**COMPLETION, "prompt": "x " * 5000}, 400, "context"),
        ("completions", {**COMPLETION, "prompt": "\ud800"}, 400, "surrogate"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_cannot_be_done_is_refused_in_openais_shape(served, path, body, status, told, stream):
    async def work(http, client):
        given = body if not stream or "stream_options" in body else {**body, "stream": True}
        content = json.dumps(given, ensure_ascii=True)
        headers = {"Content-Type": "application/json"}
        return await http.post(f"/v1/{path}", content=content, headers=headers)

    answer = served(work)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert told in error["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"], ids=str)
def test_broken_bodies_are_refused_in_openais_shape(served, content):
    headers = {"Content-Type": "application/json"}
    answer = served(lambda http, client: http.post("/v1/completions", content=content, headers=headers))
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_unknown_paths_and_methods_are_refused_in_openais_shape(served):
    async def work(http, client):
        return await http.get("/v1/nothing"), await http.get("/v1/completions")

    absent, method = served(work)
    assert (absent.status_code, method.status_code) == (404, 405)
    assert "error" in absent.json()
    assert "error" in method.json()


@both
def test_keys_are_asked_for_on_every_question(served):
    async def work(http, client):
        answers = [await client.chat.completions.create(messages=HELLO, **GREEDY)]
        for path in ("/v1/models", "/v1/models/tiny"):
            answers.append(await http.get(path))
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/chat"):
            answers.append(await http.post(path, json={}))
        return answers

    first, *others = served(work, api_keys=("one",))
    assert first.choices[0].message.content == GREETING
    assert {answer.status_code for answer in others} == {401}


def test_a_vanished_client_of_a_stream_frees_its_place(served, engine):
    async def work(http, client):
        stream = await client.completions.create(
            prompt="x", stream=True, max_tokens=3000, extra_body={"ignore_eos": True}, **GREEDY
        )
        await anext(aiter(stream))
        await stream.close()
        await eventually_here(lambda: engine.stats().running == 0 and engine.stats().kv_used == 0)

    served(work)


def _occupied(stats):
    return stats.running, stats.waiting, stats.kv_used


def test_vanished_clients_leave_no_task(served, engine):
    long = {"model": "tiny", "prompt": "x", "max_tokens": 3000, "ignore_eos": True}

    async def vanish(url, body):
        _, writer = await asyncio.open_connection(url.host, url.port)
        content = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()
        await eventually_here(lambda: engine.stats().running > 0)
        writer.transport.abort()

    async def work(http, client):
        before = asyncio.all_tasks()
        for _ in range(5):
            await asyncio.gather(*(vanish(http.base_url, {**long, "stream": stream}) for stream in (True, False)))
        await eventually_here(lambda: asyncio.all_tasks() <= before)
        # The engine's thread hears of it between two passes.
        await eventually_here(lambda: _occupied(engine.stats()) == (0, 0, 0))

    served(work)


@both
def test_an_answer_that_takes_too_long_gets_408_whole_and_an_error_event_in_a_stream(served):
    # The server's clock stands still here; the engine's does not.
    body = {**COMPLETION, "max_tokens": 3000, "ignore_eos": True}

    async def work(http, client):
        whole = await http.post("/v1/completions", json=body)
        stream = await http.post("/v1/completions", json={**body, "stream": True})
        return whole, stream

    whole, stream = served(work, request_timeout=0.0, monotonic=__import__("time").monotonic)
    assert whole.status_code == 408
    assert whole.json()["error"]["type"] == "timeout_error"
    assert stream.status_code == 408 or '"error"' in stream.text


@both
def test_langchains_client_works_unmodified(served):
    langchain = pytest.importorskip("langchain_openai")

    async def work(http, client):
        model = langchain.ChatOpenAI(
            base_url=str(client.base_url), api_key="one", model="tiny", temperature=0, stream_usage=True
        )
        whole = await model.ainvoke("Hello")
        pieces = [piece async for piece in model.astream("Hello")]
        properties = {"ready": {"type": "boolean"}}
        shape = {"title": "pod", "type": "object", "properties": properties, "required": ["ready"]}
        shape["additionalProperties"] = False
        typed = await model.with_structured_output(shape, method="json_schema").ainvoke("Hello")
        return whole, pieces, typed

    whole, pieces, typed = served(work)
    assert whole.content == GREETING
    assert whole.usage_metadata["total_tokens"] > 10
    assert "".join(piece.content for piece in pieces) == GREETING
    assert len(pieces) > 2
    assert isinstance(typed["ready"], bool)


@both
def test_a_body_that_drips_is_given_up(served):
    async def work(http, client):
        reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: m\r\nContent-Length: 1000\r\n\r\n{")
        answer = b""
        while b"seconds" not in answer and (part := await reader.read(4096)):
            answer += part
        writer.close()
        return answer

    answer = served(work, body_timeout=0.5)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"The body did not come within 0.5 seconds" in answer


@both
def test_adapters_are_models_of_their_own_that_come_and_go(served, tiny, tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny.network.config.name_or_path)
    torch.manual_seed(3)  # an adapter of chance may say the same as the base model
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["o_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(tmp_path / "adapters" / "pirate")
    (tmp_path / "outside").mkdir()

    async def work(http, client):
        async def ask(model):
            answer = await client.chat.completions.create(messages=HELLO, temperature=0, model=model, max_tokens=20)
            return answer.choices[0].message.content

        load = {"lora_name": "pirate", "lora_path": "pirate"}
        refused = [
            await http.post("/v1/load_lora_adapter", json=load),
            *[
                await http.post("/v1/load_lora_adapter", headers=KEY, json={"lora_name": "x", "lora_path": path})
                for path in ("nowhere", "../outside", "/etc", ".", "pirate\0")
            ],
        ]
        loaded = await http.post("/v1/load_lora_adapter", headers=KEY, json=load)
        ids = [model.id async for model in client.models.list()]
        answers = [await ask("tiny"), await ask("tiny:pirate")]
        gone = await http.post("/v1/unload_lora_adapter", headers=KEY, json={"lora_name": "pirate"})
        with pytest.raises(openai.NotFoundError):
            await ask("tiny:pirate")
        return refused, loaded, ids, answers, gone

    refused, loaded, ids, answers, gone = served(work, api_keys=("one",), runtime_adapters=tmp_path / "adapters")
    assert [answer.status_code for answer in refused] == [401, 400, 400, 400, 400, 400]
    assert (loaded.status_code, gone.status_code) == (200, 200)
    assert ids == ["tiny", "workspace-tiny", "tiny:pirate"]
    assert answers[0] == GREETING
    assert answers[1] != GREETING
