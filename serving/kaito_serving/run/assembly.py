"""Puts the parts together: options in, engine and chat out. The one place that knows which engine there is."""

from __future__ import annotations

import time

from kaito_serving.engine.base import Engine
from kaito_serving.engine.torch.engine import TransformersEngine
from kaito_serving.http.chat import Chat
from kaito_serving.http.generation import ModelSettings
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.model.load import load
from kaito_serving.run.options import Options


def assemble(options: Options, metrics: ServingMetrics) -> tuple[Engine, Chat]:
    """Load the model and build its engine; takes seconds to minutes. StartupError when it can never be served."""
    model = load(options)
    engine = TransformersEngine(
        model,
        kv_cache_tokens=options.kv_cache_tokens,
        max_batch_tokens=options.max_batch_tokens,
        max_waiting=options.max_waiting,
        monotonic=time.monotonic,
        metrics=metrics,
    )
    settings = ModelSettings(
        generation_config=model.network.generation_config.to_dict(),
        eos_token_id=model.tokenizer.eos_token_id,
        pad_token_id=model.tokenizer.pad_token_id,
        limits=engine.limits,
    )
    chat = Chat(
        engine=engine, tokenizer=model.tokenizer, settings=settings, end_tokens=model.end_tokens, options=options
    )
    return engine, chat
