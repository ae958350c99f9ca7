"""From the generate_kwargs of /chat to what an engine is asked: pure functions over plain values.

The effective settings are the model's generation_config.json overlaid by every field of the request, defaults
included. Each has the meaning that transformers' `generate` gives it, and each is the request's own: what others ask
at the same time changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_serving.engine.base import Limits, SamplingParams
from kaito_serving.errors import InvalidRequest

# Below this temperature the most likely token always wins; dividing by such a number would overflow instead.
COLDEST = 1e-4
_DEFAULT_MAX_LENGTH = 20  # transformers' own, when neither the request nor the model says one
_MOST_SEQUENCES = 16
_MOST_STRINGS = 16
_LONGEST_STRING = 256  # characters
_MOST_WORDS = 1024
_LARGEST_DECAY = 1e30  # what a score may be multiplied by; float32 ends at 3.4e38


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What the model brings along: its generation config, its tokenizer's end token, its list of end-of-text tokens."""

    generation_config: Mapping[str, Any]
    eos_token_id: int | None
    end_tokens: frozenset[int]


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """How to generate: `sequences` answers, at most `max_time` seconds long.

    `prompt_tokens` of the prompt are used, from its end.
    """

    params: SamplingParams
    sequences: int
    prompt_tokens: int
    max_time: float | None


def effective(given: Mapping[str, Any] | None, model: ModelSettings) -> dict[str, Any]:
    """All settings that hold: the model's, overlaid by those of the request (None: the request brings none)."""
    settings = {
        key: value
        for key, value in model.generation_config.items()
        if value is not None and key in _SETTINGS and key not in _PADDING
    }
    if given is not None:
        settings.update({"eos_token_id": model.eos_token_id, **given})
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
    min_length = settings.get("min_length") or 0
    min_new = settings.get("min_new_tokens")
    if min_new is None:
        min_new = max(0, min_length + prefix_tokens - prompt_tokens) if min_length else 0
    if hole is not None and prompt_tokens + max_new > hole:
        if hole - max_new <= 0:
            raise InvalidRequest(f"{max_new} new tokens leave no room for a prompt within {hole} tokens.")
        prompt_tokens = hole - max_new
    if prompt_tokens + max_new > limits.context:
        raise InvalidRequest(
            f"The prompt has {prompt_tokens} tokens and up to {max_new} are to follow, "
            f"but the context is {limits.context} tokens."
        )
    params = SamplingParams(
        max_tokens=max_new,
        min_tokens=min_new,
        **_choice(settings, limits),
        **_edits(settings, limits, max_new=max_new, prompt_tokens=prompt_tokens),
    )
    sequences = settings.get("num_return_sequences") or 1
    if sequences > 1 and params.temperature == 0.0:
        raise InvalidRequest(f"generate_kwargs.num_return_sequences {sequences} needs do_sample true.")
    return GenerationPlan(
        params=params, sequences=sequences, prompt_tokens=prompt_tokens, max_time=settings.get("max_time")
    )


def _choice(settings: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The settings by which one of the likely tokens is drawn."""

    def number(key: str, default: float) -> Any:
        value = settings.get(key)
        return default if value is None else value

    temperature, top_k, top_p = number("temperature", 1.0), number("top_k", 0), number("top_p", 1.0)
    if not settings.get("do_sample", False) or temperature < COLDEST or top_k == 1 or top_p <= 0.0:
        return {"temperature": 0.0}
    return {
        "temperature": float(temperature),
        "top_k": 0 if top_k >= limits.vocabulary else top_k,
        "top_p": float(top_p),
        "min_p": float(number("min_p", 0.0)),
        "typical_p": float(number("typical_p", 1.0)),
        "epsilon_cutoff": float(number("epsilon_cutoff", 0.0)),
        "eta_cutoff": float(number("eta_cutoff", 0.0)),
        "seed": settings.get("seed"),
    }


def _edits(settings: Mapping[str, Any], limits: Limits, *, max_new: int, prompt_tokens: int) -> dict[str, Any]:
    """The settings that change scores, and those that end an answer."""
    ends = _token_ids(settings.get("eos_token_id"), limits)
    # A word that is an end token alone is no bad word, as in transformers' NoBadWordsLogitsProcessor.
    words = tuple(
        tuple(word) for word in settings.get("bad_words_ids") or () if not (len(word) == 1 and word[0] in ends)
    )
    suppressed = tuple(settings.get("suppress_tokens") or ())
    banned = {*suppressed, *(word[0] for word in words if len(word) == 1)}
    if 2 * max(len(banned), len(set(settings.get("begin_suppress_tokens") or ()))) > limits.vocabulary:
        raise InvalidRequest(
            f"generate_kwargs suppresses {len(banned)} of {limits.vocabulary} tokens; at most half may be suppressed."
        )
    decay = settings.get("exponential_decay_length_penalty")
    if decay is not None and max(0, max_new - decay[0]) * math.log(decay[1]) > math.log(_LARGEST_DECAY):
        raise InvalidRequest(
            f"generate_kwargs.exponential_decay_length_penalty {decay!r} overflows within {max_new} tokens; "
            "use a factor nearer to 1."
        )
    forced_bos = settings.get("forced_bos_token_id")
    forced_eos = settings.get("forced_eos_token_id")
    strings = settings.get("stop_strings") or ()
    repetition = settings.get("repetition_penalty")
    return {
        "repetition_penalty": 1.0 if repetition is None else float(repetition),
        "no_repeat_ngram_size": settings.get("no_repeat_ngram_size") or 0,
        "bad_words_ids": words,
        "suppress_tokens": suppressed,
        "begin_suppress_tokens": tuple(settings.get("begin_suppress_tokens") or ()),
        # transformers forces it behind a single token only: as the first one of a whole text.
        "forced_bos_token_id": forced_bos if prompt_tokens == 1 else None,
        "forced_eos_token_ids": () if forced_eos is None else (forced_eos,),
        "length_decay": None if decay is None else (decay[0], float(decay[1])),
        "stop": (strings,) if isinstance(strings, str) else tuple(strings),
        "stop_token_ids": ends,
    }


def _token_ids(value: int | list[int] | None, limits: Limits) -> frozenset[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return frozenset(token for token in ids if 0 <= token < limits.vocabulary)


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
    return (
        isinstance(value, list) and len(value) <= _MOST_WORDS and all(word and _tokens(word, limits) for word in value)
    )


def _strings(value: Any, _: Limits) -> bool:
    many = [value] if isinstance(value, str) else value
    return (
        isinstance(many, list)
        and len(many) <= _MOST_STRINGS
        and all(isinstance(string, str) and 0 < len(string) <= _LONGEST_STRING for string in many)
    )


def _decay(value: Any, limits: Limits) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and _integer(0)(value[0], limits)
        and _real(0.0, math.inf, open_below=True)(value[1], limits)
    )


def _end_tokens(value: Any, _: Limits) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(token) is int for token in value))


_SETTINGS: Mapping[str, Callable[[Any, Limits], bool]] = {
    "max_length": _integer(1),
    "max_new_tokens": _integer(1),
    "min_length": _integer(0),
    "min_new_tokens": _integer(0),
    "do_sample": _boolean,
    "temperature": _real(-math.inf, math.inf),
    "top_k": _integer(0),
    "top_p": _real(0.0, 1.0),
    "min_p": _real(0.0, 1.0),
    "typical_p": _real(0.0, 1.0, open_below=True),
    "epsilon_cutoff": _real(0.0, 0.999),
    "eta_cutoff": _real(0.0, 0.999),
    "seed": _integer(0, 2**63 - 1),
    "eos_token_id": _end_tokens,
    "pad_token_id": _token,
    "bos_token_id": _end_tokens,
    "num_return_sequences": _integer(1, _MOST_SEQUENCES),
    "repetition_penalty": _real(0.1, 10.0),
    "no_repeat_ngram_size": _integer(0),
    "bad_words_ids": _words,
    "suppress_tokens": _tokens,
    "begin_suppress_tokens": _tokens,
    "forced_bos_token_id": _token,
    "forced_eos_token_id": _token,
    "exponential_decay_length_penalty": _decay,
    "stop_strings": _strings,
    "max_time": _real(0.0, 3600.0, open_below=True),
}
"""Settings that a request may have, each with what it may be; null counts as absent."""

_PADDING = ("bos_token_id", "pad_token_id")  # rows are never padded; a request's own are checked all the same

_WITHOUT_EFFECT: Mapping[str, Callable[[Any, Limits], bool]] = {
    "early_stopping": _boolean,  # beams
    "length_penalty": _real(-math.inf, math.inf),  # beams
    "renormalize_logits": _boolean,  # the same tokens are drawn
    "remove_invalid_values": _boolean,  # there are none
    "use_cache": _boolean,
}

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
    "penalty_alpha": None,
    "guidance_scale": 1,
    "token_healing": False,
    "low_memory": False,
    "decoder_start_token_id": None,
}


def _check(key: str, value: Any, limits: Limits) -> None:
    if value is None:
        if key not in _SETTINGS and key not in _WITHOUT_EFFECT and key not in _NEUTRAL_ONLY and key != "num_beams":
            raise InvalidRequest(f"Unknown generate_kwargs key {key!r}.")
    elif key == "num_beams":
        if type(value) is not int or value != 1:
            raise InvalidRequest(f"generate_kwargs.num_beams must be 1, not {value!r}: beam search is not served.")
    elif key in _SETTINGS or key in _WITHOUT_EFFECT:
        if not (_SETTINGS.get(key) or _WITHOUT_EFFECT[key])(value, limits):
            raise InvalidRequest(f"generate_kwargs.{key} cannot be {_short(value)}.")
    elif key in _NEUTRAL_ONLY:
        if value != _NEUTRAL_ONLY[key]:
            raise InvalidRequest(f"generate_kwargs.{key} is not supported by this server.")
    else:
        raise InvalidRequest(f"Unknown generate_kwargs key {_short(key)}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
