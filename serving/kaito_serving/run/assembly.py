"""Puts the parts together: options in, engine and chat out. The one place that knows which engine there is."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from kaito_serving.engine.base import Engine
from kaito_serving.engine.torch.engine import TorchEngine
from kaito_serving.http.app import Surfaces
from kaito_serving.http.generate_kwargs import ModelSettings
from kaito_serving.http.metrics import MeteredEngine, ServingMetrics
from kaito_serving.http.openai.endpoints import OpenAI
from kaito_serving.http.openai.models import Models
from kaito_serving.http.openai.tokens import Tokens
from kaito_serving.http.text import Text
from kaito_serving.lora.layer import attach
from kaito_serving.model.load import load
from kaito_serving.options import Options
from kaito_serving.run import host
from kaito_serving.run.application import chat

_LOG = logging.getLogger(__name__)


def assemble(options: Options, metrics: ServingMetrics, step: Callable[[str, float | None], object]) -> Surfaces:
    """Load the model and build its engine; takes seconds to minutes. StartupError when it can never be served.

    `step` hears what is done, and which part of it where that is known, 0 to 1.
    """
    model = load(options, lambda part: step("loading weights", part))
    step("loading adapters", None)
    adapters = attach(
        model.network,
        options.adapters_dir,
        strengths=options.adapter_strengths,
        environment=os.environ,
        ranks=options.max_lora_rank_total if options.allow_runtime_adapters else 0,
        dtype=model.network.dtype,
        device=model.device,
    )
    step("measuring the cache", None)
    engine = TorchEngine(
        model,
        adapters,
        kv_cache_tokens=options.kv_cache_tokens,
        max_batch_tokens=options.max_batch_tokens,
        max_waiting=options.max_waiting,
        memory=host.memory_limit() // max(1, options.replicas),
        monotonic=time.monotonic,
        die=_die,
    )
    _LOG.info("Model loaded successfully")
    settings = ModelSettings(
        generation_config=model.network.generation_config.to_dict(),
        eos_token_id=model.tokenizer.eos_token_id,
        end_tokens=model.end_tokens,
    )
    return surfaces(model.tokenizer, MeteredEngine(engine, metrics, monotonic=time.monotonic), settings, options)


def surfaces(tokenizer: Any, engine: Engine, settings: ModelSettings, options: Options) -> Surfaces:
    """The endpoints over an engine."""
    text = Text(tokenizer, vocabulary=engine.limits.vocabulary)
    models = Models(engine, options.served_model_name, created=int(time.time()))
    openai = OpenAI(engine=engine, text=text, settings=settings, models=models, now=time.time, monotonic=time.monotonic)
    return Surfaces(
        engine=engine,
        chat=chat(engine, text, settings, options),
        models=models,
        tokens=Tokens(text, engine.limits),
        openai=openai,
    )


def _die(reason: str) -> None:
    """End this process at once, so that Serve starts another one."""
    _LOG.critical("The model's process ends: %s", reason)
    os._exit(1)
