"""The batch answers as transformers does alone, and nothing that a request holds can end it."""

import asyncio
import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from tests.eventually import PATIENCE, eventually_here

from kaito_serving.engine.base import Chunk, GenRequest, Sampling
from kaito_serving.errors import EngineUnavailable, InvalidRequest, TooManyRequests
from kaito_serving.model.load import load
from kaito_serving.run.options import Options

PROMPTS = ["What is Kubernetes?", "Is a GPU", "The model reads"]


async def tokens_of(engine, request) -> list[int]:
    return [token for chunk in [c async for c in engine.submit(request)] for token in chunk.token_ids]


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


@pytest.fixture
def ids(tiny):
    return [tuple(tiny.tokenizer(text)["input_ids"]) for text in PROMPTS]


@pytest.fixture
def engine(tiny, make_engine):
    return make_engine(tiny)


def test_three_prompts_together_are_answered_as_by_transformers_alone(engine, ids, greedy):
    expected = [greedy(prompt, 40) for prompt in ids]
    assert len({tuple(e) for e in expected}) == 3

    async def work(engine):
        return await asyncio.gather(*(tokens_of(engine, GenRequest(p, 40, frozenset())) for p in ids))

    assert run(engine, work) == expected


def test_many_lengths_in_a_small_cache_are_answered_as_alone(tiny, make_engine, greedy):
    chance = random.Random(3)
    cases = [
        (tuple(chance.randrange(8, 900) for _ in range(chance.choice((1, 5, 33, 200)))), chance.choice((1, 8, 60)))
        for _ in range(24)
    ]
    expected = [greedy(prompt, new) for prompt, new in cases]

    async def work(engine):
        return await asyncio.gather(*(tokens_of(engine, GenRequest(p, n, frozenset())) for p, n in cases))

    assert run(make_engine(tiny, kv_cache_tokens=512, max_batch_tokens=64), work) == expected


def test_a_model_with_sliding_attention_is_answered_as_alone(tiny_folder, tmp_path, make_engine, greedy):
    folder = shutil.copytree(tiny_folder, tmp_path / "weights")
    config = json.loads((folder / "config.json").read_text())
    config["sliding_window"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    model = load(Options(weights=str(folder), adapters_dir=Path("/nonexistent")), {})
    prompts = [tuple(model.tokenizer(text)["input_ids"]) for text in (PROMPTS[0] * 6, PROMPTS[1])]
    expected = [greedy(prompt, 40, network=model.network) for prompt in prompts]

    async def work(engine):
        return await asyncio.gather(*(tokens_of(engine, GenRequest(p, 40, frozenset())) for p in prompts))

    assert run(make_engine(model), work) == expected


def test_greedy_stays_greedy_beside_sampled_requests(engine, ids, greedy):
    expected = greedy(ids[0], 40)
    hot = GenRequest(ids[1], 40, frozenset(), Sampling(temperature=5.0))

    async def work(engine):
        results = await asyncio.gather(
            *(tokens_of(engine, request) for request in [GenRequest(ids[0], 40, frozenset()), hot, hot, hot])
        )
        return results[0], results[1:]

    cold, sampled = run(engine, work)
    assert cold == expected
    assert len({tuple(tokens) for tokens in sampled}) == 3


def test_an_answer_ends_at_an_end_token_and_says_so(engine, ids, tiny):
    end = tiny.tokenizer.eos_token_id

    async def work(engine):
        stopped = [c async for c in engine.submit(GenRequest(ids[0], 100, frozenset({end})))]
        cut = [c async for c in engine.submit(GenRequest(ids[0], 3, frozenset({end})))]
        return stopped[-1], cut[-1]

    stopped, cut = run(engine, work)
    assert stopped.finish == "stop"
    assert stopped.token_ids[-1] == end
    assert (cut.finish, len(cut.token_ids)) == ("length", 3)


def test_a_stream_brings_every_token_once(engine, ids, greedy):
    expected = greedy(ids[0], 12)

    async def work(engine):
        return [c async for c in engine.submit(GenRequest(ids[0], 12, frozenset(), stream=True))]

    chunks = run(engine, work)
    assert len(chunks) > 3
    assert [token for chunk in chunks for token in chunk.token_ids] == expected
    assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize(
    "special",
    [{"num_beams": 3}, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 30}],
    ids=str,
)
def test_special_settings_are_answered_as_by_transformers_while_others_run(engine, ids, greedy, tiny, special):
    end = tiny.tokenizer.eos_token_id
    expected = greedy(ids[0], 40, eos=end, **special)
    beside = greedy(ids[1], 200)

    async def work(engine):
        running = asyncio.create_task(tokens_of(engine, GenRequest(ids[1], 200, frozenset())))
        await eventually_here(lambda: engine.stats().running == 1)
        alone = await tokens_of(engine, GenRequest(ids[0], 40, frozenset({end}), special=special))
        return alone, await running

    alone, neighbour = run(engine, work)
    assert alone == expected[: len(alone)]
    assert set(expected[len(alone) :]) <= {0}
    assert neighbour == beside


def test_several_beams_return_several_answers(engine, ids):
    async def work(engine):
        request = GenRequest(ids[0], 8, frozenset(), special={"num_beams": 3}, sequences=3)
        return [c async for c in engine.submit(request)]

    chunks = run(engine, work)
    assert [chunk.sequence for chunk in chunks] == [0, 1, 2]
    assert len({chunk.token_ids for chunk in chunks}) == 3


def test_the_largest_request_that_fits_is_answered(engine, ids, greedy):
    room = engine.limits.context
    prompt = tuple(ids[0] * 1000)[: room - 10]
    assert run(engine, lambda e: tokens_of(e, GenRequest(prompt, 10, frozenset()))) == greedy(prompt, 10)


def test_extreme_but_legal_sampling_harms_nobody(engine, ids, greedy):
    expected = greedy(ids[0], 60)
    extremes = [
        Sampling(temperature=1e-4),
        Sampling(temperature=1e38),
        Sampling(top_k=2, top_p=1e-9),
        Sampling(temperature=1e-4, top_k=999, top_p=1e-9),
    ]

    async def work(engine):
        victim = asyncio.create_task(tokens_of(engine, GenRequest(ids[0], 60, frozenset())))
        others = await asyncio.gather(
            *(tokens_of(engine, GenRequest(ids[1], 20, frozenset(), sampling)) for sampling in extremes)
        )
        return await victim, others, engine.stats().restarts

    answer, others, restarts = run(engine, work)
    assert answer == expected
    assert [len(tokens) for tokens in others] == [20] * 4
    assert restarts == 0


def test_closing_a_stream_frees_its_place(engine, ids):
    async def work(engine):
        stream = engine.submit(GenRequest(ids[0], 3000, frozenset(), stream=True))
        assert isinstance(await anext(stream), Chunk)
        await stream.aclose()
        await eventually_here(lambda: engine.stats().running == 0 and engine.stats().kv_used == 0)

    run(engine, work)


def test_a_cancelled_special_request_ends_early(engine, ids):
    async def work(engine):
        request = GenRequest(ids[0], 3000, frozenset(), special={"repetition_penalty": 1.1})
        task = asyncio.create_task(tokens_of(engine, request))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(3):
                await task
        return await tokens_of(engine, GenRequest(ids[0], 5, frozenset()))

    assert len(run(engine, work)) == 5


def test_a_full_queue_answers_429(tiny, make_engine, ids):
    async def work(engine):
        tasks = [asyncio.create_task(tokens_of(engine, GenRequest(ids[0], 50, frozenset()))) for _ in range(12)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return [isinstance(result, TooManyRequests) for result in results], results

    refused, results = run(make_engine(tiny, max_waiting=4), work)
    assert any(refused)
    assert refused.count(False) >= 4
    assert all(len(result) == 50 for result, was in zip(results, refused, strict=True) if not was)


def test_an_unknown_adapter_is_refused_before_it_is_queued(engine, ids):
    async def work(engine):
        with pytest.raises(InvalidRequest, match="Unknown adapter nobody; loaded adapters: none"):
            await tokens_of(engine, GenRequest(ids[0], 5, frozenset(), adapters={"nobody": 1.0}))

    run(engine, work)


def test_a_dead_loop_fails_its_requests_with_503_and_is_replaced(engine, ids, greedy):
    expected = greedy(ids[0], 10)

    async def work(engine):
        victims = [asyncio.create_task(tokens_of(engine, GenRequest(ids[0], 3000, frozenset()))) for _ in range(3)]
        await eventually_here(lambda: engine.stats().running == 3)
        kill(engine)
        results = await asyncio.gather(*victims, return_exceptions=True)
        await eventually_here(lambda: engine.running)
        engine.check()
        return results, await tokens_of(engine, GenRequest(ids[0], 10, frozenset())), engine.stats()

    results, answer, stats = run(engine, work)
    assert [type(result) for result in results] == [EngineUnavailable] * 3
    assert answer == expected
    assert stats.restarts == 1


def test_two_deaths_within_a_minute_call_for_a_new_process(engine, ids):
    async def work(engine):
        for count in (1, 2):
            kill(engine)
            await eventually_here(lambda count=count: engine.stats().restarts == count and engine.running)
        with pytest.raises(EngineUnavailable, match="died twice"):
            engine.check()

    run(engine, work)


def kill(engine) -> None:
    """End the generation loop as a bug in it would: with a token that no guard let through."""
    engine._batch._manager.add_request([10**6], max_new_tokens=2)


def test_greedy_takes_the_first_of_equal_scores(tiny, make_engine):
    """In 16 bits several tokens often share the highest score; sampling among them would not be greedy."""
    head = tiny.network.lm_head.weight
    with torch.no_grad():
        head[11] = head[10] = head[:, :].abs().max() * torch.sign(torch.ones_like(head[0]))
        head[12] = head[10]
    model = dataclasses.replace(tiny)

    async def work(engine):
        return [await tokens_of(engine, GenRequest((9, 8, 7), 6, frozenset())) for _ in range(6)]

    answers = run(make_engine(model), work)
    assert len({tuple(answer) for answer in answers}) == 1
