"""Who asks: keys, a name for a fair share, and an end to the work when the client goes away."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import HTTPException, Request, Response

from kaito_serving.errors import RequestError
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.http.refusals import reason_of, status_of
from kaito_serving.http.running import Asker

_CLIENT_GONE = 499


class Asking:
    """`api_keys` empty: everybody may ask. `timeout` is in seconds of the clock `monotonic`."""

    def __init__(
        self, *, api_keys: tuple[str, ...], timeout: float, metrics: ServingMetrics, monotonic: Callable[[], float]
    ) -> None:
        self._api_keys = api_keys
        self._timeout = timeout
        self._metrics = metrics
        self._monotonic = monotonic

    async def authorize(self, request: Request) -> None:
        """A dependency of whatever needs a key."""
        if self._api_keys and not _authorized(request, self._api_keys):
            headers = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(status_code=401, detail="A valid API key is required.", headers=headers)

    async def answered(
        self,
        request: Request,
        work: Callable[[Asker], Coroutine[Any, Any, Response]],
        adapters: Sequence[str],
    ) -> Response:
        """The answer of `work`, which hears who asks, and until when.

        It is cancelled when the client goes away, and counted whatever becomes of it, for `adapters` too, which
        clients must not be able to invent.
        """
        began = self._monotonic()
        asker = Asker(client=_client(request), deadline=began + self._timeout)
        path = request.url.path
        code = 500
        try:
            response = await _while_connected(request, work(asker))
            code = _CLIENT_GONE if response is None else response.status_code
            return response or Response(status_code=code)
        except RequestError as error:
            code = status_of(path, error)
            if code not in (400, 404):
                self._metrics.rejected(reason_of(error))
            raise
        finally:
            self._metrics.answered(endpoint=path, code=code, seconds=self._monotonic() - began, adapters=adapters)


async def _while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response | None:
    """The result of `work`, or None when the client went away first; `work` is cancelled then."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _authorized(request: Request, keys: tuple[str, ...]) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]  # all of them: equal time for any key
    return scheme.lower() == "bearer" and any(matches)


def _client(request: Request) -> str:
    """Who asks, for a fair share: the API key's digest, else the address."""
    key = request.headers.get("authorization")
    if key:
        return hashlib.sha256(key.encode()).hexdigest()
    return request.client.host if request.client is not None else ""
