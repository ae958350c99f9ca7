"""OpenAI's API of the server behind the engine, handed on as it is: bodies and answers byte for byte.

The one thing that is ours is the model's name: what clients call a mix of adapters the server behind knows by another
name. Where the two differ, the field `model` is exchanged in the body and back in the answer, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from kaito_serving.deadline import until
from kaito_serving.engine.base import Upstream
from kaito_serving.errors import EngineUnavailable, InvalidRequest, RequestError
from kaito_serving.http import sse
from kaito_serving.http.openai.contract import Strength
from kaito_serving.http.openai.errors import body as error_body
from kaito_serving.http.openai.models import Models
from kaito_serving.http.openai.params import check_answers
from kaito_serving.http.running import Asker
from kaito_serving.lines import lines

_JSON = {"Content-Type": "application/json"}


class Forwarded(BaseModel):
    """A body of the server behind; of its fields only these are read here."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str | None, Field(description="a name of GET /v1/models")] = None
    adapters: dict[str, Strength] | None = None
    n: int | None = None
    prompt: Any = None
    use_beam_search: bool | None = None


class PassThrough:
    """The endpoints that `upstream` answers; `monotonic` is the clock of deadlines."""

    def __init__(self, upstream: Upstream, models: Models, *, monotonic: Callable[[], float]) -> None:
        self._upstream = upstream
        self._models = models
        self._monotonic = monotonic

    async def metrics(self) -> str:
        """The exposition text of the server behind."""
        return await self._upstream.metrics()

    async def forward(self, path: str, body: Forwarded, content: bytes, asker: Asker) -> Response:
        """The answer to POST `path`, whole or in events; `body` is what `read` found in `content`."""
        asked = body.model or self._models.names[0]
        if body.use_beam_search:
            raise InvalidRequest("Beam search is not served.", param="use_beam_search")
        answers = _prompts(body) * (1 if body.n is None else body.n)
        check_answers(answers)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._upstream.place(answers))
            mix = self._upstream.mix(self._models.mix(body.model, body.adapters))
            async with until(asker.deadline, self._monotonic):
                name = await stack.enter_async_context(mix)
            # The server behind knows all names of the base model.
            renamed = body.adapters is not None or name not in self._models.names
            if renamed:
                content = _with_model(content, name)
            request = self._upstream.client.build_request("POST", path, content=content, headers=_JSON)
            async with until(asker.deadline, self._monotonic):
                answer = await self._upstream.send(request)
            stack.push_async_callback(answer.aclose)
            kind = answer.headers.get("content-type", "")
            if answer.status_code == 200 and kind.startswith("text/event-stream"):
                events = self._events(answer, asked if renamed else None, asker, stack.pop_all())
                return await sse.EventStream.begin(sse.kept_alive(events))
            async with until(asker.deadline, self._monotonic):
                whole = await _whole(answer)
            if renamed and answer.status_code == 200:
                whole = json.dumps({**json.loads(whole), "model": asked}).encode()
            headers = {"Content-Type": kind}
            if "retry-after" in answer.headers:
                headers["Retry-After"] = answer.headers["retry-after"]
            return Response(whole, status_code=answer.status_code, headers=headers)

    async def _events(
        self, answer: httpx.Response, model: str | None, asker: Asker, held: contextlib.AsyncExitStack
    ) -> AsyncGenerator[bytes, None]:
        """The events as they come, with `model` in place of the server's own if it is given; ends with `held`."""
        async with held:
            parts = answer.aiter_raw() if model is None else _named(answer, model)
            while True:
                try:
                    async with until(asker.deadline, self._monotonic):
                        part = await anext(parts, None)
                except RequestError as error:
                    yield sse.event(error_body(error))
                    yield sse.DONE
                    return
                except httpx.HTTPError:
                    yield sse.event(error_body(EngineUnavailable("The answer broke off; try again.")))
                    yield sse.DONE
                    return
                if part is None:
                    return
                yield part


def read(content: bytes) -> Forwarded:
    """The fields of a body that are read here; InvalidRequest when it has none such."""
    try:
        return Forwarded.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{place or 'The body'}: {first['msg']}", param=place or None) from error


def _prompts(body: Forwarded) -> int:
    """How many prompts a body holds: a list of numbers is one."""
    prompt = body.prompt
    several = isinstance(prompt, list) and any(isinstance(each, str | list) for each in prompt)
    return len(prompt) if several else 1


def _with_model(content: bytes, model: str) -> bytes:
    fields: dict[str, Any] = json.loads(content)
    fields.pop("adapters", None)
    return json.dumps({**fields, "model": model}).encode()


async def _whole(answer: httpx.Response) -> bytes:
    try:
        return await answer.aread()
    except httpx.HTTPError as error:
        raise EngineUnavailable("The answer broke off; try again.") from error


async def _named(answer: httpx.Response, model: str) -> AsyncGenerator[bytes, None]:
    async for line in lines(answer):
        if line.startswith("data: {"):
            said = json.loads(line.removeprefix("data: "))
            if "model" in said:
                line = sse.event({**said, "model": model}).decode().removesuffix("\n\n")
        yield f"{line}\n".encode()
