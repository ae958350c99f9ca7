"""A request and its answer on the wire: a body of vLLM's /v1/completions, events that become `Chunk`s."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kaito_serving.engine.base import Chunk, Request, SamplingParams
from kaito_serving.errors import (
    EngineUnavailable,
    InvalidRequest,
    RequestError,
    RequestFailed,
    TooManyRequests,
    UnknownModel,
)

_DEFAULTS = SamplingParams(max_tokens=1)
_LACKING = (
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "no_repeat_ngram_size",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_ids",
    "length_decay",
)
_SHORT = ("presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p")
_LOWEST_BIAS = -100.0  # the least that OpenAI's API takes; it bans a token
_GENERATE_NAMES = {"length_decay": "exponential_decay_length_penalty", "forced_eos_token_ids": "forced_eos_token_id"}


def body(request: Request, *, model: str) -> dict[str, Any]:
    """The body of POST /v1/completions; InvalidRequest for a setting that vLLM does not have."""
    params = request.params
    for name in _LACKING:
        if getattr(params, name) != getattr(_DEFAULTS, name):
            raise InvalidRequest(f"{_GENERATE_NAMES.get(name, name)} is not served by the vllm engine.", param=name)
    if params.logprobs is not None or params.prompt_logprobs is not None or params.json_schema is not None:
        raise InvalidRequest("Logprobs and schemas are served on /v1.")
    return {
        "model": model,
        "prompt": list(request.prompt_ids),
        "add_special_tokens": False,
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        **{name: getattr(params, name) for name in _SHORT},
        "logit_bias": {str(token): value for token, value in (_banned(params) | dict(params.logit_bias)).items()},
        "stop": list(params.stop),
        # The request's list is whole: vLLM adds nothing of its own.
        "stop_token_ids": sorted(params.stop_token_ids),
        "ignore_eos": True,
        "seed": params.seed,
        "stream": True,
        "return_token_ids": True,
    }


def chunk(event: str) -> Chunk | None:
    """What one event brings: None if nothing; RequestError when the answer broke off."""
    said = json.loads(event)
    if "error" in said:
        raise RequestFailed(f"vLLM failed: {_message(said)}")
    if not said.get("choices"):
        return None
    choice = said["choices"][0]
    reason = choice.get("finish_reason")
    if reason == "abort":
        raise EngineUnavailable("vLLM gave this request up; try again.")
    if reason not in (None, "stop", "length"):
        raise RequestFailed(f"vLLM ended the answer with {reason!r}.")
    tokens = tuple(choice.get("token_ids") or ())
    if not tokens and reason is None:
        return None
    return Chunk(tokens, finish_reason=reason, stop_reason=choice.get("stop_reason"))


def refusal(status: int, content: str) -> RequestError:
    """What an answer that is not 200 means."""
    try:
        message = _message(json.loads(content))
    except ValueError:
        message = content[:500]
    if status == 404:
        return UnknownModel(message)
    if status == 429:
        return TooManyRequests(message)
    if 400 <= status < 500:
        return InvalidRequest(message)
    return EngineUnavailable(f"vLLM answers {status}: {message}")


def _message(said: Any) -> str:
    error = said.get("error") if isinstance(said, Mapping) else None
    return str(error.get("message") or error) if isinstance(error, Mapping) else str(error or said)


def _banned(params: SamplingParams) -> dict[int, float]:
    """Tokens that never occur, as biases. Banned sequences of several tokens cannot be said so."""
    tokens = set(params.suppress_tokens)
    for word in params.bad_words_ids:
        if len(word) != 1:
            raise InvalidRequest(
                "bad_words_ids with words of several tokens is not served by the vllm engine.", param="bad_words_ids"
            )
        tokens.add(word[0])
    return dict.fromkeys(tokens, _LOWEST_BIAS)
