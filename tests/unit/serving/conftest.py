"""One tiny trained model, loaded once, and engines over it."""

import time
from pathlib import Path

import pytest
import torch
from tests.tiny_model import tiny_model

from kaito_serving.engine.torch.engine import TransformersEngine
from kaito_serving.http.chat import Chat
from kaito_serving.http.generation import ModelSettings
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.model.load import load
from kaito_serving.run.options import Options

torch.set_num_threads(1)  # a matrix of 128 gains nothing from two, and loses much on a busy machine


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    return tiny_model()


@pytest.fixture
def make_engine():
    """An engine over a loaded model, small enough for tests."""

    def make(model, **changes):
        settings = {"kv_cache_tokens": 4096, "max_batch_tokens": 256, "max_waiting": 64} | changes
        return TransformersEngine(
            model, monotonic=time.monotonic, metrics=ServingMetrics(model="tiny", version="0"), **settings
        )

    return make


@pytest.fixture
def make_chat():
    """What answers /chat, over an engine."""

    def make(model, engine, options):
        settings = ModelSettings(
            generation_config=model.network.generation_config.to_dict(),
            eos_token_id=model.tokenizer.eos_token_id,
            pad_token_id=model.tokenizer.pad_token_id,
            limits=engine.limits,
        )
        return Chat(
            engine=engine, tokenizer=model.tokenizer, settings=settings, end_tokens=model.end_tokens, options=options
        )

    return make


@pytest.fixture
def tiny(tiny_folder):
    """The tiny model without adapters."""
    return load(Options(weights=str(tiny_folder), adapters_dir=Path("/nonexistent"), served_model_name="tiny"), {})


@pytest.fixture
def greedy(tiny):
    """transformers' own greedy answer on the same weights: new tokens of a prompt."""

    def answer(prompt_ids, new, *, eos=None, network=None, **more):
        ids = torch.tensor([list(prompt_ids)])
        rows = (network or tiny.network).generate(
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
