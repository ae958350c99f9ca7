"""One tiny trained model, loaded once, and engines over it."""

import time
from pathlib import Path

import pytest
import torch
from tests.tiny_model import tiny_model

from kaito_serving.engine.torch.engine import TorchEngine
from kaito_serving.http.generate_kwargs import ModelSettings
from kaito_serving.lora.layer import AdapterSet
from kaito_serving.model.load import load
from kaito_serving.options import Options
from kaito_serving.run.assembly import surfaces

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
