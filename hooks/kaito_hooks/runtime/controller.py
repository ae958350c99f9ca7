"""A controller: keys in, reconciles out."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kaito_hooks.runtime.backoff import Backoff
from kaito_hooks.runtime.client.informer import Informer
from kaito_hooks.runtime.client.resource import Key, Obj
from kaito_hooks.runtime.clock import Clock, SystemClock
from kaito_hooks.runtime.errors import ApiError, Conflict, ConnectionFailed, LeadershipLost
from kaito_hooks.runtime.logs import log_fields
from kaito_hooks.runtime.metrics import Metrics
from kaito_hooks.runtime.queue import WorkQueue
from kaito_hooks.runtime.threads import SupervisedThread

logger = logging.getLogger(__name__)

_UNREACHABLE_PAUSE = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a reconcile asks for: to be called again after that many seconds, or (None) when something changes."""

    requeue_after: float | None = None


class Controller:
    """Calls ``reconcile(key)`` when something about the key may have changed, after failures, every ``resync`` seconds.

    A key is never in two workers' hands at once. A reconcile that raises comes back after an exponential back-off, and
    not before a server's Retry-After; a Conflict comes back without being logged as an error. ``stuck_after`` is how
    many seconds one reconcile may take before liveness fails.
    """

    def __init__(
        self,
        name: str,
        *,
        reconcile: Callable[[Key], Result],
        workers: int = 2,
        resync: float | None = 600.0,
        backoff: Backoff | None = None,
        stuck_after: float = 900.0,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self._reconcile = reconcile
        self._workers = workers
        self._resync = resync
        self._stuck_after = stuck_after
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._queue = WorkQueue(name, clock=self._clock, backoff=backoff or Backoff())
        self._sources: list[tuple[Informer, Callable[[Obj], Iterable[Key]]]] = []
        self._threads: list[SupervisedThread] = []
        self._stop = threading.Event()
        self._metrics: Metrics | None = None
        if metrics is not None:
            self.instrument(metrics)

    @property
    def informers(self) -> list[Informer]:
        """The informers that this controller watches."""
        return [informer for informer, _ in self._sources]

    @property
    def backlog(self) -> int:
        """Keys that wait for a worker."""
        return len(self._queue)

    def watch(self, informer: Informer, to_keys: Callable[[Obj], Iterable[Key]] | None = None) -> None:
        """Every change of an object enqueues the keys to which ``to_keys`` maps its old and its new state.

        The default is the object's own key.
        """
        mapping = to_keys or _own_key
        self._sources.append((informer, mapping))

        def changed(old: Obj | None, new: Obj | None) -> None:
            keys: dict[Key, None] = {}
            for state in (old, new):
                if state is not None:
                    keys.update(dict.fromkeys(self._keys(mapping, state)))
            for key in keys:
                self._queue.add(key)

        informer.subscribe(changed)

    def enqueue(self, key: Key, after: float = 0.0) -> None:
        """Asks for a reconcile of the key, ``after`` seconds from now."""
        self._queue.add(key, after)

    def instrument(self, metrics: Metrics) -> None:
        """Publishes this controller's series, unless it publishes some already; before ``start``."""
        if self._metrics is not None:
            return
        self._metrics = metrics
        self._queue.instrument(metrics)
        metrics.workers.labels(self.name).set(self._workers)
        metrics.active_workers.labels(self.name).set(0)
        metrics.reconcile_errors.labels(self.name)
        metrics.reconcile_panics.labels(self.name)
        for result in ("success", "requeue", "requeue_after", "error"):
            metrics.reconcile_total.labels(self.name, result)

    def start(self) -> None:
        """Starts the workers; the watched informers should be synced."""
        for number in range(self._workers):
            self._run(f"{self.name} worker {number}", self._work)
        if self._resync is not None:
            self._run(f"{self.name} resync", self._resync_forever)

    def stop(self) -> None:
        """Hands out no more keys; reconciles in progress go on."""
        self._stop.set()
        self._queue.close()

    def join(self, timeout: float) -> bool:
        """Waits for the reconciles in progress after ``stop``; whether all ended within ``timeout`` seconds."""
        deadline = self._clock.monotonic() + timeout
        return all(thread.join(max(0.0, deadline - self._clock.monotonic())) for thread in self._threads)

    def stuck(self) -> str | None:
        """Why this controller no longer works, or None."""
        longest = self._queue.longest_running()
        if longest > self._stuck_after:
            return f"a reconcile of {self.name} has been running for {longest:.0f} s"
        if not self._stop.is_set():
            for thread in self._threads:
                if not thread.alive:
                    return f"{thread.name} has no thread"
        return None

    def _run(self, name: str, body: Callable[[], None]) -> None:
        thread = SupervisedThread(name, body, stop=self._stop)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (key := self._queue.get()) is not None:
            try:
                with log_fields(controller=self.name, namespace=key.namespace, name=key.name):
                    self._process(key)
            finally:
                self._queue.done(key)

    def _process(self, key: Key) -> None:
        metrics = self._metrics
        began = self._clock.monotonic()
        if metrics is not None:
            metrics.active_workers.labels(self.name).inc()
        outcome = "error"
        try:
            outcome = self._attempt(key)
        finally:
            if metrics is not None:
                metrics.active_workers.labels(self.name).dec()
                metrics.reconcile_total.labels(self.name, outcome).inc()
                metrics.reconcile_time.labels(self.name).observe(self._clock.monotonic() - began)
                if outcome == "error":
                    metrics.reconcile_errors.labels(self.name).inc()

    def _attempt(self, key: Key) -> str:
        try:
            after = self._reconcile(key).requeue_after
        except Conflict as error:
            self._queue.add_failed(key)
            logger.debug("somebody else wrote first, trying again: %s", error)
            return "requeue"
        except LeadershipLost:
            self._queue.add_failed(key)
            return "requeue"
        except ApiError as error:
            # Nobody answering says nothing about the key: it should not wait for long once the server is back.
            longest = _UNREACHABLE_PAUSE if isinstance(error, ConnectionFailed) else None
            delay = self._queue.add_failed(key, retry_after=error.retry_after, at_most=longest)
            logger.error("reconcile failed, again in %.3g s: %s", delay, error, extra={"reason": error.reason})
            return "error"
        except Exception:
            delay = self._queue.add_failed(key)
            if self._metrics is not None:
                self._metrics.reconcile_panics.labels(self.name).inc()
            logger.exception("reconcile failed, again in %.3g s", delay)
            return "error"
        except BaseException:
            self._queue.add_failed(key)
            raise
        self._queue.forget(key)
        if after is None:
            return "success"
        self._queue.add(key, after)
        return "requeue_after"

    def _resync_forever(self) -> None:
        assert self._resync is not None
        while not self._stop.wait(self._resync * self._rng.uniform(0.9, 1.1)):
            for informer, mapping in self._sources:
                for obj in informer.list():
                    for key in self._keys(mapping, obj):
                        self._queue.add(key, self._rng.uniform(0.0, self._resync / 10))

    def _keys(self, mapping: Callable[[Obj], Iterable[Key]], obj: Obj) -> list[Key]:
        try:
            return list(mapping(obj))
        except Exception:
            logger.exception("controller %s cannot tell whose %s is", self.name, Key.of(obj))
            return []


def _own_key(obj: Obj) -> list[Key]:
    return [Key.of(obj)]
