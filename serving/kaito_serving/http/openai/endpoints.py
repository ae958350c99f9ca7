"""POST /v1/chat/completions and /v1/completions: whole answers and streams."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from starlette.responses import JSONResponse, Response

from kaito_serving.engine.base import Chunk, Engine, Request, SamplingParams, TokenLogprobs
from kaito_serving.errors import InvalidRequest, RequestError
from kaito_serving.http import sse
from kaito_serving.http.generate_kwargs import ModelSettings
from kaito_serving.http.openai import params
from kaito_serving.http.openai.answers import Answer, chat_logprobs, completion_logprobs
from kaito_serving.http.openai.contract import ChatCompletionRequest, CompletionRequest
from kaito_serving.http.openai.errors import body as error_body
from kaito_serving.http.openai.models import Models
from kaito_serving.http.openai.tokens import check_ids
from kaito_serving.http.running import Asker, Running
from kaito_serving.http.text import Text

_COALESCE = 0.02  # seconds within which tokens after the first go out together
_FIRST_WITHIN = 1.0  # seconds to wait for a first token, or a refusal, before the stream begins


@dataclass(frozen=True, slots=True)
class _Job:
    """One prompt of a request."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    echo: str = ""


class OpenAI:
    """The endpoints over one engine, whose `models` clients may name.

    `now` gives seconds since the epoch, `monotonic` those of a clock that never goes back.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        text: Text,
        settings: ModelSettings,
        models: Models,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._text = text
        self._settings = settings
        self._models = models
        self._now = now
        self._monotonic = monotonic

    async def chat_completion(self, request: ChatCompletionRequest, asker: Asker) -> Response:
        """POST /v1/chat/completions."""
        params.refuse_unsupported(request)
        ids = await self._text.encode(self._text.render(params.plain(request.messages)), special=False)
        job = _Job(ids, self._sampling(request, len(ids)))
        return await self._respond(
            request, [job], asker, _ChatShape(self._text, token_ids=bool(request.return_token_ids))
        )

    async def completion(self, request: CompletionRequest, asker: Asker) -> Response:
        """POST /v1/completions."""
        params.refuse_unsupported(request)
        jobs = []
        for prompt in self._prompts(request):
            ids = (
                await self._text.encode(prompt, special=request.add_special_tokens)
                if isinstance(prompt, str)
                else prompt
            )
            if not ids:
                raise InvalidRequest("The prompt is empty.", param="prompt")
            check_ids(ids, self._engine.limits, field="prompt")
            echo = ""
            if request.echo:
                echo = prompt if isinstance(prompt, str) else self._text.decode(prompt, special=True)
            jobs.append(_Job(ids, self._sampling(request, len(ids)), echo))
        shape = _CompletionShape(self._text, token_ids=bool(request.return_token_ids), nothing=request.max_tokens == 0)
        return await self._respond(request, jobs, asker, shape)

    def _sampling(self, request: ChatCompletionRequest | CompletionRequest, prompt_tokens: int) -> SamplingParams:
        return params.sampling(request, prompt_tokens=prompt_tokens, limits=self._engine.limits, model=self._settings)

    def _prompts(self, request: CompletionRequest) -> list[str] | list[list[int]]:
        prompt = request.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [prompt]
        return cast(list[str] | list[list[int]], prompt)

    async def _respond(
        self, request: ChatCompletionRequest | CompletionRequest, jobs: Sequence[_Job], asker: Asker, shape: _Shape
    ) -> Response:
        n = request.n or 1
        params.check_answers(len(jobs) * n)
        mix = self._models.mix(request.model, request.adapters)
        asked = [
            Request(
                prompt_ids=tuple(job.prompt_ids),
                params=_seeded(job.params, each),
                adapters=mix,
                deadline=asker.deadline,
                client=asker.client,
            )
            for job in jobs
            for each in range(n)
        ]
        echoes = [job.echo for job in jobs for _ in range(n)]
        head = {
            "id": f"{shape.prefix}-{secrets.token_hex(16)}",
            "object": shape.object,
            "created": int(self._now()),
            "model": request.model or self._models.names[0],
        }
        prompt_tokens = sum(len(job.prompt_ids) for job in jobs)
        if request.stream:
            usage = request.stream_options is not None and request.stream_options.include_usage
            events = self._stream(asked, echoes, head, shape, prompt_tokens if usage else None)
            return await sse.EventStream.begin(events)
        return JSONResponse(await self._whole(asked, echoes, head, shape, prompt_tokens))

    async def _whole(
        self,
        asked: Sequence[Request],
        echoes: Sequence[str],
        head: Mapping[str, Any],
        shape: _Shape,
        prompt_tokens: int,
    ) -> dict[str, Any]:
        answers = [Answer(self._text, each.prompt_ids, each.params.stop) for each in asked]
        whole = [_Whole() for _ in asked]
        async with Running(self._engine, asked) as running:
            while not running.finished:
                taken = await running.next()
                assert taken is not None
                at, chunk = taken
                whole[at].add(chunk, answers[at].push(chunk))
        return {
            **head,
            "choices": [shape.choice(at, asked[at], each, echoes[at]) for at, each in enumerate(whole)],
            "usage": shape.usage(prompt_tokens, answers),
        }

    async def _stream(
        self,
        asked: Sequence[Request],
        echoes: Sequence[str],
        head: Mapping[str, Any],
        shape: _Shape,
        usage_of: int | None,
    ) -> AsyncGenerator[bytes, None]:
        answers = [Answer(self._text, each.prompt_ids, each.params.stop) for each in asked]
        head = {**head, "object": shape.chunk_object}
        if usage_of is not None:
            head = {**head, "usage": None}
        pending: dict[int, _Whole] = {}
        begun: set[int] = set()
        async with Running(self._engine, asked) as running:
            # What fails at once fails before the first event, as an answer with a status of its own.
            taken = await running.next(within=_FIRST_WITHIN)
            for at in range(len(asked)):
                for delta in shape.opening(at, echoes[at]):
                    yield sse.event({**head, "choices": [delta]})
            sent = self._monotonic()
            try:
                while True:
                    if taken is None and not pending:
                        yield sse.KEEP_ALIVE
                    if taken is not None:
                        at, chunk = taken
                        start = len(echoes[at]) + answers[at].given
                        pending.setdefault(at, _Whole(start)).add(chunk, answers[at].push(chunk))
                    now = self._monotonic()
                    at_once = taken is not None and (taken[0] not in begun or taken[1].finish_reason is not None)
                    if pending and (taken is None or at_once or now - sent >= _COALESCE):
                        for at, part in pending.items():
                            for delta in shape.deltas(at, asked[at], part, first=at not in begun):
                                yield sse.event({**head, "choices": [delta]})
                            begun.add(at)
                        pending.clear()
                        sent = now
                    if running.finished:
                        break
                    wait = max(0.0, sent + _COALESCE - now) if pending else sse.KEEP_ALIVE_EVERY
                    taken = await running.next(within=wait)
            except RequestError as error:
                yield sse.event(error_body(error))
                yield sse.DONE
                return
        if usage_of is not None:
            yield sse.event({**head, "choices": [], "usage": shape.usage(usage_of, answers)})
        yield sse.DONE


def _seeded(settings: SamplingParams, each: int) -> SamplingParams:
    """Answers to one prompt have a seed each."""
    return settings if settings.seed is None or each == 0 else replace(settings, seed=(settings.seed + each) % 2**63)


class _Whole:
    """Pieces of one choice, put together; the first begins at character `start` of the choice's text."""

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.text = ""
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    def add(self, chunk: Chunk, text: str) -> None:
        """Take in a chunk, and what it added to the text."""
        self.text += text
        self.ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        self.prompt_logprobs += chunk.prompt_logprobs
        if chunk.finish_reason is not None:
            self.finish_reason, self.stop_reason = chunk.finish_reason, chunk.stop_reason


class _Shape:
    """How an endpoint writes its answers."""

    prefix: str
    object: str
    chunk_object: str

    def __init__(self, text: Text, *, token_ids: bool) -> None:
        self._text = text
        self._token_ids = token_ids  # vLLM's return_token_ids

    def opening(self, at: int, echo: str) -> list[dict[str, Any]]:
        """What a stream says of a choice before its first token."""
        raise NotImplementedError

    def deltas(self, at: int, asked: Request, part: _Whole, *, first: bool) -> list[dict[str, Any]]:
        """What a stream says of new tokens; `first`: of the first ones of a choice."""
        raise NotImplementedError

    def choice(self, at: int, asked: Request, whole: _Whole, echo: str) -> dict[str, Any]:
        """A whole choice."""
        raise NotImplementedError

    def ids(self, asked: Request, part: _Whole, *, first: bool) -> dict[str, Any]:
        """The fields of token ids, if they are wanted."""
        if not self._token_ids:
            return {}
        return {"token_ids": part.ids, "prompt_token_ids": list(asked.prompt_ids) if first else None}

    def usage(self, prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, int]:
        """Tokens of all prompts and all answers."""
        completion_tokens = sum(answer.tokens for answer in answers)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


class _ChatShape(_Shape):
    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, at: int, echo: str) -> list[dict[str, Any]]:
        return [{"index": at, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]

    def deltas(self, at: int, asked: Request, part: _Whole, *, first: bool) -> list[dict[str, Any]]:
        ended = {"finish_reason": part.finish_reason, "stop_reason": part.stop_reason}
        delta = {"index": at, "delta": {}, "logprobs": None, **ended, **self.ids(asked, part, first=first)}
        if part.text or part.logprobs:
            delta["delta"] = {"content": part.text}
        if part.logprobs:
            delta["logprobs"] = chat_logprobs(self._text, part.logprobs)
        return [delta] if delta["delta"] or delta.get("token_ids") or part.finish_reason else []

    def choice(self, at: int, asked: Request, whole: _Whole, echo: str) -> dict[str, Any]:
        return {
            "index": at,
            "message": {"role": "assistant", "content": whole.text, "refusal": None},
            "logprobs": None if asked.params.logprobs is None else chat_logprobs(self._text, whole.logprobs),
            "finish_reason": whole.finish_reason,
            "stop_reason": whole.stop_reason,
            **self.ids(asked, whole, first=True),
        }


class _CompletionShape(_Shape):
    prefix = "cmpl"
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, text: Text, *, token_ids: bool, nothing: bool) -> None:
        super().__init__(text, token_ids=token_ids)
        self._nothing = nothing  # max_tokens 0: the prompt's logprobs are wanted, and no answer

    def opening(self, at: int, echo: str) -> list[dict[str, Any]]:
        return [{"index": at, "text": echo, "logprobs": None, "finish_reason": None}] if echo else []

    def deltas(self, at: int, asked: Request, part: _Whole, *, first: bool) -> list[dict[str, Any]]:
        ids = self.ids(asked, part, first=first)
        if not (part.text or part.logprobs or part.finish_reason or ids.get("token_ids")):
            return []
        logprobs = None
        if part.logprobs:
            logprobs = completion_logprobs(self._text, part.logprobs, part.ids, start=part.start)
        text = "" if self._nothing else part.text
        ended = {"finish_reason": part.finish_reason, "stop_reason": part.stop_reason}
        return [{"index": at, "text": text, "logprobs": logprobs, **ended, **ids}]

    def choice(self, at: int, asked: Request, whole: _Whole, echo: str) -> dict[str, Any]:
        logprobs = None
        if asked.params.logprobs is not None:
            entries: list[TokenLogprobs | None] = [*whole.prompt_logprobs]
            ids = list(asked.prompt_ids) if whole.prompt_logprobs else []
            if not self._nothing:
                entries += whole.logprobs
                ids += whole.ids
            logprobs = completion_logprobs(self._text, entries, ids, start=0)
        return {
            "index": at,
            "text": echo if self._nothing else echo + whole.text,
            "logprobs": logprobs,
            "finish_reason": "length" if self._nothing else whole.finish_reason,
            "stop_reason": whole.stop_reason,
            **self.ids(asked, whole, first=True),
        }

    def usage(self, prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, int]:
        usage = super().usage(prompt_tokens, answers)
        return {**usage, "completion_tokens": 0, "total_tokens": prompt_tokens} if self._nothing else usage
