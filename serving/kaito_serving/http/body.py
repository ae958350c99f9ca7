"""How large a request may be, and how long it may take to come."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kaito_serving.http.refusals import refusal


class BodyLimit:
    """Reads a request's body before the application does.

    Answers 413 once it is larger than `largest` bytes, and 408 when it has not come within so many seconds.
    """

    def __init__(self, app: ASGIApp, *, largest: int, within: float) -> None:
        self._app = app
        self._largest = largest
        self._within = within

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._within):
                body = await self._read(receive)
        except TimeoutError:
            await refusal(scope["path"], 408, f"The body did not come within {self._within:g} seconds.")(
                scope, receive, send
            )
            return
        if body is None:
            return
        if len(body) > self._largest:
            await refusal(scope["path"], 413, f"The body is larger than {self._largest} bytes.")(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or as much of it as shows that it is too large; None when the client has gone."""
        parts: list[bytes] = []
        size = 0
        more = True
        while more and size <= self._largest:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)
