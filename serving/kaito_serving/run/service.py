"""One model in one process: loading, then answering; what the HTTP application asks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from kaito_serving.engine.base import State
from kaito_serving.errors import EngineUnavailable, StartupError
from kaito_serving.http.app import Surfaces
from kaito_serving.http.contract import Progress
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.run.startup import Startup

_LOG = logging.getLogger(__name__)


class ModelService:
    """`load` makes the engine and its surfaces; it may take minutes, say meanwhile how far it is (`step`), and raise
    StartupError.

    `report` hears how far the start is.
    """

    def __init__(
        self,
        *,
        load: Callable[[ServingMetrics], Surfaces],
        metrics: ServingMetrics,
        monotonic: Callable[[], float],
        report: Callable[[Startup], object] = lambda _: None,
    ) -> None:
        self._load = load
        self._monotonic = monotonic
        self._report = report
        self.metrics = metrics
        self._startup = Startup()
        self._loaded: Surfaces | None = None  # what is to be stopped, also when it never answered
        self._surfaces: Surfaces | None = None
        self._loading: asyncio.Task[None] | None = None

    def step(self, name: str, progress: float | None = None) -> None:
        """Tell what is done at the moment, and which part of it is done, 0 to 1."""
        self._say(replace(self._startup, step=name, progress=progress))

    def begin(self) -> None:
        """Start loading; returns at once, so that health checks are answered meanwhile."""
        self._loading = asyncio.get_running_loop().create_task(self._start())

    async def stop(self) -> None:
        """Fail what runs and free the model."""
        if self._loading is not None:
            self._loading.cancel()
        if self._loaded is not None:
            await self._loaded.engine.stop()

    def unready(self) -> str | None:
        """Why the model does not answer at the moment, in the words of KAITO's /health; None when it does."""
        if self._surfaces is None:
            return "Model not initialized"
        return None if self._surfaces.engine.state() is State.READY else "Pipeline not initialized"

    def progress(self) -> Progress:
        """How far the start is; once it is over, the engine's state."""
        if self._startup.phase == "failed":
            return Progress(state=State.FAILED, message=self._startup.reason)
        if self._surfaces is None:
            return Progress(state=State.LOADING, progress=self._startup.progress, message=self._startup.step)
        return Progress(state=self._surfaces.engine.state())

    def check(self) -> None:
        """Raise when only a new process can help."""
        if self._startup.phase == "failed":
            raise EngineUnavailable(self._startup.reason)
        if self._surfaces is None:
            return
        self.metrics.refresh()
        try:
            self._surfaces.engine.check()
        except Exception as error:
            _LOG.error("The engine failed, so that this process ends: %s", error)
            self._fail(str(error), final=False)
            raise

    def surfaces(self) -> Surfaces:
        """What answers; EngineUnavailable while the model loads."""
        if self._surfaces is None:
            raise EngineUnavailable("Model not initialized")
        return self._surfaces

    async def _start(self) -> None:
        began = self._monotonic()
        self._say(Startup())
        try:
            loaded = self._loaded = await _in_a_thread(partial(self._load, self.metrics))
            await loaded.engine.start()
        except StartupError as error:
            self._fail(str(error), final=True)
            return
        except Exception as error:
            _LOG.exception("The model could not be loaded")
            self._fail(f"The model could not be loaded: {type(error).__name__}: {error}", final=False)
            return
        self._surfaces = loaded
        self.metrics.model_load_seconds.set(self._monotonic() - began)
        self.metrics.watch(loaded.engine)
        self._say(Startup("ready"))

    def _fail(self, reason: str, *, final: bool) -> None:
        self._say(Startup("failed", reason=reason, final=final))

    def _say(self, startup: Startup) -> None:
        self._startup = startup
        self._report(startup)


async def _in_a_thread(work: Callable[[], Surfaces]) -> Surfaces:
    """What `work` gives, from a thread that nobody waits for when the process ends in the middle."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Surfaces] = loop.create_future()

    def tell(outcome: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if done.done() else outcome())

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            tell(partial(done.set_exception, error))
        else:
            tell(partial(done.set_result, result))

    threading.Thread(target=run, name="load", daemon=True).start()
    return await done
