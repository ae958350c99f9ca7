"""The command line: `python -m kaito_serving --...`, read once into a frozen value.

Names above the line in `_parser` are those of KAITO's inference server; what they accepted there and is unsafe or wrong
here (remote code, adapter merges that are not exact) is refused with a sentence or logged as without effect.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from kaito_serving.errors import OptionError

_LOG = logging.getLogger(__name__)

PIPELINES = ("text-generation", "conversational")
ENGINES = ("auto", "transformers", "vllm")
DTYPES = ("auto", "float16", "bfloat16", "float32")
EXACT_COMBINATIONS = ("svd", "cat")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that the server is told at its start. 0 means "choose" for the sizes that say so."""

    pipeline: str = "text-generation"
    weights: str = "/workspace/tfs/weights"
    dtype: str = "auto"
    device_map: str = "auto"
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    allow_remote_files: bool = False
    revision: str | None = None
    cache_dir: str | None = None
    chat_template: str | None = None
    engine: str = "auto"
    vllm: Path = Path("/opt/vllm/bin/vllm")
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = ""
    master_port: int = 29500
    host: str = ""  # where to listen; every address, IPv4 and IPv6, if empty
    port: int = 5000
    replicas: int = 0  # copies of the model, each a process of its own; 0 = one per GPU that holds the whole model
    served_model_name: tuple[str, ...] = ("model",)  # what clients may call the model; the first is its id
    max_context: int = 0  # tokens; 0 = the model's own limit
    kv_cache_tokens: int = 0  # tokens; 0 = what memory allows
    max_batch_tokens: int = 512
    max_waiting: int = 256
    request_timeout_s: float = 600.0
    drain_s: float = 10.0
    adapters_dir: Path = Path("/mnt/adapter")
    adapter_strengths: Mapping[str, float] = field(default_factory=dict)
    allow_runtime_adapters: bool = False
    max_lora_rank_total: int = 64  # of all adapters together, where they may come at run time
    chat_stop: str = "model"
    api_keys_file: Path | None = None
    termination_log: Path = Path("/dev/termination-log")
    debug: bool = False

    @property
    def uses_vllm(self) -> bool:
        """Whether vLLM computes: "auto" takes it where it is installed."""
        return _uses_vllm(self.engine, self.vllm)


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Options:
    """The options of a command line; OptionError with one sentence for anything wrong in it."""
    known = vars(_parser().parse_args(list(arguments)))
    pipeline = known["pipeline"]
    if pipeline not in PIPELINES:
        raise OptionError(f"Unsupported pipeline: {pipeline}. Choose one of {', '.join(PIPELINES)}.")
    dtype = known["torch_dtype"].removeprefix("torch.")
    if dtype not in DTYPES:
        raise OptionError(f"Invalid torch dtype: {known['torch_dtype']}. Choose one of {', '.join(DTYPES)}.")
    if known["combination_type"] not in EXACT_COMBINATIONS:
        raise OptionError(
            f"--combination_type {known['combination_type']} is not supported: adapters are always added exactly "
            f"({' or '.join(EXACT_COMBINATIONS)})."
        )
    if known["load_in_4bit"] and known["load_in_8bit"]:
        raise OptionError("--load_in_4bit and --load_in_8bit exclude each other.")
    if known["allow_remote_files"] and not _COMMIT.fullmatch(known["revision"] or ""):
        raise OptionError("--allow_remote_files needs --revision with the 40 hex digits of a commit.")
    _check_vllm(known)
    if known["allow_runtime_adapters"] and known["api_keys_file"] is None:
        raise OptionError("--allow_runtime_adapters needs --api_keys_file: loading adapters is not for everybody.")
    if known["allow_runtime_adapters"] and known["replicas"] > 1:
        raise OptionError("--allow_runtime_adapters needs --replicas 1: an adapter would come to one replica alone.")
    if known["trust_remote_code"]:
        _LOG.warning("--trust_remote_code has no effect: this server never runs code that comes with weights.")
    for name, least in (
        ("max_context", 0),
        ("kv_cache_tokens", 0),
        ("max_batch_tokens", 16),
        ("max_waiting", 1),
        ("max_lora_rank_total", 1),
        ("replicas", 0),
    ):
        if known[name] < least:
            raise OptionError(f"--{name} must be at least {least}, not {known[name]}.")
    for name in ("port", "master_port"):
        if not 0 < known[name] < 65536:
            raise OptionError(f"--{name} must be between 1 and 65535, not {known[name]}.")
    if not (math.isfinite(known["request_timeout_s"]) and known["request_timeout_s"] > 0):
        raise OptionError(f"--request_timeout_s must be above 0, not {known['request_timeout_s']}.")
    weights = known["pretrained_model_name_or_path"]
    return Options(
        pipeline=pipeline,
        weights=weights,
        dtype=dtype,
        device_map=known["device_map"],
        load_in_4bit=known["load_in_4bit"],
        load_in_8bit=known["load_in_8bit"],
        allow_remote_files=known["allow_remote_files"],
        revision=known["revision"],
        cache_dir=known["cache_dir"],
        chat_template=known["chat_template"],
        engine=known["engine"],
        vllm=known["vllm"],
        nnodes=known["nnodes"],
        node_rank=known["node_rank"],
        master_addr=known["master_addr"],
        master_port=known["master_port"],
        host=known["host"],
        port=known["port"],
        replicas=known["replicas"],
        served_model_name=tuple(known["served_model_name"] or (Path(weights).name,)),
        max_context=known["max_context"],
        kv_cache_tokens=known["kv_cache_tokens"],
        max_batch_tokens=known["max_batch_tokens"],
        max_waiting=known["max_waiting"],
        request_timeout_s=known["request_timeout_s"],
        drain_s=max(0.0, known["drain_s"]),
        adapters_dir=known["adapters_dir"],
        adapter_strengths=_strengths(known["adapter_strengths"]),
        allow_runtime_adapters=known["allow_runtime_adapters"],
        max_lora_rank_total=known["max_lora_rank_total"],
        chat_stop=known["chat_stop"],
        api_keys_file=known["api_keys_file"],
        termination_log=known["termination_log"],
        debug=environment.get("DEBUG_MODE", "").lower() in ("1", "true", "yes"),
    )


def _uses_vllm(engine: str, program: Path) -> bool:
    return engine == "vllm" or (engine == "auto" and program.is_file())


def _check_vllm(known: Mapping[str, Any]) -> None:
    """OptionError for what only vLLM does, or does not do."""
    vllm = _uses_vllm(known["engine"], known["vllm"])
    if vllm and not known["vllm"].is_file():
        raise OptionError(
            f"--engine vllm needs the program {known['vllm']}, which the image variant vllm has; "
            "use that variant or --engine transformers."
        )
    if not 0 <= known["node_rank"] < known["nnodes"]:
        raise OptionError(f"--node_rank {known['node_rank']} is not one of --nnodes {known['nnodes']}, counted from 0.")
    if known["nnodes"] > 1 and not vllm:
        raise OptionError("--nnodes above 1 needs --engine vllm: the transformers engine computes on one node.")
    if known["nnodes"] > 1 and not known["master_addr"]:
        raise OptionError("--nnodes above 1 needs --master_addr, the name or address of node 0.")
    for name in ("load_in_8bit", "kv_cache_tokens", "allow_remote_files"):
        if vllm and known[name]:
            raise OptionError(f"--{name} is not served by the vllm engine; use --engine transformers.")
    if vllm and known["replicas"] > 1:
        raise OptionError(f"--replicas {known['replicas']} is not served by the vllm engine: one vLLM uses all GPUs.")


def strength(text: object, adapter: str) -> float:
    """A strength from a number or its text: finite, 0 to 1; OptionError names the adapter."""
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise OptionError(f"The strength {text!r} of adapter {adapter} is not a number.") from None
    if isinstance(text, bool) or not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise OptionError(f"The strength {text!r} of adapter {adapter} is not between 0 and 1.")
    return value


def api_keys(options: Options) -> tuple[str, ...]:
    """The keys of --api_keys_file, one per line; OptionError when it is named but holds none."""
    if options.api_keys_file is None:
        return ()
    try:
        lines = options.api_keys_file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise OptionError(f"--api_keys_file {options.api_keys_file} cannot be read: {error.strerror}.") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise OptionError(f"--api_keys_file {options.api_keys_file} holds no key.")
    return keys


def _strengths(text: str) -> dict[str, float]:
    try:
        given = json.loads(text) if text.strip() else {}
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise OptionError(f'--adapter_strengths must be a JSON object such as {{"name": 0.5}}, not {text!r}.')
    return {name: strength(value, name) for name, value in given.items()}


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message[:1].upper()}{message[1:]} (python -m kaito_serving --help lists the options).")


def _parser() -> _Parser:
    parser = _Parser(prog="python -m kaito_serving", description="Serve a language model.", allow_abbrev=False)
    defaults = Options()

    def add(name: str, **rest: Any) -> None:
        parser.add_argument(f"--{name}", **rest)

    def switch(name: str, text: str) -> None:
        add(name, type=_boolean, nargs="?", const=True, default=False, metavar="BOOL", help=text)

    add("pipeline", default=defaults.pipeline, help="text-generation (field prompt) or conversational (field messages)")
    add("pretrained_model_name_or_path", default=defaults.weights, help="folder of the base model")
    add("combination_type", default="svd", help="svd or cat; both add adapters exactly")
    add("torch_dtype", default=defaults.dtype, help=", ".join(DTYPES))
    add("device_map", default=defaults.device_map, help="auto, cpu or cuda")
    switch("load_in_4bit", "quantise the base model to nf4")
    switch("load_in_8bit", "quantise the base model to int8")
    switch("allow_remote_files", "fetch the model from the hub; needs --revision")
    switch("trust_remote_code", "without effect")
    add("revision", help="commit of the model on the hub")
    add("cache_dir", help="where files of the hub are kept")
    add("chat_template", help="a file, or the Jinja text itself")

    add("engine", choices=ENGINES, default=defaults.engine, help="what computes the tokens; auto: vllm where installed")
    add("vllm", type=Path, default=defaults.vllm, help="the program vllm, in an environment of its own")
    add("nnodes", type=int, default=1, help="nodes that compute one copy of the model together; vllm only")
    add("node_rank", type=int, default=0, help="the number of this node; node 0 answers requests")
    add("master_addr", default="", help="name or address of node 0")
    add("master_port", type=int, default=defaults.master_port, help="port of node 0 at which the nodes meet")
    add("host", default=defaults.host, help="address to listen on; every one if empty")
    add("port", type=int, default=defaults.port, help="port to listen on")
    add(
        "replicas",
        type=int,
        default=0,
        help="copies of the model that share GPUs, processors and memory; 0 = one per GPU if the model fits into one, "
        "else one over all GPUs",
    )
    add("served_model_name", nargs="+", help="the name that clients see, and others that mean the same model")
    add("max_context", type=int, default=0, help="most tokens of prompt and answer together; 0 = the model's limit")
    add("kv_cache_tokens", type=int, default=0, help="tokens that all running requests share; 0 = what memory allows")
    add("max_batch_tokens", type=int, default=defaults.max_batch_tokens, help="most tokens of one forward pass")
    add("max_waiting", type=int, default=defaults.max_waiting, help="requests that may wait before others get 429")
    add("request_timeout_s", type=float, default=defaults.request_timeout_s, help="seconds until 408")
    add("drain_s", type=float, default=defaults.drain_s, help="seconds to go on answering after SIGTERM")
    add("adapters_dir", type=Path, default=defaults.adapters_dir, help="one folder per adapter")
    add("adapter_strengths", default="", help='JSON, for example {"name": 0.5}')
    switch(
        "allow_runtime_adapters", "load and unload adapters of --adapters_dir by /v1/load_lora_adapter; needs API keys"
    )
    add(
        "max_lora_rank_total",
        type=int,
        default=defaults.max_lora_rank_total,
        help="sum of the ranks of all adapters that may be loaded at a time",
    )
    add(
        "chat_stop",
        choices=("tokenizer", "model"),
        default=defaults.chat_stop,
        help="whose end-of-text tokens /chat uses",
    )
    add("api_keys_file", type=Path, help="one key per line; without it every client may ask")
    add(
        "termination_log", type=Path, default=defaults.termination_log, help="where the sentence of a failed start goes"
    )
    return parser
