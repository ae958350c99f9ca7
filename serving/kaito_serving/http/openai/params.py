"""From a body of /v1 to what an engine is asked: pure functions over plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kaito_serving.engine.base import Limits, SamplingParams
from kaito_serving.errors import InvalidRequest
from kaito_serving.http.generate_kwargs import COLDEST, ModelSettings
from kaito_serving.http.openai.contract import ChatCompletionRequest, CompletionRequest, Generation, Message

_COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions
_MOST_ANSWERS = 128  # to one request
_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # that a generation_config.json may set


def check_answers(count: int) -> None:
    """InvalidRequest when a request asks for none or too many; `count` is prompts times n."""
    if not 0 < count <= _MOST_ANSWERS:
        raise InvalidRequest(f"{count} answers were asked for; 1 to {_MOST_ANSWERS} are given at once.", param="n")


def sampling(
    request: ChatCompletionRequest | CompletionRequest, *, prompt_tokens: int, limits: Limits, model: ModelSettings
) -> SamplingParams:
    """The settings of a request whose prompt has `prompt_tokens`; InvalidRequest names the field."""
    own = {key: model.generation_config[key] for key in _DEFAULTS if model.generation_config.get(key) is not None}

    def value(key: str, default: Any) -> Any:
        given = getattr(request, key)
        return own.get(key, default) if given is None else given

    room = limits.context - prompt_tokens
    most = _most_tokens(request)
    if room < 1 or (most is not None and most > room):
        wanted = "" if most is None else f" and {most} are to follow"
        raise InvalidRequest(
            f"The prompt has {prompt_tokens} tokens{wanted}, but the context is {limits.context} tokens.",
            param="max_tokens" if most is not None and room >= 1 else "prompt",
        )
    max_tokens = room if most is None else max(1, most)
    bias = request.logit_bias or {}
    for field, tokens in (("logit_bias", bias), ("stop_token_ids", request.stop_token_ids or ())):
        beyond = [token for token in tokens if token >= limits.vocabulary]
        if beyond:
            raise InvalidRequest(f"{field} names token {beyond[0]}; the model has {limits.vocabulary}.", param=field)
    temperature = float(value("temperature", 1.0))
    greedy = temperature < COLDEST
    top_k = value("top_k", 0)
    stop = request.stop
    ends = frozenset() if request.ignore_eos else frozenset(t for t in model.end_tokens if t < limits.vocabulary)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(request.min_tokens or 0, max_tokens),
        temperature=0.0 if greedy else temperature,
        top_k=0 if greedy or top_k < 1 or top_k >= limits.vocabulary else int(top_k),
        top_p=1.0 if greedy else float(value("top_p", 1.0)),
        min_p=0.0 if greedy else float(value("min_p", 0.0)),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=float(value("repetition_penalty", 1.0)),
        logit_bias=bias,
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=ends | frozenset(request.stop_token_ids or ()),
        seed=None if request.seed is None or greedy else request.seed % 2**63,
        logprobs=_logprobs(request),
        prompt_logprobs=request.logprobs if isinstance(request, CompletionRequest) and request.echo else None,
        json_schema=_schema(request),
    )


def refuse_unsupported(request: ChatCompletionRequest | CompletionRequest) -> None:
    """InvalidRequest for what the API has and this server does not do."""
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream true.", param="stream_options")
    if isinstance(request, CompletionRequest):
        if request.suffix:
            raise InvalidRequest("suffix is not supported: this model continues texts.", param="suffix")
        if request.best_of is not None and request.best_of != (request.n or 1):
            raise InvalidRequest("best_of is not supported; ask for n answers.", param="best_of")
        return
    if request.tools and request.tool_choice != "none":
        raise InvalidRequest("tools are served by the vllm engine only.", param="tools")
    if request.functions:
        raise InvalidRequest("functions are served by the vllm engine only, as tools.", param="functions")
    if request.modalities and request.modalities != ["text"]:
        raise InvalidRequest("modalities can only be text.", param="modalities")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs true.", param="top_logprobs")


def plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as chat templates take them: role and text."""
    result = []
    for at, message in enumerate(messages):
        if message.role in ("tool", "function"):
            raise InvalidRequest(f"messages[{at}] is of role {message.role}, which the vllm engine serves only.")
        content = message.content
        if isinstance(content, list):
            for part in content:
                if part.type != "text" or part.text is None:
                    raise InvalidRequest(f"messages[{at}] has a part of type {part.type!r}; only text is served.")
            content = "".join(part.text or "" for part in content)
        role = "system" if message.role == "developer" else message.role
        result.append({"role": role, "content": content or ""})
    return result


def _most_tokens(request: ChatCompletionRequest | CompletionRequest) -> int | None:
    if isinstance(request, ChatCompletionRequest):
        return request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    return _COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens


def _logprobs(request: ChatCompletionRequest | CompletionRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.logprobs
    return (request.top_logprobs or 0) if request.logprobs else None


def _schema(request: Generation) -> str | None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return json.dumps({"type": "object"})
    if wanted.json_schema is None:
        raise InvalidRequest("response_format.json_schema is missing.", param="response_format")
    return json.dumps(wanted.json_schema.schema_)
