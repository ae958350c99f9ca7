"""Tokens per second of the engine beside a pipeline that answers one request after the other, on the same weights.

`python tests/benchmarks/serving_throughput.py [MODEL_FOLDER] [--users 32] [--tokens 64] [--hidden 1024 --layers 12]`
prints a table; nothing is asserted. With `--hidden` a model of that size with random weights is measured: the tiny one
is so small that Python's own cost hides what batching gains.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
import transformers
from tests.tiny_model import tiny_model

from kaito_serving.engine.base import GenRequest
from kaito_serving.engine.torch.engine import TransformersEngine
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.model.load import LoadedModel, load
from kaito_serving.run.options import Options

PROMPT = "What is Kubernetes? Tell me what a Pod is, and what a node does."


def random_model(tokenizer_of: Path, folder: Path, *, hidden: int, layers: int) -> Path:
    """A model of Phi-3's architecture with random weights and the tiny model's tokenizer."""
    shutil.copytree(tokenizer_of, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    config |= {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
    torch.manual_seed(0)
    transformers.Phi3ForCausalLM(transformers.Phi3Config(**config)).save_pretrained(folder)
    return folder


def sequential(model: LoadedModel, *, users: int, tokens: int) -> float:
    """Tokens per second of `generate`, one request after the other."""
    ids = model.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    rounds = min(users, 4)  # the rate does not depend on how many wait
    began = time.perf_counter()
    for _ in range(rounds):
        model.network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=[-1],
        )
    return rounds * tokens / (time.perf_counter() - began)


async def batched(model: LoadedModel, *, users: int, tokens: int) -> float:
    """Tokens per second of the engine with all users at once."""
    engine = TransformersEngine(
        model,
        kv_cache_tokens=0,
        max_batch_tokens=512,
        max_waiting=users,
        monotonic=time.monotonic,
        metrics=ServingMetrics(model="benchmark", version="0"),
    )
    await engine.start()
    request = GenRequest(tuple(model.tokenizer(PROMPT)["input_ids"]), tokens, frozenset())

    async def one() -> int:
        return sum([len(chunk.token_ids) async for chunk in engine.submit(request)])

    await one()
    began = time.perf_counter()
    total = sum(await asyncio.gather(*(one() for _ in range(users))))
    seconds = time.perf_counter() - began
    await engine.stop()
    return total / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=0)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or tiny_model()
        if options.hidden:
            folder = random_model(folder, Path(scratch) / "m", hidden=options.hidden, layers=options.layers)
        model = load(Options(weights=str(folder), adapters_dir=Path("/nonexistent")), {})
        parameters = sum(parameter.numel() for parameter in model.network.parameters())
        one = sequential(model, users=options.users, tokens=options.tokens)
        many = asyncio.run(batched(model, users=options.users, tokens=options.tokens))
    print(f"{parameters / 1e6:.1f} M parameters, {torch.get_num_threads()} threads, {options.users} users")
    print(f"  one after the other  {one:10.1f} tokens/s")
    print(f"  continuous batch     {many:10.1f} tokens/s   {many / one:.1f} x")


if __name__ == "__main__":
    main()
