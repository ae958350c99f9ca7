"""The command line of `vllm serve`: every flag that this server uses, and where its value comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_NUM_SEQS = 256
"""Requests in a batch; vLLM lets others wait."""
CHILD_MARK = "KAITO_SERVING_CHILD"
"""Variable in the environment of every process of vLLM, by which one is known when its parent has died."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank
_NOT_FOR_IT = ("RAY_", "PYTHON", "OMP_", "KAITO_", "PROMETHEUS_", "VIRTUAL_ENV", "VLLM_API_KEY")

Flags = dict[str, str | int | None]
"""Values by flag; None for flags without a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What vLLM is told. Sizes in tokens; 0 lets vLLM choose. `gpus` are those of one node.

    `lora_rank` is the largest rank of a mix of adapters, one that `lora_rank` gives, 0: there are none; `loras` mixes
    fit into one batch.
    With several `nodes`, `node` is this one's number and node 0, at `master`, has the HTTP server;
    they meet at its `master_port`.
    """

    executable: Path
    model: str
    names: tuple[str, ...]
    dtype: str = "auto"
    max_context: int = 0
    load_in_4bit: bool = False
    chat_template: str | None = None
    gpus: int = 0
    fits_one_gpu: bool = True
    lora_rank: int = 0
    loras: int = 4
    nodes: int = 1
    node: int = 0
    master: str = ""
    master_port: int = 29500


def command(settings: Settings, *, port: int) -> list[str]:
    """The command that serves on the loopback address at `port`; on other nodes than the first, none that listens."""
    flags = _model(settings) | _parallel(settings) | _adapters(settings) | _listener(settings, port)
    words = [str(settings.executable), "serve", settings.model, "--served-model-name", *settings.names]
    for flag, value in flags.items():
        words += [flag] if value is None else [flag, str(value)]
    return words


def environment(given: Mapping[str, str], *, loras: bool) -> dict[str, str]:
    """vLLM's environment: nothing of this server's Python and Ray, no key, no reports home, no hub."""
    kept = {name: value for name, value in given.items() if not name.startswith(_NOT_FOR_IT)}
    kept |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", CHILD_MARK: "1"}
    if loras:
        kept["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return kept


def lora_rank(needed: int) -> int:
    """The smallest rank that vLLM takes and that holds `needed`; the largest that it takes if none does."""
    return next((rank for rank in _LORA_RANKS if rank >= needed), _LORA_RANKS[-1])


def _model(settings: Settings) -> Flags:
    flags: Flags = {
        "--dtype": settings.dtype,
        "--max-num-seqs": MAX_NUM_SEQS,
        # A small model that may write spaces between the parts of an object may never stop to.
        "--structured-outputs-config": json.dumps({"backend": "guidance", "disable_any_whitespace": True}),
    }
    if settings.max_context:
        flags["--max-model-len"] = settings.max_context
    if settings.load_in_4bit:
        flags["--quantization"] = "bitsandbytes"
    if settings.chat_template:
        flags["--chat-template"] = settings.chat_template
    return flags


def _parallel(settings: Settings) -> Flags:
    """A copy of the model per GPU if it fits one; else tensor parallel in a node, pipeline parallel across nodes."""
    if settings.nodes > 1:
        return {
            "--tensor-parallel-size": max(1, settings.gpus),
            "--pipeline-parallel-size": settings.nodes,
            "--nnodes": settings.nodes,
            "--node-rank": settings.node,
            "--master-addr": settings.master,
            "--master-port": settings.master_port,
        }
    if settings.gpus < 2:
        return {}
    if settings.fits_one_gpu:
        # One HTTP server for all copies: adapters that come at run time could not be told to several.
        return {"--data-parallel-size": settings.gpus, "--api-server-count": 1}
    return {"--tensor-parallel-size": settings.gpus}


def _adapters(settings: Settings) -> Flags:
    if not settings.lora_rank:
        return {}
    return {
        "--enable-lora": None,
        "--max-lora-rank": settings.lora_rank,
        "--max-loras": settings.loras,
        "--max-cpu-loras": 4 * settings.loras,
    }


def _listener(settings: Settings, port: int) -> Flags:
    if settings.node > 0:
        return {"--headless": None}
    return {"--host": "127.0.0.1", "--port": port, "--disable-uvicorn-access-log": None}
