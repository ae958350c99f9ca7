"""The packed batch answers as transformers' `generate` does alone, and nothing that a request holds can end it."""

import asyncio
import dataclasses
import json
import random
import shutil
import threading

import pytest
import torch
from tests.eventually import PATIENCE, eventually_here

from kaito_serving.engine.base import Chunk, Request, SamplingParams, State
from kaito_serving.errors import EngineUnavailable, InvalidRequest, RequestFailed, RequestTimeout, TooManyRequests
from kaito_serving.model.load import load
from kaito_serving.options import Options

PROMPTS = ["What is Kubernetes?", "Is a GPU", "The model reads"]


def asked(prompt, new, **settings) -> Request:
    """A greedy request unless the settings say otherwise."""
    params = SamplingParams(max_tokens=new, **{"temperature": 0.0} | settings)
    return Request(prompt_ids=tuple(prompt), params=params)


async def tokens_of(engine, request) -> list[int]:
    return [token for chunk in [c async for c in engine.submit(request)] for token in chunk.token_ids]


async def all_of(engine, requests) -> list[list[int]]:
    return list(await asyncio.gather(*(tokens_of(engine, request) for request in requests)))


def run(engine, work):
    """Run `work(engine)` between start and stop of the engine."""

    async def whole():
        await engine.start()
        try:
            async with asyncio.timeout(2 * PATIENCE):
                return await work(engine)
        finally:
            await engine.stop()

    return asyncio.run(whole())


class Turnstile:
    """Lets through as many forward passes as the test allows, so that nothing is over before the test has looked."""

    def __init__(self, network) -> None:
        self._permits = threading.Semaphore(0)
        self._hook = network.register_forward_pre_hook(self._wait)

    def _wait(self, *_) -> None:
        assert self._permits.acquire(timeout=PATIENCE)

    def allow(self, passes) -> None:
        self._permits.release(passes)

    def open(self) -> None:
        self._hook.remove()
        self._permits.release()  # for the pass that waits


@pytest.fixture
def ids(tiny):
    return [tuple(tiny.tokenizer(text)["input_ids"]) for text in PROMPTS]


@pytest.fixture
def engine(tiny, make_engine):
    return make_engine(tiny)


def test_prompts_together_are_answered_as_by_generate_alone(engine, ids, greedy):
    expected = [greedy(prompt, 40) for prompt in ids]
    assert len({tuple(e) for e in expected}) == 3
    assert run(engine, lambda e: all_of(e, [asked(prompt, 40) for prompt in ids])) == expected


def test_many_lengths_in_a_small_cache_are_answered_as_alone(tiny, make_engine, greedy):
    chance = random.Random(3)
    cases = [
        (tuple(chance.randrange(8, 900) for _ in range(chance.choice((1, 5, 33, 200)))), chance.choice((1, 8, 60)))
        for _ in range(24)
    ]
    expected = [greedy(prompt, new) for prompt, new in cases]
    small = make_engine(tiny, kv_cache_tokens=512, max_batch_tokens=64)
    assert run(small, lambda e: all_of(e, [asked(prompt, new) for prompt, new in cases])) == expected


def test_rows_that_move_in_the_cache_keep_what_they_know(tiny, make_engine, greedy):
    """Short neighbours leave gaps, and the long one fits only once the others have moved together."""
    short, kept, long = tuple(range(50, 60)), tuple(range(60, 90)), tuple(range(90, 190))
    cases = [(short, 5), (kept, 120), (short, 5), (kept, 110), (short, 60), (long, 30)]
    expected = [greedy(prompt, new) for prompt, new in cases]
    small = make_engine(tiny, kv_cache_tokens=490, max_batch_tokens=512)
    assert run(small, lambda e: all_of(e, [asked(prompt, new) for prompt, new in cases])) == expected


def test_a_request_that_comes_later_joins_the_batch(engine, ids, greedy):
    expected = [greedy(ids[0], 200), greedy(ids[1], 20)]

    async def work(engine):
        first = engine.submit(asked(ids[0], 200))
        begun = list((await anext(first)).token_ids)
        second = await tokens_of(engine, asked(ids[1], 20))
        return [begun + [token async for chunk in first for token in chunk.token_ids], second]

    assert run(engine, work) == expected


def test_greedy_stays_greedy_beside_sampled_requests(engine, ids, greedy):
    expected = greedy(ids[0], 40)
    hot = asked(ids[1], 40, temperature=5.0)
    cold, *sampled = run(engine, lambda e: all_of(e, [asked(ids[0], 40), hot, hot, hot]))
    assert cold == expected
    assert len({tuple(tokens) for tokens in sampled}) == 3


SETTINGS = {
    "repetition_penalty": ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    "bad_words_ids": ({"bad_words_ids": ((30, 31), (12,))}, {"bad_words_ids": [[30, 31], [12]]}),
    "suppress_tokens": ({"suppress_tokens": (12, 20)}, {"suppress_tokens": [12, 20]}),
    "begin_suppress_tokens": ({"begin_suppress_tokens": (12, 20)}, {"begin_suppress_tokens": [12, 20]}),
    "min_tokens": ({"min_tokens": 30}, {"min_new_tokens": 30}),
    "forced_eos": ({"forced_eos_token_ids": (9,)}, {"forced_eos_token_id": 9}),
    "length_decay": ({"length_decay": (3, 1.4)}, {"exponential_decay_length_penalty": (3, 1.4)}),
}


@pytest.mark.parametrize(("ours", "theirs"), SETTINGS.values(), ids=SETTINGS)
def test_each_setting_is_answered_as_by_generate_while_others_run(engine, ids, greedy, tiny, ours, theirs):
    end = tiny.tokenizer.eos_token_id
    expected = greedy(ids[0], 40, eos=end, **theirs)
    beside = greedy(ids[1], 60)
    request = asked(ids[0], 40, stop_token_ids=frozenset({end}), **ours)
    answer, neighbour = run(engine, lambda e: all_of(e, [request, asked(ids[1], 60)]))
    assert answer == expected
    assert neighbour == beside


SAMPLED = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 10},
    "top_p": {"top_p": 0.8},
    "all of them": {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 0.01},
    "eta_cutoff": {"eta_cutoff": 0.02},
    "penalty": {"repetition_penalty": 1.3, "top_k": 20},
}


@pytest.mark.parametrize("settings", SAMPLED.values(), ids=SAMPLED)
def test_a_seed_draws_what_generate_draws_with_it(engine, ids, reference, settings):
    def generated(seed):
        torch.manual_seed(seed)
        prompt = torch.tensor([ids[0]])
        row = reference.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            max_new_tokens=30,
            eos_token_id=[-1],
            pad_token_id=0,
            **{"top_k": 0, "temperature": 2.0} | settings,
        )
        return row[0, prompt.shape[1] :].tolist()

    expected = [generated(seed) for seed in (1, 2)]
    one, two = (asked(ids[0], 30, **{"temperature": 2.0} | settings, seed=seed) for seed in (1, 2))
    beside = asked(ids[1], 40, temperature=1.0)
    answers = run(engine, lambda e: all_of(e, [one, two, beside]))
    assert answers[:2] == expected
    assert answers[0] != answers[1]


def test_presence_and_frequency_penalties_drive_repetition_out(engine, ids):
    plain = asked(ids[0], 60)
    presence = asked(ids[0], 60, presence_penalty=2.0)
    frequency = asked(ids[0], 60, frequency_penalty=2.0)
    answers = run(engine, lambda e: all_of(e, [plain, presence, frequency]))
    variety = [len(set(tokens)) for tokens in answers]
    assert variety[1] > variety[0]
    assert variety[2] > variety[0]


def test_a_bias_decides_and_a_ban_is_kept(engine, ids):
    wanted = asked(ids[0], 5, logit_bias={77: 100.0})
    banned = asked(ids[0], 30, logit_bias={77: float("-inf")}, temperature=3.0)
    liked, disliked = run(engine, lambda e: all_of(e, [wanted, banned]))
    assert liked == [77] * 5
    assert 77 not in disliked


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.5}], ids=str)
def test_unseeded_draws_stay_among_the_likely_tokens(engine, ids, reference, settings):
    with torch.inference_mode():
        scores = reference(input_ids=torch.tensor([ids[0]])).logits[0, -1]
    probabilities = scores.softmax(-1)
    ordered, order = probabilities.sort(descending=True)
    if "top_k" in settings:
        allowed = set(order[:3].tolist())
    elif "top_p" in settings:
        allowed = set(order[: int((ordered.cumsum(0) - ordered < 0.3).sum())].tolist())
    else:
        allowed = set((probabilities >= 0.5 * probabilities.max()).nonzero()[:, 0].tolist())
    drawn = run(engine, lambda e: all_of(e, [asked(ids[0], 1, temperature=1.0, **settings)] * 60))
    assert {tokens[0] for tokens in drawn} <= allowed


def test_an_answer_ends_at_an_end_token_and_says_so(engine, ids, tiny):
    end = tiny.tokenizer.eos_token_id

    async def work(engine):
        stopped = [c async for c in engine.submit(asked(ids[0], 100, stop_token_ids=frozenset({end})))]
        cut = [c async for c in engine.submit(asked(ids[0], 3, stop_token_ids=frozenset({end})))]
        return stopped[-1], cut

    stopped, cut = run(engine, work)
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", end)
    assert stopped.token_ids[-1] == end
    assert cut[-1].finish_reason == "length"
    assert sum(len(chunk.token_ids) for chunk in cut) == 3


def test_a_stop_string_ends_the_answer_with_the_token_that_completes_it(engine, ids, greedy, tiny):
    expected = greedy(ids[0], 60)
    text = tiny.decode(expected)
    string = text[10:16]

    async def work(engine):
        return [c async for c in engine.submit(asked(ids[0], 60, stop=("never there", string)))]

    chunks = run(engine, work)
    answer = [token for chunk in chunks for token in chunk.token_ids]
    assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == ("stop", string)
    assert answer == expected[: len(answer)]
    assert string in tiny.decode(answer)
    assert string not in tiny.decode(answer[:-1])


def test_logprobs_are_the_models_own(engine, ids, reference, greedy):
    answer = greedy(ids[0], 6)
    with torch.inference_mode():
        logits = reference(input_ids=torch.tensor([[*ids[0], *answer]])).logits[0].log_softmax(-1)
    first = len(ids[0]) - 1

    async def work(engine):
        # A penalty and a bias change what is chosen from, not what is told.
        request = asked(ids[0], 6, logprobs=3, prompt_logprobs=2, logit_bias={answer[0]: 5.0})
        return [c async for c in engine.submit(request)]

    chunks = run(engine, work)
    told = [entry for chunk in chunks for entry in chunk.logprobs]
    assert [entry.token_id for entry in told] == [token for chunk in chunks for token in chunk.token_ids]
    for at, entry in enumerate(told[:1]):
        assert entry.logprob == pytest.approx(logits[first + at, entry.token_id].item(), abs=1e-4)
        assert [token for token, _ in entry.top] == logits[first + at].topk(3).indices.tolist()
    prompt = chunks[0].prompt_logprobs
    assert prompt[0] is None
    assert [entry.token_id for entry in prompt[1:]] == list(ids[0][1:])
    for at, entry in enumerate(prompt[1:]):
        assert entry.logprob == pytest.approx(logits[at, entry.token_id].item(), abs=1e-4)
        assert len(entry.top) == 2


def test_the_logprobs_of_a_prompt_in_many_parts_are_complete(tiny, make_engine):
    prompt = tuple(range(40, 140))

    async def work(engine):
        return [c async for c in engine.submit(asked(prompt, 1, prompt_logprobs=0))]

    (chunk,) = run(make_engine(tiny, max_batch_tokens=16), work)
    assert [entry.token_id for entry in chunk.prompt_logprobs[1:]] == list(prompt[1:])


def test_a_schema_is_kept_by_every_answer(engine, ids, tiny):
    schema = json.dumps(
        {
            "type": "object",
            "properties": {"pods": {"type": "integer"}, "ready": {"type": "boolean"}},
            "required": ["pods", "ready"],
            "additionalProperties": False,
        }
    )
    ends = frozenset(tiny.end_tokens)
    requests = [
        asked(ids[0], 200, json_schema=schema, stop_token_ids=ends, temperature=temperature, seed=seed)
        for seed, temperature in enumerate((0.0, 0.5, 1.0))
    ]

    async def work(engine):
        results = []
        for request in requests:
            chunks = [c async for c in engine.submit(request)]
            tokens = [token for chunk in chunks for token in chunk.token_ids if token not in ends]
            results.append((chunks[-1].finish_reason, tiny.decode(tokens)))
        return results

    for reason, text in run(engine, work):
        if reason == "stop":
            assert set(json.loads(text)) == {"pods", "ready"}
        else:  # an endless integer
            assert text.lstrip().startswith("{")


def test_a_schema_that_cannot_be_followed_is_refused(engine, ids):
    async def work(engine):
        for schema in ("nonsense", '{"type": "no such type"}'):
            with pytest.raises(InvalidRequest, match="JSON schema"):
                await tokens_of(engine, asked(ids[0], 5, json_schema=schema))
        return await tokens_of(engine, asked(ids[0], 5))

    assert len(run(engine, work)) == 5


def test_the_largest_request_that_fits_is_answered(engine, ids, greedy):
    room = engine.limits.context
    prompt = tuple(ids[0] * 1000)[: room - 10]
    assert run(engine, lambda e: tokens_of(e, asked(prompt, 10))) == greedy(prompt, 10)


def test_a_long_prompt_does_not_hold_an_answer_up(tiny, make_engine, ids):
    """While its prompt is read in parts, the neighbour gets a token with every part."""
    long = tuple(ids[0] * 1000)[:1900]

    async def work(engine):
        turnstile = Turnstile(tiny.network)
        turnstile.allow(1)
        neighbour = engine.submit(asked(ids[1], 200))
        await anext(neighbour)
        later = asyncio.create_task(tokens_of(engine, asked(long, 1)))
        await eventually_here(lambda: engine.stats().waiting + engine.stats().running == 2)
        turnstile.open()
        count = 0
        async for _ in neighbour:
            count += 1
            if later.done():
                break
        await neighbour.aclose()
        return count, await later

    count, answer = run(make_engine(tiny, max_batch_tokens=65), work)
    assert count >= 1900 // 64
    assert len(answer) == 1


def test_extreme_but_legal_sampling_harms_nobody(engine, ids, greedy):
    expected = greedy(ids[0], 60)
    extremes = [
        {"temperature": 1e-4},
        {"temperature": 1e38},
        {"temperature": 1.0, "top_k": 2, "top_p": 1e-9},
        {"temperature": 1e-4, "top_k": 999, "top_p": 1e-9},
        {"temperature": 1.0, "typical_p": 1e-9},
        {"temperature": 1.0, "repetition_penalty": 10.0, "presence_penalty": 2.0},
    ]
    requests = [asked(ids[0], 60), *(asked(ids[1], 20, **settings) for settings in extremes)]
    victim, *others = run(engine, lambda e: all_of(e, requests))
    assert victim == expected
    assert [len(tokens) for tokens in others] == [20] * len(extremes)
    assert engine.stats().restarts == 0


def test_a_request_that_no_token_is_left_for_fails_alone(engine, ids, tiny, greedy):
    every = {token: float("-inf") for token in range(tiny.vocabulary)}

    async def work(engine):
        return await asyncio.gather(
            tokens_of(engine, asked(ids[0], 5, logit_bias=every)),
            tokens_of(engine, asked(ids[1], 20)),
            return_exceptions=True,
        )

    failed, neighbour = run(engine, work)
    assert isinstance(failed, RequestFailed)
    assert neighbour == greedy(ids[1], 20)


def test_a_request_that_makes_nan_fails_alone(tiny, make_engine, greedy, ids):
    """A token whose embedding is broken breaks the rows that hold it, and no other."""
    expected = greedy(ids[1], 20)
    with torch.no_grad():
        tiny.network.get_input_embeddings().weight[900] = float("nan")

    async def work(engine):
        return await asyncio.gather(
            tokens_of(engine, asked((900, 50, 51), 20)), tokens_of(engine, asked(ids[1], 20)), return_exceptions=True
        )

    failed, neighbour = run(make_engine(tiny), work)
    assert isinstance(failed, RequestFailed)
    assert "not finite" in str(failed)
    assert neighbour == expected


def test_closing_a_stream_frees_its_place(engine, ids):
    async def work(engine):
        stream = engine.submit(asked(ids[0], 3000))
        assert isinstance(await anext(stream), Chunk)
        await stream.aclose()
        await eventually_here(lambda: engine.stats().running == 0 and engine.stats().kv_used == 0)

    run(engine, work)


def test_a_request_that_is_cancelled_while_it_waits_never_runs(tiny, make_engine, ids):
    async def work(engine):
        turnstile = Turnstile(tiny.network)
        turnstile.allow(1)
        first = engine.submit(asked(ids[0], 400))
        await anext(first)
        waiting = asyncio.create_task(tokens_of(engine, asked(ids[1], 400)))
        await eventually_here(lambda: engine.stats().waiting == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert engine.stats().waiting == 0
        turnstile.open()
        await first.aclose()
        await eventually_here(lambda: engine.stats().kv_used == 0)

    run(make_engine(tiny, kv_cache_tokens=500), work)


def test_a_full_queue_answers_429(tiny, make_engine, ids):
    async def work(engine):
        tasks = [asyncio.create_task(tokens_of(engine, asked(ids[0], 50))) for _ in range(12)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = run(make_engine(tiny, max_waiting=4), work)
    refused = [isinstance(result, TooManyRequests) for result in results]
    assert any(refused)
    assert refused.count(False) >= 4
    assert all(len(result) == 50 for result, was in zip(results, refused, strict=True) if not was)


def test_a_deadline_ends_a_request(tiny, make_engine, ids):
    clock = [0.0]

    async def work(engine):
        turnstile = Turnstile(tiny.network)
        turnstile.allow(1)
        stream = engine.submit(dataclasses.replace(asked(ids[0], 3000), deadline=10.0))
        await anext(stream)
        clock[0] = 11.0
        turnstile.open()
        with pytest.raises(RequestTimeout):
            async for _ in stream:
                pass
        return engine.stats().running

    assert run(make_engine(tiny, monotonic=lambda: clock[0]), work) == 0


def test_an_unknown_adapter_is_refused_before_it_is_queued(engine, ids):
    async def work(engine):
        with pytest.raises(InvalidRequest, match="Unknown adapter nobody; loaded adapters: none"):
            await tokens_of(engine, dataclasses.replace(asked(ids[0], 5), adapters={"nobody": 1.0}))

    run(engine, work)


def broken_from_now(network) -> torch.utils.hooks.RemovableHandle:
    """Every pass fails as a bug in a model's code would."""

    def fail(*_):
        raise ZeroDivisionError("broken from outside")

    return network.register_forward_pre_hook(fail)


def test_a_failed_pass_fails_its_requests_with_503_and_the_next_ones_are_answered(engine, tiny, ids, greedy):
    expected = greedy(ids[0], 10)

    async def work(engine):
        turnstile = Turnstile(tiny.network)
        victims = [asyncio.create_task(tokens_of(engine, asked(ids[0], 1000))) for _ in range(3)]
        await eventually_here(lambda: engine.stats().waiting + engine.stats().running == 3)
        turnstile.allow(1)  # the others join after the first pass
        await eventually_here(lambda: engine.stats().running == 3)
        hook = broken_from_now(tiny.network)
        turnstile.open()
        results = await asyncio.gather(*victims, return_exceptions=True)
        hook.remove()
        engine.check()
        answer = await tokens_of(engine, asked(ids[0], 10))
        await eventually_here(lambda: engine.stats().kv_used == 0)
        return results, answer, engine.stats()

    results, answer, stats = run(engine, work)
    assert [type(result) for result in results] == [EngineUnavailable] * 3
    assert answer == expected
    assert stats.restarts == 1


def test_two_failures_within_a_minute_call_for_a_new_process(engine, tiny, ids):
    async def work(engine):
        broken_from_now(tiny.network)
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await tokens_of(engine, asked(ids[0], 5))
        await eventually_here(lambda: engine.state() is State.FAILED)
        with pytest.raises(EngineUnavailable, match="within a minute"):
            engine.check()

    run(engine, work)


def test_a_failure_long_after_another_is_forgiven(tiny, make_engine, ids):
    clock = [0.0]

    async def work(engine):
        for now in (0.0, 100.0):
            clock[0] = now
            hook = broken_from_now(tiny.network)
            with pytest.raises(EngineUnavailable):
                await tokens_of(engine, asked(ids[0], 5))
            hook.remove()
        assert len(await tokens_of(engine, asked(ids[0], 5))) == 5
        engine.check()

    run(make_engine(tiny, monotonic=lambda: clock[0]), work)


def test_a_request_that_cannot_even_be_taken_in_fails_alone(engine, ids, greedy):
    """Surfaces let no such token through; the engine's thread must outlive one all the same."""
    expected = greedy(ids[0], 20)
    impossible = asked((10**9,), 5, repetition_penalty=1.2)

    async def work(engine):
        for _ in range(3):
            with pytest.raises(RequestFailed, match="could not be taken in"):
                await tokens_of(engine, impossible)
        engine.check()
        return await tokens_of(engine, asked(ids[0], 20))

    assert run(engine, work) == expected


def test_out_of_memory_costs_the_newest_request_alone(engine, tiny, ids, greedy):
    expected = greedy(ids[0], 60)
    kv = engine.stats().kv_total
    late = tuple(range(300, 340))

    def fail(_module, args, kwargs):
        if kwargs["input_ids"].shape[-1] >= len(late):
            raise torch.OutOfMemoryError("CUDA out of memory")

    async def work(engine):
        turnstile = Turnstile(tiny.network)
        first = asyncio.create_task(tokens_of(engine, asked(ids[0], 60)))
        await eventually_here(lambda: engine.stats().running == 1)
        tiny.network.register_forward_pre_hook(fail, with_kwargs=True)
        turnstile.open()
        with pytest.raises(EngineUnavailable, match="memory"):
            await tokens_of(engine, asked(late, 60))
        return await first

    assert run(engine, work) == expected
    assert engine.stats().kv_total < kv


def test_the_highest_priority_goes_first_and_clients_share_fairly(tiny, make_engine, ids):
    order = []

    async def noted(engine, name, **fields):
        async for _ in engine.submit(dataclasses.replace(asked(ids[0], 30), **fields)):
            if name not in order:
                order.append(name)

    async def work(engine):
        turnstile = Turnstile(tiny.network)
        turnstile.allow(1)
        blocker = engine.submit(asked(ids[0], 60))
        await anext(blocker)
        tasks = []
        arrivals = (
            ("a1", {"client": "a"}),
            ("a2", {"client": "a"}),
            ("a3", {"client": "a"}),
            ("b1", {"client": "b"}),
            ("urgent", {"client": "a", "priority": 1}),
        )
        for count, (name, fields) in enumerate(arrivals, 1):
            tasks.append(asyncio.create_task(noted(engine, name, **fields)))
            await eventually_here(lambda count=count: engine.stats().waiting == count)
        await blocker.aclose()
        turnstile.open()
        await asyncio.gather(*tasks)

    room = len(ids[0]) + 30
    run(make_engine(tiny, kv_cache_tokens=2 * room + 10), work)
    assert order.index("urgent") == 0
    assert order.index("b1") < order.index("a2")


def test_a_model_with_sliding_attention_is_answered_as_alone(tiny_folder, tmp_path, make_engine, greedy):
    folder = shutil.copytree(tiny_folder, tmp_path / "weights")
    config = json.loads((folder / "config.json").read_text())
    config["sliding_window"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    model = load(Options(weights=str(folder)))
    prompts = [tuple(model.tokenizer(text)["input_ids"]) for text in (PROMPTS[0] * 6, PROMPTS[1])]
    expected = [greedy(prompt, 40, network=model.network) for prompt in prompts]
    engine = make_engine(model, max_batch_tokens=20)
    assert run(engine, lambda e: all_of(e, [asked(prompt, 40) for prompt in prompts])) == expected


def test_greedy_takes_the_first_of_equal_scores(tiny, make_engine):
    """In 16 bits several tokens often share the highest score; sampling among them would not be greedy."""
    head = tiny.network.lm_head.weight
    with torch.no_grad():
        head[11] = head[10] = head[:, :].abs().max() * torch.sign(torch.ones_like(head[0]))
        head[12] = head[10]
    answers = run(make_engine(tiny), lambda e: all_of(e, [asked((9, 8, 7), 6)] * 6))
    assert len({tuple(answer) for answer in answers}) == 1
