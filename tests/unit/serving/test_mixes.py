"""Mixes of adapters at vLLM: loads that overlap, clients that leave, adapters that come and go meanwhile."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.eventually import PATIENCE, eventually_here
from tests.stand_ins.scripted import Alive, Scripted, listening
from tests.unit.serving.test_adapters import make

from kaito_serving.engine.base import Limits, Request, SamplingParams, State
from kaito_serving.engine.vllm import mixes
from kaito_serving.engine.vllm.engine import VllmEngine
from kaito_serving.errors import AdapterError, InvalidRequest, RequestTimeout, TooManyRequests, UnknownModel
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.lora.read import read
from kaito_serving.run.service import ModelService
from kaito_serving.run.startup import Startup

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory):
    """Two adapters, and another one of the first one's name."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two", "other/one")):
        make(tiny_folder, folder / name, seed=seed, r=2, lora_alpha=2, target_modules=["o_proj"])
    return folder


def engine_at(url, folders, baked_in, *, strengths=(), lora_rank=8) -> VllmEngine:
    return VllmEngine(
        Alive(),
        url=url,
        model="base",
        limits=Limits(vocabulary=100, context=100),
        adapters={name: read(folders / name) for name in ("one", "two")},
        strengths=dict(strengths),
        lora_rank=lora_rank,
        mixes=baked_in,
        max_waiting=8,
        monotonic=time.monotonic,
    )


@pytest.fixture
def scripted(folders, tmp_path):
    """Run `work(engine, vllm)` with the adapters one and two, of which `strengths` are the deployment's mix."""

    def run(work, *, strengths=()):
        async def whole():
            vllm = Scripted()
            async with listening(vllm.application()) as url:
                engine = engine_at(
                    url, folders, tmp_path / "mixes", strengths={"one": 0.0, "two": 0.0} | dict(strengths)
                )
                await engine.start()
                try:
                    async with asyncio.timeout(2 * PATIENCE):
                        return await work(engine, vllm)
                finally:
                    vllm.may_load.set()
                    await engine.stop()

        return asyncio.run(whole())

    return run


async def name_of(engine, adapters) -> str:
    async with engine.mix(adapters) as name:
        return name


async def loading(engine, vllm, adapters) -> asyncio.Task:
    """A request whose mix vLLM is loading, and does not finish."""
    vllm.may_load.clear()
    began = vllm.loads
    task = asyncio.create_task(name_of(engine, adapters))
    await eventually_here(lambda: vllm.loads > began)
    return task


def baked(vllm) -> list[Path]:
    """The folders beside those of the mixes that vLLM knows."""
    (parent,) = {Path(path).parent for path in vllm.known.values()}
    return sorted(parent.iterdir())


def test_requests_for_one_mix_at_the_same_time_load_it_once(scripted):
    async def work(engine, vllm):
        names = await asyncio.gather(*(name_of(engine, {"one": 0.5}) for _ in range(8)))
        assert {*names} == vllm.known.keys()
        assert vllm.loads == 1

    scripted(work)


def test_a_mix_whose_client_leaves_while_it_loads_is_known_on_both_sides(scripted):
    async def work(engine, vllm):
        task = await loading(engine, vllm, {"one": 0.5})
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        vllm.may_load.set()
        assert await name_of(engine, {"one": 0.5}) in vllm.known
        assert vllm.loads == 1
        assert [str(path) for path in baked(vllm)] == [*vllm.known.values()]

    scripted(work)


def test_a_mix_that_is_loaded_does_not_wait_for_one_that_loads(scripted):
    async def work(engine, vllm):
        loaded = await name_of(engine, {"one": 1.0})
        task = await loading(engine, vllm, {"two": 0.5})
        assert await asyncio.wait_for(name_of(engine, {"one": 1.0}), PATIENCE) == loaded
        assert not task.done()
        vllm.may_load.set()
        await task

    scripted(work)


def test_an_answer_whose_mix_loads_too_long_is_given_up(scripted):
    async def work(engine, vllm):
        vllm.may_load.clear()
        request = Request(
            prompt_ids=(1,),
            params=SamplingParams(max_tokens=1),
            adapters={"one": 0.5},
            deadline=time.monotonic() + 0.2,
        )
        with pytest.raises(RequestTimeout):
            await anext(engine.submit(request))
        assert engine.stats().running == 0

    scripted(work)


def test_a_mix_that_vllm_refuses_leaves_no_files(scripted):
    async def work(engine, vllm):
        await name_of(engine, {"one": 1.0})
        vllm.refusal = "no slot is left"
        for _ in range(3):
            with pytest.raises(InvalidRequest, match="no slot is left"):
                await name_of(engine, {"one": 0.5})
        assert len(baked(vllm)) == 1

    scripted(work)


def test_an_adapter_of_an_unloaded_ones_name_answers_with_its_own_weights(scripted, folders):
    async def work(engine, vllm):
        async with engine.mix({"one": 1.0}) as first:
            unloading = asyncio.create_task(engine.unload_adapter("one"))
            await eventually_here(lambda: "one" not in engine.adapters)
            await engine.load_adapter("one", folders / "other/one")
            second = await name_of(engine, {"one": 1.0})
            assert second != first
            assert first in vllm.known
            assert not unloading.done()
        await unloading
        assert vllm.known.keys() == {second}

    scripted(work)


def test_an_adapter_that_is_replaced_while_its_mix_loads_answers_with_its_own_weights(scripted, folders):
    async def work(engine, vllm):
        task = await loading(engine, vllm, {"one": 1.0})
        await asyncio.gather(engine.unload_adapter("one"), _soon(vllm.may_load))
        await engine.load_adapter("one", folders / "other/one")
        name = await name_of(engine, {"one": 1.0})
        await asyncio.gather(task, return_exceptions=True)
        assert vllm.known.keys() == {name}
        assert vllm.loads == 2

    scripted(work)


async def _soon(event) -> None:
    event.set()


def test_an_adapter_that_is_unloaded_while_it_loads_is_gone(scripted, folders):
    async def work(engine, vllm):
        vllm.may_load.clear()
        began = vllm.loads
        coming = asyncio.create_task(engine.load_adapter("new", folders / "other/one"))
        await eventually_here(lambda: vllm.loads > began)
        going = asyncio.create_task(engine.unload_adapter("new"))
        await eventually_here(lambda: "new" not in engine.adapters)
        vllm.may_load.set()
        with pytest.raises(AdapterError, match="new"):
            await coming
        await going
        assert vllm.known == {}

    scripted(work)


def test_one_name_is_given_to_one_adapter_only(scripted, folders):
    async def work(engine, vllm):
        both = (engine.load_adapter("new", folders / name) for name in ("one", "other/one"))
        results = await asyncio.gather(*both, return_exceptions=True)
        assert sorted(map(type, results), key=str) == [type(None), AdapterError]
        assert len(vllm.known) == 1

    scripted(work)


def test_the_deployments_mix_goes_on_without_an_adapter_that_is_unloaded_meanwhile(scripted, monkeypatch):
    monkeypatch.setattr(mixes, "_MOST_MIXES", 1)  # so that it is not there any more

    async def work(engine, vllm):
        other = await loading(engine, vllm, {"one": 0.25})
        silent = asyncio.create_task(name_of(engine, None))
        await asyncio.sleep(0)
        going = asyncio.create_task(engine.unload_adapter("two"))
        await eventually_here(lambda: "two" not in engine.adapters)
        vllm.may_load.set()
        await going
        assert await silent == await name_of(engine, {"one": 1.0})
        await other

    scripted(work, strengths={"one": 1.0, "two": 1.0})


def test_mixes_that_nobody_uses_make_room_and_others_are_refused(scripted, monkeypatch):
    monkeypatch.setattr(mixes, "_MOST_MIXES", 2)

    async def work(engine, vllm):
        first = await name_of(engine, {"one": 0.1})
        async with engine.mix({"one": 0.2}) as second:
            async with engine.mix({"one": 0.3}) as third:
                assert vllm.known.keys() == {second, third}
                with pytest.raises(TooManyRequests, match="2 mixes of adapters are in use"):
                    await name_of(engine, {"one": 0.4})
            assert await name_of(engine, {"one": 0.4}) in vllm.known
            assert vllm.known.keys() > {second}
        assert await name_of(engine, {"one": 0.1}) != first
        assert len(baked(vllm)) == 2

    scripted(work)


def test_a_mix_is_unloaded_after_its_last_answer_also_when_whoever_unloads_it_leaves(scripted):
    async def work(engine, vllm):
        async with engine.mix({"one": 1.0}) as name, engine.mix({"one": 1.0}):
            leaving = asyncio.create_task(engine.unload_adapter("one"))
            await eventually_here(lambda: "one" not in engine.adapters)
            leaving.cancel()
            assert name in vllm.known
        await eventually_here(lambda: not vllm.known)

    scripted(work)


def test_a_server_that_ends_leaves_no_files(scripted, tmp_path):
    async def work(engine, vllm):
        await name_of(engine, {"one": 1.0})
        assert baked(vllm)

    scripted(work)
    assert not list(tmp_path.iterdir())


def test_a_refused_adapter_is_not_known(scripted, folders):
    async def work(engine, vllm):
        vllm.refusal = "no slot is left"
        with pytest.raises(AdapterError, match="no slot is left"):
            await engine.load_adapter("new", folders / "other/one")
        with pytest.raises(UnknownModel):
            await name_of(engine, {"new": 1.0})

    scripted(work)


def test_a_deployments_mix_that_cannot_be_served_fails_the_start_for_good_and_says_why(folders, tmp_path):
    engine = engine_at("http://127.0.0.1:9", folders, tmp_path / "mixes", lora_rank=3)
    told: list[Startup] = []
    service = ModelService(
        load=lambda _: SimpleNamespace(engine=engine),
        metrics=ServingMetrics(model="base", version="0"),
        monotonic=time.monotonic,
        report=told.append,
    )

    async def whole():
        service.begin()
        await eventually_here(lambda: told and told[-1].phase != "loading")
        await service.stop()

    asyncio.run(whole())
    assert "The mix of one, two has rank 4, and 3 are served" in told[-1].reason
    assert (told[-1].phase, told[-1].final) == ("failed", True)
    assert engine.state() is State.DRAINING
