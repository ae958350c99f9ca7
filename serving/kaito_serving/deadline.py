"""An end to waiting at a request's deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from kaito_serving.errors import RequestTimeout


@contextlib.asynccontextmanager
async def until(deadline: float | None, monotonic: Callable[[], float]) -> AsyncGenerator[None, None]:
    """RequestTimeout when what is done within takes longer; `deadline` is in seconds of `monotonic`, None: never."""
    try:
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - monotonic())):
            yield
    except TimeoutError as error:
        raise RequestTimeout("The answer took longer than the server allows; ask for fewer tokens.") from error
