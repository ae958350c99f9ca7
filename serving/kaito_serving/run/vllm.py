"""Puts the parts together where vLLM computes: its process, the engine over it, and our surfaces in front."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from kaito_serving.engine.base import Limits
from kaito_serving.engine.vllm import flags
from kaito_serving.engine.vllm.child import Child
from kaito_serving.engine.vllm.engine import VllmEngine
from kaito_serving.engine.vllm.flags import Settings, command, environment
from kaito_serving.http.app import Surfaces
from kaito_serving.http.generate_kwargs import ModelSettings
from kaito_serving.http.openai.models import Models
from kaito_serving.http.openai.passthrough import PassThrough
from kaito_serving.http.openai.tokens import Tokens
from kaito_serving.http.text import Text
from kaito_serving.lora.deployment import Deployment, deployment, log_adapters
from kaito_serving.model import chat_template
from kaito_serving.model.folder import ModelFolder, fits_one_gpu, inspect, read_json
from kaito_serving.model.load import load_tokenizer
from kaito_serving.options import Options
from kaito_serving.run import host
from kaito_serving.run.application import chat

_LOG = logging.getLogger(__name__)


def settings(options: Options, folder: ModelFolder, *, gpus: list[host.Gpu], lora_rank: int) -> Settings:
    """What vLLM is told for these options, on a node with these GPUs."""
    return Settings(
        executable=options.vllm,
        model=str(folder.path),
        names=options.served_model_name,
        dtype=options.dtype,
        max_context=options.max_context,
        load_in_4bit=options.load_in_4bit,
        chat_template=options.chat_template,
        gpus=len(gpus),
        fits_one_gpu=fits_one_gpu(folder.tensor_bytes, min((gpu.memory_total for gpu in gpus), default=0)),
        lora_rank=lora_rank,
        nodes=options.nnodes,
        node=options.node_rank,
        master=options.master_addr,
        master_port=options.master_port,
    )


def deployed(options: Options) -> Deployment:
    """The adapters that the options name, read from their folder."""
    return deployment(options.adapters_dir, strengths=options.adapter_strengths, environment=os.environ)


def lora_rank(adapters: Deployment, options: Options) -> int:
    """The largest rank of a mix: that of all adapters together, or what may come at run time, rounded up to one that
    vLLM takes, which has an end; 0: there are none.
    """
    rank = sum(adapter.rank for adapter in adapters.adapters)
    if options.allow_runtime_adapters:
        rank = max(rank, options.max_lora_rank_total)
    return flags.lora_rank(rank) if rank else 0


def assemble(options: Options, step: Callable[[str, float | None], object], *, mixes: Path) -> Surfaces:
    """Start vLLM and wait until it computes; takes minutes. EngineUnavailable with its last words when it ends.

    `step` hears what is done, and which part of it where that is known, 0 to 1. Baked mixes lie below `mixes`.
    """
    folder = inspect(Path(options.weights))
    options = replace(options, chat_template=chat_template.choose(options.chat_template, options.adapters_dir))
    tokenizer = load_tokenizer(folder, options.chat_template)
    step("starting vLLM", None)
    found = deployed(options)
    rank = lora_rank(found, options)
    told = settings(options, folder, gpus=host.gpus(), lora_rank=rank)
    child, url = start(told, progress=lambda part: step("loading weights", part))
    model = options.served_model_name[0]
    try:
        child.wait_until_ready(url, model)
        limits = Limits(vocabulary=int(folder.config["vocab_size"]), context=_context(url))
    except BaseException:
        child.stop()
        raise
    engine = VllmEngine(
        child,
        url=url,
        model=model,
        limits=limits,
        adapters={adapter.name: adapter for adapter in found.adapters},
        strengths=found.mix,
        lora_rank=rank,
        mixes=mixes,
        max_waiting=options.max_waiting,
        monotonic=time.monotonic,
    )
    log_adapters(engine.adapters, options.adapters_dir)
    _LOG.info("Model loaded successfully")
    return surfaces(tokenizer, engine, model_settings(folder, tokenizer), options)


def start(told: Settings, *, progress: Callable[[float], object] = lambda _: None) -> tuple[Child, str]:
    """vLLM's process, and the address at which it will answer; `progress` hears which part of the weights is loaded."""
    port = _free_port()
    variables = environment(os.environ, loras=told.lora_rank > 0)
    child = Child(command(told, port=port), environment=variables, progress=progress)
    return child, f"http://127.0.0.1:{port}"


def surfaces(tokenizer: Any, engine: VllmEngine, model: ModelSettings, options: Options) -> Surfaces:
    """The endpoints over vLLM: /chat and tokens are ours, /v1 is vLLM's own."""
    text = Text(tokenizer, vocabulary=engine.limits.vocabulary)
    models = Models(engine, options.served_model_name, created=int(time.time()))
    return Surfaces(
        engine=engine,
        chat=chat(engine, text, model, options),
        models=models,
        tokens=Tokens(text, engine.limits),
        openai=PassThrough(engine, models, monotonic=time.monotonic),
    )


def model_settings(folder: ModelFolder, tokenizer: Any) -> ModelSettings:
    """What a model's folder says of generation."""
    file = folder.path / "generation_config.json"
    config: Mapping[str, Any] = read_json(file) if file.is_file() else {}
    ends = config.get("eos_token_id", folder.config.get("eos_token_id"))
    if ends is None:
        ends = tokenizer.eos_token_id
    end_tokens = frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
    return ModelSettings(generation_config=config, eos_token_id=tokenizer.eos_token_id, end_tokens=end_tokens)


def _context(url: str) -> int:
    """Tokens that vLLM's cache holds for one request."""
    card = httpx.get(f"{url}/v1/models", trust_env=False).raise_for_status().json()["data"][0]
    return int(card["max_model_len"])


def _free_port() -> int:
    """A port on which nobody listens, below those of outgoing connections: none of them takes it before vLLM does."""
    while True:
        port = 20000 + secrets.randbelow(9000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        return port
