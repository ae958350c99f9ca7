"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) as OpenAI's API uses them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Self

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

KEEP_ALIVE = b": keep-alive\n\n"  # a comment: clients skip it, proxies see that the connection lives
KEEP_ALIVE_EVERY = 15.0  # seconds in which nothing else comes
DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """One event with a JSON object."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def kept_alive(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """`parts` of a stream as they come, and a comment between two events when none comes for `KEEP_ALIVE_EVERY`."""
    between = True
    coming: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.create_task(_next(parts))
            await asyncio.wait({coming}, timeout=KEEP_ALIVE_EVERY)
            if coming.done():
                part, coming = coming.result(), None
                if part is None:
                    return
                between = part.endswith(b"\n\n")
                yield part
            elif between:
                yield KEEP_ALIVE
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
        await parts.aclose()


async def _next(parts: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(parts, None)


class EventStream(StreamingResponse):
    """An answer in events. It closes its source whatever becomes of the client, even if nothing was ever sent."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self._rest = rest

        async def whole() -> AsyncIterator[bytes]:
            yield first
            async for part in rest:
                yield part

        super().__init__(whole(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    @classmethod
    async def begin(cls, events: AsyncGenerator[bytes, None]) -> Self:
        """Wait for the first event, so that what fails before it is an answer of its own kind."""
        try:
            return cls(await anext(events, b""), events)
        except BaseException:
            await events.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rest.aclose()
