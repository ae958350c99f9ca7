"""Several requests of one client, generated at the same time, with their chunks in one queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kaito_serving.engine.base import Chunk, Engine, Request


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and until when: `client` for a fair share, `deadline` in seconds of the engine's monotonic clock."""

    client: str = ""
    deadline: float | None = None


class Running:
    """An async context: within it the requests run, after it they have ended or are cancelled."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._requests = requests
        self._queue: asyncio.Queue[tuple[int, Chunk | BaseException]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._unfinished = len(requests)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._pump(at, request)) for at, request in enumerate(self._requests)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def finished(self) -> bool:
        """Whether every request has given its last chunk."""
        return self._unfinished == 0

    async def next(self, within: float | None = None) -> tuple[int, Chunk] | None:
        """The next chunk, with the number of its request; None when there is none within so many seconds.

        Raises the RequestError of the first request that fails.
        """
        try:
            async with asyncio.timeout(within):
                at, output = await self._queue.get()
        except TimeoutError:
            return None
        if isinstance(output, BaseException):
            raise output
        if output.finish_reason is not None:
            self._unfinished -= 1
        return at, output

    async def _pump(self, at: int, request: Request) -> None:
        chunks = self._engine.submit(request)
        try:
            async for chunk in chunks:
                self._queue.put_nowait((at, chunk))
        except Exception as error:  # carried to whoever waits for the chunks; a task's own would be lost
            self._queue.put_nowait((at, error))
        finally:
            await chunks.aclose()
