"""The HTTP application: KAITO's endpoints over a `ModelService`. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kaito_serving.errors import RequestError, RequestTimeout, TooManyRequests
from kaito_serving.http.contract import ChatAnswer, ChatRequest
from kaito_serving.http.metrics import ServingMetrics

_LOG = logging.getLogger(__name__)

LARGEST_BODY = 1024 * 1024  # bytes
_CLIENT_GONE = 499
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Service(Protocol):
    """What the application asks; `ModelService` is the real one."""

    metrics: ServingMetrics

    def begin(self) -> None:
        """Start loading."""
        ...

    async def stop(self) -> None:
        """Free the model."""
        ...

    def unready(self) -> str | None:
        """Why the model does not answer."""
        ...

    def known_adapters(self, names: dict[str, float] | None) -> list[str]:
        """Those that are loaded."""
        ...

    async def chat(self, request: ChatRequest) -> str:
        """The field Result."""
        ...


def build(
    service: Service,
    *,
    api_keys: tuple[str, ...] = (),
    hardware: Callable[[], dict[str, Any]],
    monotonic: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """The application. `hardware` gives the JSON of GET /metrics; with `api_keys`, /chat needs one as bearer token."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        yield
        await service.stop()

    app = FastAPI(title="kaito-serving", lifespan=lifespan)
    app.add_middleware(BodyLimit, largest=LARGEST_BODY)

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        headers = {"Retry-After": str(error.retry_after)} if isinstance(error, TooManyRequests) else None
        return JSONResponse({"detail": str(error)}, status_code=error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def explain(_: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI would repeat the input: a prompt does not belong into logs of clients, and NaN is no JSON.
        reasons = [{key: fault[key] for key in ("type", "loc", "msg")} for fault in error.errors()]
        return JSONResponse({"detail": reasons}, status_code=422)

    @app.get("/")
    async def home() -> dict[str, str]:
        return {"message": "Server is running"}

    @app.get("/healthz")
    @app.get("/health")
    async def health() -> dict[str, str]:
        reason = service.unready()
        if reason is not None:
            raise HTTPException(status_code=500, detail=reason)
        return {"status": "Healthy"}

    @app.get("/metrics/prometheus")
    async def prometheus() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type=_PROMETHEUS)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        if "text/plain" in accept or "openmetrics" in accept:
            return await prometheus()
        try:
            return JSONResponse(await asyncio.to_thread(hardware))
        except (OSError, RuntimeError) as error:
            raise HTTPException(status_code=500, detail=str(error)) from error

    @app.post("/chat", response_model=ChatAnswer)
    async def chat(body: ChatRequest, request: Request) -> Response:
        if api_keys and not _authorized(request, api_keys):
            headers = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(status_code=401, detail="A valid API key is required.", headers=headers)
        began = monotonic()
        code = 500
        try:
            result = await _while_connected(request, service.chat(body))
            code = 200 if result is not None else _CLIENT_GONE
            return Response(status_code=code) if result is None else JSONResponse({"Result": result})
        except RequestError as error:
            code = error.status
            if code != 400:
                service.metrics.rejected(_reason(error))
            raise
        finally:
            used = service.known_adapters(body.adapters)
            service.metrics.answered(endpoint="/chat", code=code, seconds=monotonic() - began, adapters=used)

    return app


class BodyLimit:
    """Reads a request's body before the application does, and answers 413 once it is larger than `largest` bytes."""

    def __init__(self, app: ASGIApp, *, largest: int) -> None:
        self._app = app
        self._largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            part = message.get("body", b"")
            size += len(part)
            if size > self._largest:
                refusal = JSONResponse({"detail": f"The body is larger than {self._largest} bytes."}, status_code=413)
                await refusal(scope, receive, send)
                return
            parts.append(part)
            more = message.get("more_body", False)
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)


async def _while_connected(request: Request, work: Coroutine[Any, Any, str]) -> str | None:
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


def _reason(error: RequestError) -> str:
    if isinstance(error, TooManyRequests):
        return "queue_full"
    return "timeout" if isinstance(error, RequestTimeout) else "unavailable"
