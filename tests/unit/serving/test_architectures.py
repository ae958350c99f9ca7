"""Every architecture answers in a ragged batch as transformers' `generate` does alone, token for token."""

import asyncio
import copy
import dataclasses
import random

import pytest
import torch
import transformers
from tests.eventually import PATIENCE

from kaito_serving.engine.base import Request, SamplingParams
from kaito_serving.engine.torch.arena import Arena, LayerShape
from kaito_serving.engine.torch.attention import Pass, Piece, attend, during
from kaito_serving.model.load import choose_rope_factors, load
from kaito_serving.options import Options

COMMON = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # so that a model of chance has something to say
}
MLP = {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 512}
LONGROPE = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 128,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 128,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0],
    },
}
MODELS = {
    "phi-3": ("Phi3", MLP),
    "phi-3 sliding": ("Phi3", MLP | {"sliding_window": 20}),
    "phi-3 short rope": ("Phi3", MLP | LONGROPE | {"context": 128}),
    "phi-3 long rope": ("Phi3", MLP | LONGROPE | {"context": 512}),
    "phi-2": ("Phi", MLP | {"partial_rotary_factor": 0.5}),
    "llama": ("Llama", MLP),
    "llama without grouped heads": ("Llama", MLP | {"num_key_value_heads": 4}),
    "mistral sliding": ("Mistral", MLP | {"sliding_window": 20, "head_dim": 16}),
    "qwen3": ("Qwen3", MLP | {"head_dim": 32}),
    "gemma-3": (
        "Gemma3",
        MLP | {"head_dim": 16, "sliding_window": 16, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    "falcon-7b": ("Falcon", {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False}),
    "falcon-40b": ("Falcon", {"num_kv_heads": 2, "new_decoder_architecture": True}),
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request, tiny):
    """A model of chance, and the same network left to transformers."""
    family, settings = request.param
    settings = dict(settings)
    context = settings.pop("context", 512)
    config = getattr(transformers, CONFIGS.get(family, f"{family}Config"))(**COMMON | settings)
    choose_rope_factors(config, context=context)
    torch.manual_seed(0)
    network = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    reference = copy.deepcopy(network)
    loaded = dataclasses.replace(
        tiny, network=network, context=context, vocabulary=config.vocab_size, end_tokens=frozenset({2})
    )
    return loaded, reference


@pytest.fixture
def answers(make_engine, greedy):
    """What the engine and `generate` say to prompts of chance of the given lengths."""

    def ask(model, lengths, *, new, **settings):
        loaded, reference = model
        chance = random.Random(1)
        prompts = [tuple(chance.randrange(3, loaded.vocabulary) for _ in range(length)) for length in lengths]
        expected = [greedy(prompt, new, network=reference) for prompt in prompts]
        engine = make_engine(loaded, **settings)
        params = SamplingParams(max_tokens=new, temperature=0.0)

        async def one(prompt):
            chunks = engine.submit(Request(prompt_ids=prompt, params=params))
            return [token async for chunk in chunks for token in chunk.token_ids]

        async def work():
            await engine.start()
            try:
                async with asyncio.timeout(2 * PATIENCE):
                    return list(await asyncio.gather(*map(one, prompts)))
            finally:
                await engine.stop()

        return asyncio.run(work()), expected

    return ask


def test_a_ragged_batch_is_answered_as_by_generate(model, answers):
    ours, theirs = answers(model, (5, 40, 1, 17, 90, 33), new=24, max_batch_tokens=32)
    assert ours == theirs
    assert len({tuple(answer) for answer in theirs}) > 3  # the models say different things


def test_a_text_beyond_the_short_rope_is_answered_as_by_transformers_untouched(tiny, answers):
    """transformers takes the long factors for a row that is long from its start."""
    config = transformers.Phi3Config(**COMMON | MLP | LONGROPE)
    torch.manual_seed(0)
    reference = transformers.Phi3ForCausalLM(config).eval()
    chosen = copy.deepcopy(config)
    choose_rope_factors(chosen, context=512)
    network = transformers.Phi3ForCausalLM(chosen).eval()
    network.load_state_dict(reference.state_dict())
    loaded = dataclasses.replace(tiny, network=network, context=512, vocabulary=config.vocab_size)
    ours, theirs = answers((loaded, reference), (200, 300), new=30, max_batch_tokens=64)
    assert ours == theirs


def test_the_rope_of_a_row_does_not_depend_on_its_neighbours(tiny, make_engine, answers):
    config = transformers.Phi3Config(**COMMON | MLP | LONGROPE)
    choose_rope_factors(config, context=512)
    torch.manual_seed(0)
    network = transformers.Phi3ForCausalLM(config).eval()
    loaded = dataclasses.replace(tiny, network=network, context=512, vocabulary=config.vocab_size)
    reference = copy.deepcopy(network)
    (alone, *_), _ = answers((loaded, reference), (20,), new=30)
    (beside, *_), _ = answers((loaded, reference), (20, 300), new=30)
    assert alone == beside


@pytest.mark.parametrize("how", ["load_in_4bit", "load_in_8bit"])
def test_a_quantised_model_is_answered_as_by_generate(tiny_folder, answers, how):
    pytest.importorskip("bitsandbytes")
    options = Options(weights=str(tiny_folder), **{how: True})
    loaded, reference = load(options), load(options).network
    assert any("bitsandbytes" in type(module).__module__ for module in loaded.network.modules())
    ours, theirs = answers((loaded, reference), (5, 40, 17), new=24, max_batch_tokens=32)
    assert ours == theirs


def test_each_layers_cache_lies_on_its_layers_device():
    """Two devices, one of which only knows shapes: an operation that mixes them fails."""
    shapes = {
        index: LayerShape(2, 8, 8, torch.float32, torch.device(name)) for index, name in enumerate(("cpu", "meta"))
    }
    arena = Arena(shapes, tokens=32)
    spans = [arena.allocate(8), arena.allocate(16)]
    now = Pass(arena, [Piece(spans[0], 0, 5), Piece(spans[1], 0, 3)])
    for index, name in enumerate(("cpu", "meta")):
        layer = torch.nn.Module()
        layer.layer_idx = index
        query, key, value = (torch.randn(1, heads, 8, 8, device=name) for heads in (4, 2, 2))
        with during(now):
            out, _ = attend(layer, query, key, value, None)
        assert (out.device.type, tuple(out.shape)) == (name, (1, 8, 4, 8))
        assert {buffer.device.type for buffer in arena.layers()[index]} == {name}
