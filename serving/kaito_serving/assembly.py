"""Puts the parts together: options in, engine and chat out. The one place that knows which engine there is."""

from __future__ import annotations

import time

from kaito_serving.chat import Chat
from kaito_serving.engine import Engine
from kaito_serving.generation import ModelSettings
from kaito_serving.metrics import ServingMetrics
from kaito_serving.model import load
from kaito_serving.options import Options
from kaito_serving.transformers_engine import TransformersEngine


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
