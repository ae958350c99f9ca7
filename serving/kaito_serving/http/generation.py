"""From the generation settings of a request to what an engine is asked: pure functions over plain values.

The effective settings are the model's generation_config.json overlaid by every field of the request, defaults
included. A request whose effective settings are no more than temperature, top-k, top-p, lengths and end tokens can
share a batch with others; any further setting (`SPECIAL`) goes to the engine as it is, and that request runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_serving.engine.base import Limits, Sampling
from kaito_serving.errors import InvalidRequest

# Below this temperature the most likely token always wins; dividing by such a number would overflow instead.
_COLDEST = 1e-4
_DEFAULT_MAX_LENGTH = 20  # transformers' own, when neither the request nor the model says one
_MOST_BEAMS = 16


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What the model brings along: its generation config, the tokenizer's end and padding token, and its limits."""

    generation_config: Mapping[str, Any]
    eos_token_id: int | None
    pad_token_id: int | None
    limits: Limits


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """How to generate; the fields are those of `GenRequest`. `prompt_tokens` of the prompt are used, from its end."""

    max_new_tokens: int
    eos_token_ids: frozenset[int]
    sampling: Sampling | None
    special: Mapping[str, Any]
    sequences: int
    prompt_tokens: int


def effective(given: Mapping[str, Any] | None, model: ModelSettings) -> dict[str, Any]:
    """All settings that hold: the model's, overlaid by those of the request (None: the request brings none)."""
    settings = {
        key: value
        for key, value in model.generation_config.items()
        if value is not None and (key in _BATCHED or key in SPECIAL)
    }
    if given is not None:
        settings.update({"eos_token_id": model.eos_token_id, "pad_token_id": model.pad_token_id, **given})
    return settings


def plan(
    settings: Mapping[str, Any],
    *,
    prompt_tokens: int,
    prefix_tokens: int = 0,
    limits: Limits,
    hole: int | None = None,
) -> GenerationPlan:
    """Check `settings` (from `effective`) and turn them into a plan; InvalidRequest names the key and the value.

    `prompt_tokens` includes the prefix. `hole` is the tokenizer's limit when the request wants its prompt cut to fit.
    """
    for key, value in settings.items():
        _check(key, value, limits)
    max_new = settings.get("max_new_tokens")
    max_length = settings.get("max_length") or _DEFAULT_MAX_LENGTH
    if max_new is None:
        max_new = max_length + prefix_tokens - prompt_tokens
        if max_new < 1:
            raise InvalidRequest(
                f"The prompt has {prompt_tokens} tokens, and max_length {max_length} leaves no room for an answer; "
                "raise max_length or give max_new_tokens."
            )
    if hole is not None and prompt_tokens + max_new > hole:
        if hole - max_new <= 0:
            raise InvalidRequest(f"{max_new} new tokens leave no room for a prompt within {hole} tokens.")
        prompt_tokens = hole - max_new
    if prompt_tokens + max_new > limits.context:
        raise InvalidRequest(
            f"The prompt has {prompt_tokens} tokens and up to {max_new} are to follow, "
            f"but the context is {limits.context} tokens."
        )
    sampling = _sampling(settings, limits)
    special = _special(settings, prefix_tokens=prefix_tokens)
    sequences = _number(settings, "num_return_sequences", 1)
    beams = _number(settings, "num_beams", 1)
    if sequences > 1 and beams == 1 and sampling is None:
        raise InvalidRequest(f"num_return_sequences {sequences} needs do_sample true or num_beams above 1.")
    if beams > 1 and sequences > beams:
        raise InvalidRequest(f"num_return_sequences {sequences} is more than num_beams {beams}.")
    if special and max(sequences, beams) * (prompt_tokens + max_new) > 4 * limits.context:
        raise InvalidRequest(
            f"{max(sequences, beams)} answers or beams of that length are too many; ask for fewer tokens."
        )
    eos = settings.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return GenerationPlan(
        max_new_tokens=max_new,
        eos_token_ids=frozenset(token for token in ends if token >= 0),
        sampling=sampling,
        special=special,
        sequences=sequences,
        prompt_tokens=prompt_tokens,
    )


def _sampling(settings: Mapping[str, Any], limits: Limits) -> Sampling | None:
    if not settings.get("do_sample", False):
        return None
    temperature = _number(settings, "temperature", 1.0)
    top_k = _number(settings, "top_k", 0)
    top_p = _number(settings, "top_p", 1.0)
    if temperature < _COLDEST or top_k == 1 or top_p <= 0.0:
        return None
    return Sampling(
        temperature=float(temperature), top_k=0 if top_k >= limits.vocabulary else int(top_k), top_p=float(top_p)
    )


def _special(settings: Mapping[str, Any], *, prefix_tokens: int) -> dict[str, Any]:
    beams = _number(settings, "num_beams", 1)
    chosen = {
        key: value
        for key, value in settings.items()
        if key in SPECIAL and value is not None and (beams > 1 or key not in ("early_stopping", "length_penalty"))
    }
    if all(_is_neutral(key, value) for key, value in chosen.items()):
        return {}
    if prefix_tokens and chosen.get("min_length") and settings.get("min_new_tokens") is None:
        chosen["min_length"] += prefix_tokens
    if settings.get("pad_token_id") is not None:
        chosen["pad_token_id"] = settings["pad_token_id"]
    return chosen


def _number(settings: Mapping[str, Any], key: str, default: Any) -> Any:
    value = settings.get(key)
    return default if value is None else value


# ---------------------------------------------------------------- what each setting may be
def _integer(least: int, most: int | None = None) -> Callable[[Any, Limits], bool]:
    return lambda value, _: type(value) is int and value >= least and (most is None or value <= most)


def _real(least: float, most: float, *, open_below: bool = False) -> Callable[[Any, Limits], bool]:
    def accept(value: Any, _: Limits) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return bool((least < value if open_below else least <= value) and value <= most)

    return accept


def _boolean(value: Any, _: Limits) -> bool:
    return type(value) is bool


def _token(value: Any, limits: Limits) -> bool:
    return type(value) is int and 0 <= value < limits.vocabulary


def _tokens(value: Any, limits: Limits) -> bool:
    return isinstance(value, list) and all(_token(token, limits) for token in value)


def _words(value: Any, limits: Limits) -> bool:
    return isinstance(value, list) and all(word and _tokens(word, limits) for word in value)


def _strings(value: Any, _: Limits) -> bool:
    many = [value] if isinstance(value, str) else value
    return (
        isinstance(many, list) and 0 < len(many) <= 16 and all(isinstance(s, str) and 0 < len(s) <= 256 for s in many)
    )


def _decay(value: Any, _: Limits) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and type(value[0]) is int
        and value[0] >= 0
        and type(value[1]) in (int, float)
        and math.isfinite(value[1])
        and value[1] > 0
    )


def _end_tokens(value: Any, _: Limits) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(token) is int for token in value))


_BATCHED: dict[str, Callable[[Any, Limits], bool]] = {
    "max_length": _integer(1),
    "max_new_tokens": _integer(1),
    "do_sample": _boolean,
    "temperature": _real(-math.inf, math.inf),
    "top_k": _integer(0),
    "top_p": _real(0.0, 1.0),
    "eos_token_id": _end_tokens,
    "pad_token_id": _end_tokens,
    "bos_token_id": _end_tokens,
    "num_return_sequences": _integer(1, _MOST_BEAMS),
}

SPECIAL: Mapping[str, tuple[Callable[[Any, Limits], bool], Any]] = {
    "num_beams": (_integer(1, _MOST_BEAMS), 1),
    "early_stopping": (_boolean, False),
    "length_penalty": (_real(-10.0, 10.0), 1.0),
    "min_length": (_integer(0), 0),
    "min_new_tokens": (_integer(0), 0),
    "typical_p": (_real(0.0, 1.0, open_below=True), 1.0),
    "repetition_penalty": (_real(0.0, 100.0, open_below=True), 1.0),
    "no_repeat_ngram_size": (_integer(0), 0),
    "bad_words_ids": (_words, None),
    "suppress_tokens": (_tokens, None),
    "begin_suppress_tokens": (_tokens, None),
    "forced_bos_token_id": (_token, None),
    "forced_eos_token_id": (_token, None),
    "min_p": (_real(0.0, 1.0), 0.0),
    "epsilon_cutoff": (_real(0.0, 0.999), 0.0),
    "eta_cutoff": (_real(0.0, 0.999), 0.0),
    "exponential_decay_length_penalty": (_decay, None),
    "renormalize_logits": (_boolean, False),
    "remove_invalid_values": (_boolean, False),
    "stop_strings": (_strings, None),
    "max_time": (_real(0.0, 3600.0, open_below=True), None),
}
"""Settings that a request may have, each with what it may be and the value that changes nothing."""

_NEUTRAL_ONLY: Mapping[str, Any] = {
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict_in_generate": False,
    "use_cache": True,
    "penalty_alpha": None,
    "guidance_scale": 1,
    "token_healing": False,
    "low_memory": False,
    "decoder_start_token_id": None,
}


def _is_neutral(key: str, value: Any) -> bool:
    neutral = SPECIAL[key][1]
    return value is None or value == [] or (neutral is not None and value == neutral)


def _check(key: str, value: Any, limits: Limits) -> None:
    if key in _BATCHED:
        if value is not None and not _BATCHED[key](value, limits):
            raise InvalidRequest(f"generate_kwargs.{key} cannot be {value!r}.")
    elif key in SPECIAL:
        if not _is_neutral(key, value) and not SPECIAL[key][0](value, limits):
            raise InvalidRequest(f"generate_kwargs.{key} cannot be {value!r}.")
    elif key in _NEUTRAL_ONLY:
        if value is not None and value != _NEUTRAL_ONLY[key]:
            raise InvalidRequest(f"generate_kwargs.{key} is not supported by this server.")
    else:
        raise InvalidRequest(f"Unknown generate_kwargs key {key!r}.")
