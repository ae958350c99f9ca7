"""Lines of an HTTP answer that comes in parts."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx


async def lines(answer: httpx.Response) -> AsyncGenerator[str, None]:
    """The lines of a body as they come, without their ends: line feeds, alone or after a carriage return.

    httpx's own lines end at whatever `str.splitlines` takes for an end, such as U+2028, which JSON holds as it is.
    """
    rest = b""
    async for part in answer.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode()
    if rest:
        yield rest.decode()
