"""The HTTP application: KAITO's endpoints over a `ModelService`. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from kaito_serving.engine.base import Engine
from kaito_serving.errors import AdapterError, EngineUnavailable, InvalidRequest
from kaito_serving.http import exposition, openapi, refusals
from kaito_serving.http.asking import Asking
from kaito_serving.http.body import BodyLimit
from kaito_serving.http.chat import Chat
from kaito_serving.http.contract import ChatAnswer, ChatRequest, Progress
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.http.openai.contract import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    LoadAdapterRequest,
    TokenizeRequest,
    UnloadAdapterRequest,
)
from kaito_serving.http.openai.endpoints import OpenAI
from kaito_serving.http.openai.models import Models
from kaito_serving.http.openai.passthrough import Forwarded, PassThrough, read
from kaito_serving.http.openai.tokens import Tokens
from kaito_serving.http.running import Asker

LARGEST_BODY = 1024 * 1024  # bytes
LONGEST_WAIT = 600.0  # seconds, of /health
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_LOOK_EVERY = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class Surfaces:
    """What answers for a model that is loaded."""

    engine: Engine
    chat: Chat
    models: Models
    tokens: Tokens
    openai: OpenAI | PassThrough


class Service(Protocol):
    """What the application asks: one model's process (`run.service`), or whoever speaks for several (`run.pod`)."""

    metrics: ServingMetrics

    def begin(self) -> None:
        """Start loading."""
        ...

    async def stop(self) -> None:
        """Free the model."""
        ...

    def unready(self) -> str | None:
        """Why the model does not answer, in the words of KAITO's /health; None when it does."""
        ...

    def progress(self) -> Progress:
        """How far the start is, or what became of it."""
        ...

    def surfaces(self) -> Surfaces:
        """What answers; EngineUnavailable while the model loads."""
        ...


def build(
    service: Service,
    *,
    api_keys: tuple[str, ...] = (),
    hardware: Callable[[], dict[str, Any]],
    request_timeout: float = 600.0,
    body_timeout: float = 30.0,
    runtime_adapters: Path | None = None,
    passing: bool = False,
    monotonic: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """The application. `hardware` gives the JSON of GET /metrics; with `api_keys`, questions need one as bearer token.

    An answer takes at most `request_timeout` seconds, sending a body at most `body_timeout`. `runtime_adapters` is the
    folder whose adapters clients may load and unload, None: they may not. `passing`: the surfaces will hand /v1 on.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        yield
        await service.stop()

    app = FastAPI(title="kaito-serving", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, largest=LARGEST_BODY, within=body_timeout)

    refusals.install(app)
    asking = Asking(api_keys=api_keys, timeout=request_timeout, metrics=service.metrics, monotonic=monotonic)
    _serve_state(app, service, hardware, passing=passing, monotonic=monotonic)
    _serve_answers(app, service, asking)
    (_serve_passing if passing else _serve_openai)(app, service, asking)
    if runtime_adapters is not None:
        _serve_adapters(app, service, asking, runtime_adapters)
    openapi.without_422(app)
    return app


def _serve_state(
    app: FastAPI,
    service: Service,
    hardware: Callable[[], dict[str, Any]],
    *,
    passing: bool,
    monotonic: Callable[[], float],
) -> None:
    """What anybody may ask: health, progress and metrics."""

    @app.get("/")
    async def root() -> dict[str, str]:
        return {"message": "Server is running"}

    unhealthy = openapi.kaito(but=(400, 401, 404, 408, 413, 429, 503))

    @app.get("/healthz", responses=unhealthy)
    @app.get("/health", responses=unhealthy)
    async def health(wait: float = 0) -> dict[str, str]:
        """Whether the model answers; within `wait` seconds, ten minutes at most, if it does not yet.

        So a probe need not fail again and again while a model loads: the kubelet reports each failure as a Warning.
        """
        end = monotonic() + min(wait, LONGEST_WAIT)
        while (reason := service.unready()) is not None and monotonic() < end:
            await asyncio.sleep(_LOOK_EVERY)
        if reason is not None:
            raise HTTPException(status_code=500, detail=reason)
        return {"status": "Healthy"}

    @app.get("/progress")
    async def progress() -> Progress:
        return service.progress()

    @app.get("/metrics/prometheus", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        text = await asyncio.to_thread(service.metrics.text)
        if passing:
            text = exposition.only(text.decode(), "kaito_serving_").encode() + await _upstream_metrics(service)
        return PlainTextResponse(text, media_type=_PROMETHEUS)

    @app.get("/metrics", responses={**unhealthy, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        if "text/plain" in accept or "openmetrics" in accept:
            return await prometheus()
        try:
            return JSONResponse(await asyncio.to_thread(hardware))
        except (OSError, RuntimeError) as error:
            raise HTTPException(status_code=500, detail=str(error)) from error


async def _upstream_metrics(service: Service) -> bytes:
    """vLLM's own series; nothing while it loads."""
    try:
        surface = service.surfaces().openai
    except EngineUnavailable:
        return b""
    assert isinstance(surface, PassThrough)
    return exposition.only(await surface.metrics(), "vllm:").encode()


def _serve_answers(app: FastAPI, service: Service, asking: Asking) -> None:
    """The model's answers, to those who have a key."""
    guarded = [Depends(asking.authorize)]

    @app.post("/chat", response_model=ChatAnswer, dependencies=guarded, responses=openapi.kaito())
    async def chat(body: ChatRequest, request: Request) -> Response:
        model = service.surfaces()

        async def work(asker: Asker) -> Response:
            return JSONResponse({"Result": await model.chat.answer(body, asker)})

        return await asking.answered(request, work, model.models.named(None, body.adapters))

    @app.get("/v1/models", dependencies=guarded, responses=openapi.openai())
    async def models() -> dict[str, Any]:
        return service.surfaces().models.list()

    @app.get("/v1/models/{name:path}", dependencies=guarded, responses=openapi.openai())
    async def model(name: str) -> dict[str, Any]:
        return service.surfaces().models.find(name)

    @app.post("/tokenize", dependencies=guarded, responses=openapi.openai())
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        return await service.surfaces().tokens.tokenize(body)

    @app.post("/detokenize", dependencies=guarded, responses=openapi.openai())
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        return service.surfaces().tokens.detokenize(body)


def _serve_openai(app: FastAPI, service: Service, asking: Asking) -> None:
    """OpenAI's API, answered here."""
    guarded = [Depends(asking.authorize)]

    @app.post("/v1/chat/completions", dependencies=guarded, responses=openapi.openai(stream=True))
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        model = service.surfaces()
        work = partial(_own(model).chat_completion, body)
        return await asking.answered(request, work, model.models.named(body.model, body.adapters))

    @app.post("/v1/completions", dependencies=guarded, responses=openapi.openai(stream=True))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        model = service.surfaces()
        work = partial(_own(model).completion, body)
        return await asking.answered(request, work, model.models.named(body.model, body.adapters))


def _own(model: Surfaces) -> OpenAI:
    assert isinstance(model.openai, OpenAI)
    return model.openai


def _serve_passing(app: FastAPI, service: Service, asking: Asking) -> None:
    """OpenAI's API, answered by the server behind the engine."""
    document = {"requestBody": {"content": {"application/json": {"schema": Forwarded.model_json_schema()}}}}

    async def forward(request: Request) -> Response:
        model = service.surfaces()
        content = await request.body()
        body = read(content)

        assert isinstance(model.openai, PassThrough)
        work = partial(model.openai.forward, request.url.path, body, content)
        return await asking.answered(request, work, model.models.named(body.model, body.adapters))

    for path in ("/v1/chat/completions", "/v1/completions"):
        app.post(
            path,
            dependencies=[Depends(asking.authorize)],
            responses=openapi.openai(stream=True),
            openapi_extra=document,
        )(forward)


def _serve_adapters(app: FastAPI, service: Service, asking: Asking, directory: Path) -> None:
    """Adapters of `directory` that come and go while the server runs, as in vLLM."""
    guarded = [Depends(asking.authorize)]

    @app.post("/v1/load_lora_adapter", dependencies=guarded, responses=openapi.openai())
    async def load_lora_adapter(body: LoadAdapterRequest) -> PlainTextResponse:
        try:
            path = (directory / body.lora_path).resolve(strict=True)
        except (OSError, ValueError):
            raise InvalidRequest(f"There is no folder {body.lora_path!r}.", param="lora_path") from None
        if not path.is_relative_to(directory.resolve()) or not path.is_dir():
            raise InvalidRequest(f"lora_path must be a folder below {directory}.", param="lora_path")
        try:
            await service.surfaces().engine.load_adapter(body.lora_name, path)
        except AdapterError as error:
            raise InvalidRequest(str(error), param="lora_name") from error
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", dependencies=guarded, responses=openapi.openai())
    async def unload_lora_adapter(body: UnloadAdapterRequest) -> PlainTextResponse:
        await service.surfaces().engine.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
