"""One model in one process: loading in the background, then answering; what the HTTP application asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kaito_serving.engine.base import Engine
from kaito_serving.errors import EngineUnavailable, RequestTimeout, StartupError
from kaito_serving.http.chat import Chat
from kaito_serving.http.contract import ChatRequest
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.run.options import Options

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Startup:
    """How far the start is. `reason` is the sentence of a failure; `final`: starting again changes nothing."""

    phase: Literal["loading", "ready", "failed"] = "loading"
    reason: str = ""
    final: bool = False


class ModelService:
    """`load` makes the engine and the chat; it runs in a thread and may raise StartupError."""

    def __init__(
        self,
        options: Options,
        *,
        load: Callable[[Options, ServingMetrics], tuple[Engine, Chat]],
        metrics: ServingMetrics,
        monotonic: Callable[[], float],
    ) -> None:
        self._options = options
        self._load = load
        self._monotonic = monotonic
        self.metrics = metrics
        self.startup = Startup()
        self._engine: Engine | None = None
        self._chat: Chat | None = None
        self._loading: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start loading; returns at once, so that health checks are answered meanwhile."""
        self._loading = asyncio.get_running_loop().create_task(self._start())

    async def stop(self) -> None:
        """Fail what runs and free the model."""
        if self._loading is not None:
            self._loading.cancel()
        if self._engine is not None:
            await self._engine.stop()

    def unready(self) -> str | None:
        """Why the model does not answer at the moment, in the words of KAITO's /health; None when it does."""
        if self._chat is None or self._engine is None:
            return "Model not initialized"
        return None if self._engine.running else "Pipeline not initialized"

    def check(self) -> None:
        """Raise when only a new process can help."""
        if self._engine is not None:
            self._engine.check()

    def known_adapters(self, names: dict[str, float] | None) -> list[str]:
        """Those of `names` that are loaded."""
        return sorted(set(names or ()) & set(self._engine.adapters)) if self._engine is not None else []

    async def chat(self, request: ChatRequest) -> str:
        """The field Result; RequestError says why there is none."""
        if self._chat is None:
            raise EngineUnavailable("Model not initialized")
        try:
            async with asyncio.timeout(self._options.request_timeout_s):
                return await self._chat.answer(request)
        except TimeoutError:
            seconds = f"{self._options.request_timeout_s:g}"
            raise RequestTimeout(f"The answer took longer than {seconds} seconds; ask for fewer tokens.") from None

    async def _start(self) -> None:
        began = self._monotonic()
        try:
            engine, chat = await asyncio.to_thread(self._load, self._options, self.metrics)
            await engine.start()
        except StartupError as error:
            self.startup = Startup("failed", str(error), final=True)
            return
        except Exception as error:
            _LOG.exception("The model could not be loaded")
            self.startup = Startup("failed", f"The model could not be loaded: {type(error).__name__}: {error}")
            return
        self._engine, self._chat = engine, chat
        self.metrics.watch(engine)
        self.metrics.model_load_seconds.set(self._monotonic() - began)
        self.startup = Startup("ready")
