"""All replicas of this server as one: whether they answer, how far they are, their metrics."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from kaito_serving.engine.base import State
from kaito_serving.errors import EngineUnavailable
from kaito_serving.http.app import Surfaces
from kaito_serving.http.contract import Progress
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.run.startup import Told

_FIRST_STEP = "starting the model's process"
_LAST_STEP = "waiting for the first answer"


def pod_progress(told: Sequence[Told], *, wanted: int, routed: int, was_ready: bool) -> Progress:
    """How `wanted` replicas are together, by what they told, in the order in which they began; requests go to `routed`.

    The first start is over when all of them are ready. Afterwards (`was_ready`) one is enough: requests go to those
    that answer while Ray Serve replaces the others.
    """
    alive = [each.startup for each in told if each.alive]
    loaded = sum(startup.phase == "ready" for startup in alive)
    ready = min(loaded, routed)
    loading = [startup for startup in alive if startup.phase == "loading"]
    trouble = _trouble(told)
    if ready >= (1 if was_ready else wanted):
        few = f"{ready} of {wanted} replicas answer. {trouble}".strip() if ready < wanted else ""
        return Progress(state=State.READY, message=few)
    if trouble and not loading and not loaded:
        return Progress(state=State.FAILED if _failed(told[-1]) else State.RESTARTING, message=trouble)
    slowest = min(loading, key=lambda startup: startup.progress or 0.0, default=None)
    waiting = _FIRST_STEP if loaded < wanted else _LAST_STEP
    step = slowest.step or _FIRST_STEP if slowest is not None else waiting
    known = [startup.progress for startup in loading if startup.progress is not None]
    return Progress(
        state=State.RESTARTING if was_ready else State.LOADING,
        progress=(sum(known) + loaded) / wanted if known else None,
        message=f"{trouble} Starting again: {step}" if trouble else step,
    )


def _trouble(told: Sequence[Told]) -> str:
    """What became of the last process that does not answer any more."""
    for each in reversed(told):
        if _failed(each):
            return each.startup.reason
        if not each.alive:
            return "A process of the model died."
    return ""


def _failed(told: Told) -> bool:
    return told.startup.phase == "failed"


class Pod:
    """What the HTTP application asks about `replicas` replicas. It answers no questions itself: replicas do.

    The thread that supervises calls `look` and `drain`; the application's thread asks.
    """

    def __init__(self, *, replicas: int, metrics: ServingMetrics) -> None:
        self.metrics = metrics
        self.replicas = replicas
        self._lock = threading.Lock()
        self._was_ready = False
        self._draining = False
        self._progress = Progress(state=State.LOADING, message="starting Ray Serve")

    @property
    def was_ready(self) -> bool:
        """Whether all replicas have been ready at the same time."""
        return self._was_ready

    def look(self, told: Sequence[Told], *, routed: int) -> Progress:
        """Take in what the replicas told, and to how many of them requests go."""
        progress = pod_progress(told, wanted=self.replicas, routed=routed, was_ready=self._was_ready)
        with self._lock:
            self._was_ready = self._was_ready or progress.state is State.READY
            self._progress = progress
        return progress

    def drain(self) -> None:
        """The server ends: it answers a while longer."""
        with self._lock:
            self._draining = True

    def begin(self) -> None:
        """Nothing: the replicas load by themselves."""

    async def stop(self) -> None:
        """Nothing: Ray Serve ends the replicas."""

    def unready(self) -> str | None:
        """Why no replica answers, in the words of KAITO's /health; None when they do."""
        if self._progress.state is State.READY:
            return None
        return "Pipeline not initialized" if self._was_ready else "Model not initialized"

    def progress(self) -> Progress:
        """How the replicas are together."""
        with self._lock:
            if self._draining:
                return Progress(state=State.DRAINING, message="the server is stopping")
            return self._progress

    def surfaces(self) -> Surfaces:
        """Always EngineUnavailable: whoever asks here has found no replica that answers."""
        now = self.progress()
        if now.state is State.DRAINING:
            raise EngineUnavailable("The server is stopping.")
        part = "" if now.progress is None else f", {100 * now.progress:.0f} %"
        raise EngineUnavailable(f"The model does not answer yet: {now.message}{part}." if now.message else "Try again.")
