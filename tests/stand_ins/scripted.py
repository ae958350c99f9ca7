"""A vLLM that answers what a test writes, when the test lets it: for timings that no real one can be made to have."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response


class Scripted:
    """`known` are the adapters that it has loaded, `bodies` what it was asked to answer.

    It loads while `may_load` is set, and answers with `answer` of a request's body.
    """

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.loads = 0  # begun
        self.bodies: list[dict[str, Any]] = []
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.refusal: str | None = None  # of adapters
        self.silent: asyncio.Event | None = None  # set when a client leaves that got no answer at all
        self.answer: Callable[[dict[str, Any]], Response] = lambda body: JSONResponse({"model": body.get("model")})

    def application(self) -> FastAPI:
        """Its endpoints."""
        app = FastAPI()

        @app.post("/v1/load_lora_adapter")
        async def load(request: Request) -> Response:
            body = await request.json()
            self.loads += 1
            await self.may_load.wait()
            if self.refusal is not None:
                return JSONResponse({"error": {"message": self.refusal}}, status_code=500)
            self.known[body["lora_name"]] = body["lora_path"]
            return Response("Success")

        @app.post("/v1/unload_lora_adapter")
        async def unload(request: Request) -> Response:
            del self.known[(await request.json())["lora_name"]]
            return Response("Success")

        @app.post("/v1/completions")
        @app.post("/v1/chat/completions")
        async def answer(request: Request) -> Response:
            self.bodies.append(json.loads(await request.body()))
            if self.silent is not None:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                self.silent.set()
            return self.answer(self.bodies[-1])

        return app


class Alive:
    """The process of a vLLM that runs."""

    pid = 0

    def failure(self) -> None:
        """It has not ended."""

    def stop(self) -> None:
        """Nothing runs."""


@contextlib.asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """`app` at the address that this gives."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
