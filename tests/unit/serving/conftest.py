"""One tiny trained model, loaded once, and engines over it."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.tiny_model import tiny_model

from kaito_serving.engine.base import Limits
from kaito_serving.engine.torch.engine import TorchEngine
from kaito_serving.engine.vllm.engine import VllmEngine
from kaito_serving.engine.vllm.flags import Settings
from kaito_serving.http.generate_kwargs import ModelSettings
from kaito_serving.lora.layer import AdapterSet
from kaito_serving.model.folder import inspect
from kaito_serving.model.load import load
from kaito_serving.options import Options
from kaito_serving.run.assembly import surfaces
from kaito_serving.run.vllm import model_settings, start
from kaito_serving.run.vllm import surfaces as vllm_surfaces

ROOT = Path(__file__).parents[3]

torch.set_num_threads(1)  # a matrix of 128 gains nothing from two, and loses much on a busy machine


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    return tiny_model()


@pytest.fixture(scope="session")
def make_engine():
    """An engine over a loaded model, small enough for tests."""

    def make(model, adapters=None, **changes):
        settings = {"kv_cache_tokens": 4096, "max_batch_tokens": 256, "max_waiting": 64, "memory": 2**40}
        settings |= {"monotonic": time.monotonic, "die": pytest.fail} | changes
        if adapters is None:
            adapters = AdapterSet(model.network, ranks=0, dtype=model.network.dtype, device=model.device)
        return TorchEngine(model, adapters, **settings)

    return make


@pytest.fixture(scope="session")
def make_surfaces():
    """What answers over an engine, as the server puts it together."""

    def make(model, engine, options):
        settings = ModelSettings(
            generation_config=model.network.generation_config.to_dict(),
            eos_token_id=model.tokenizer.eos_token_id,
            end_tokens=model.end_tokens,
        )
        return surfaces(model.tokenizer, engine, settings, options)

    return make


@pytest.fixture
def tiny(tiny_folder):
    """The tiny model without adapters."""
    return load(Options(weights=str(tiny_folder), adapters_dir=Path("/nonexistent"), served_model_name=("tiny",)))


@pytest.fixture
def reference(tiny_folder):
    """The same weights with transformers' own attention: an engine changes that of the model that it gets."""
    return load(Options(weights=str(tiny_folder))).network


@pytest.fixture
def greedy(reference):
    """transformers' own greedy answer on the same weights: new tokens of a prompt."""

    def answer(prompt_ids, new, *, eos=None, network=None, **more):
        ids = torch.tensor([list(prompt_ids)])
        rows = (network or reference).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=[-1] if eos is None else eos,
            pad_token_id=0,
            **more,
        )
        return rows[0, ids.shape[1] :].tolist()

    return answer


@pytest.fixture(scope="session")
def vllm(tmp_path_factory) -> Path:
    """The program vllm: our own engine plays it, unless KAITO_TEST_VLLM names the real one."""
    real = os.environ.get("KAITO_TEST_VLLM")
    if real:
        return Path(real)
    program = tmp_path_factory.mktemp("vllm") / "vllm"
    program.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m tests.stand_ins.vllm "$@"\n')
    program.chmod(0o755)
    return program


class KeptChild:
    """A child that outlives the engines over it."""

    def __init__(self, child):
        self.failure = child.failure

    def stop(self):
        """Not yet."""


@pytest.fixture(scope="session")
def running_vllm(vllm, tiny_folder):
    """One vLLM with the tiny model for all tests that only ask: its process and its address."""
    settings = Settings(
        executable=vllm,
        model=str(tiny_folder),
        names=("tiny", "workspace-tiny"),
        dtype="float32",
        max_context=2048,
        lora_rank=16,
    )
    child, url = start(settings)
    try:
        child.wait_until_ready(url, "tiny")
        yield child, url
    finally:
        child.stop()


@pytest.fixture
def over_vllm(running_vllm, tmp_path):
    """What answers over that vLLM: `make(options, tokenizer, adapters)`."""
    child, url = running_vllm

    def make(options, tokenizer, adapters=(), strengths=()):
        engine = VllmEngine(
            KeptChild(child),
            url=url,
            model="tiny",
            limits=Limits(vocabulary=len(tokenizer), context=2048),
            adapters={adapter.name: adapter for adapter in adapters},
            strengths=dict(strengths),
            lora_rank=16,
            mixes=tmp_path / "mixes",
            max_waiting=8,
            monotonic=time.monotonic,
        )
        return vllm_surfaces(tokenizer, engine, model_settings(inspect(Path(options.weights)), tokenizer), options)

    return make
