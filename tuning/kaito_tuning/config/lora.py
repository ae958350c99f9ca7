"""Fields of a LoraConfig that cannot be trained with, alone or together, whatever the model is.

PEFT refuses some of them when it puts the adapter into the loaded model, and takes no notice of others. A test holds
what is taken against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Refusals = Iterator[tuple[str, str, str]]
"""The name of each field that does not fit, what it must, and a way out."""

_LEFT_OUT = "leave it out"
_STARTS = ("gaussian", "olora", "mica", "orthogonal", "pissa")
_ANY_CASE = ("gaussian", "olora", "mica")
_OF_WEIGHTS = ("mica", "orthogonal", "pissa")
"""Starts that are computed of weights, for which those must not be quantised."""
_VARIANTS = ("alora_invocation_tokens", "use_dora", "velora_config")
_PREPARED: Mapping[str, str] = {
    "arrow_config": "adapters that are trained already",
    "corda_config": "preprocess_corda",
    "eva_config": "initialize_lora_eva_weights",
    "kasa_config": "a loss of its own",
    "loftq_config": "scipy, which the image has not",
    "lora_ga_config": "preprocess_loraga",
    "megatron_config": "Megatron, which the image has not",
    "monteclora_config": "a loss of its own",
    "runtime_config": "an object of Python",
    "target_parameters": "weights outside of modules, which these models have not",
    "use_bdlora": "a server that splits its blocks",
    "use_qalora": "a base model that is quantised with GPTQ",
}
"""What fields need that this job has not, or does not do."""
_PREPARED_STARTS: Mapping[str, str] = {
    "corda": _PREPARED["corda_config"],
    "eva": _PREPARED["eva_config"],
    "loftq": _PREPARED["loftq_config"],
    "lora_ga": _PREPARED["lora_ga_config"],
}


def refusals(lora: Mapping[str, Any], *, quantized: bool) -> Refusals:
    """Of values whose kinds are right."""
    for name, needed in _PREPARED.items():
        value = lora.get(name)
        if value or (value is not None and value is not False and name not in ("loftq_config", "target_parameters")):
            yield name, f"not be set: it needs {needed}", _LEFT_OUT
    for name, only in (("peft_type", "LORA"), ("task_type", "CAUSAL_LM")):
        if lora.get(name) not in (None, only):
            yield name, f"be {only}", _LEFT_OUT
    if lora.get("inference_mode"):
        yield "inference_mode", "not be true in a training", _LEFT_OUT
    if lora.get("layers_pattern") and lora.get("layers_to_transform") is None:
        yield "layers_pattern", "not be set without layers_to_transform", _LEFT_OUT
    yield from _start(lora, quantized=quantized)
    if lora.get("lora_bias"):
        if isinstance(lora.get("init_lora_weights"), str):
            yield "lora_bias", "not be true beside an init_lora_weights that is neither true nor false", _LEFT_OUT
        if lora.get("use_dora"):
            yield "lora_bias", "not be true beside use_dora", "leave one of them out"
    invoked = lora.get("alora_invocation_tokens")
    if invoked is not None and not (invoked and all(type(token) is int and token >= 0 for token in invoked)):
        yield "alora_invocation_tokens", "hold ids of tokens", _LEFT_OUT
    if lora.get("velora_config") is not None and quantized:
        yield "velora_config", "not be set where the base model is quantised", _LEFT_OUT
    variants = [name for name in _VARIANTS if lora.get(name) not in (None, False)]
    variants += ["init_lora_weights"] if str(lora.get("init_lora_weights")).lower() == "mica" else []
    if len(variants) > 1:
        yield variants[0], f"not be set beside {variants[1]}", "leave one of them out"


def _start(lora: Mapping[str, Any], *, quantized: bool) -> Refusals:
    start = lora.get("init_lora_weights")
    if not isinstance(start, str):
        return
    if start in _PREPARED_STARTS:
        yield "init_lora_weights", f"not be {start}, which needs {_PREPARED_STARTS[start]}", _LEFT_OUT
        return
    known = start.lower() if start.lower() in _ANY_CASE else re.sub(r"^pissa_niter_\d{1,3}$", "pissa", start)
    if known not in _STARTS:
        names = ", ".join(_STARTS)
        yield "init_lora_weights", f"be true, false, {names} or pissa_niter_ and a number", _LEFT_OUT
    if known in _OF_WEIGHTS and quantized:
        way_out = "leave it out, or set load_in_4bit and load_in_8bit to false"
        yield "init_lora_weights", f"not be {start} where the base model is quantised", way_out
    if known == "orthogonal":
        for name, ranks in (("r", [lora.get("r", 8)]), ("rank_pattern", (lora.get("rank_pattern") or {}).values())):
            if any(rank % 2 for rank in ranks):
                yield name, "be even where init_lora_weights is orthogonal", "leave one of them out"
