"""The work queue: keys, each at most once in line and never in two hands at once.

The semantics are those of client-go's workqueue: a key that is added while a worker holds it comes back when the worker
is done.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque

from kaito_hooks.runtime.backoff import Backoff
from kaito_hooks.runtime.client.resource import Key
from kaito_hooks.runtime.clock import Clock
from kaito_hooks.runtime.metrics import Metrics


class WorkQueue:
    """A de-duplicating queue with delays and per-key back-off. Thread-safe; all times are the clock's monotonic
    seconds.
    """

    def __init__(self, name: str, *, clock: Clock, backoff: Backoff, metrics: Metrics | None = None) -> None:
        self.name = name
        self._clock = clock
        self._backoff = backoff
        self._condition = threading.Condition()
        self._ready: deque[Key] = deque()
        self._dirty: dict[Key, float] = {}  # to be worked on -> since when
        self._processing: dict[Key, float] = {}  # in a worker's hands -> since when
        self._due: dict[Key, float] = {}
        self._timers: list[tuple[float, int, Key]] = []
        self._sequence = itertools.count()
        self._failures: dict[Key, int] = {}
        self._not_before: dict[Key, float] = {}
        self._closed = False
        self._metrics: Metrics | None = None
        if metrics is not None:
            self.instrument(metrics)

    def instrument(self, metrics: Metrics) -> None:
        """Publishes this queue's series."""
        self._metrics = metrics
        labels = (self.name, self.name)
        metrics.queue_depth.labels(*labels).set_function(lambda: float(len(self)))
        metrics.unfinished_work.labels(*labels).set_function(lambda: sum(self._running()))
        metrics.longest_running.labels(*labels).set_function(lambda: self.longest_running())
        self._adds = metrics.queue_adds.labels(*labels)
        self._retries = metrics.queue_retries.labels(*labels)
        self._waited = metrics.queue_duration.labels(*labels)
        self._worked = metrics.work_duration.labels(*labels)

    def __len__(self) -> int:
        """Keys that wait for a worker; delayed ones do not count."""
        return len(self._ready)

    def add(self, key: Key, after: float = 0.0) -> None:
        """Puts the key in line, ``after`` seconds from now. Of several delays the earliest holds."""
        with self._condition:
            if self._closed:
                return
            now = self._clock.monotonic()
            if after > 0:
                self._schedule(key, now + after)
            else:
                self._enqueue(key, now)

    def add_failed(self, key: Key, *, retry_after: float | None = None, at_most: float | None = None) -> float:
        """Puts the key in line after its back-off, ``at_most`` that many seconds, and returns the delay.

        A server's ``retry_after`` is a promise: until then the key is not worked on, whatever else adds it.
        """
        with self._condition:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = self._backoff.delay(failures, at_least=retry_after, at_most=at_most)
            if self._closed:
                return delay
            due = self._clock.monotonic() + delay
            if retry_after is not None:
                self._not_before[key] = due
                self._due.pop(key, None)
            self._schedule(key, due)
            if self._metrics is not None:
                self._retries.inc()
            return delay

    def forget(self, key: Key) -> None:
        """The key succeeded: its next failure starts from the shortest back-off."""
        with self._condition:
            self._failures.pop(key, None)

    def get(self, timeout: float | None = None) -> Key | None:
        """The next key, now in the caller's hands until ``done``; None when the queue is closed or ``timeout``
        (seconds) is over.
        """
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        with self._condition:
            while not self._closed:
                now = self._clock.monotonic()
                self._ripen(now)
                if self._ready:
                    key = self._ready.popleft()
                    since = self._dirty.pop(key)
                    self._processing[key] = now
                    if self._metrics is not None:
                        self._waited.observe(max(0.0, now - since))
                    return key
                waits = [
                    due - now for due in (self._timers[0][0] if self._timers else None, deadline) if due is not None
                ]
                if deadline is not None and now >= deadline:
                    return None
                self._condition.wait(max(0.0, min(waits)) if waits else None)
            return None

    def done(self, key: Key) -> None:
        """The caller lets go of the key; if it was added meanwhile, it is in line again."""
        with self._condition:
            now = self._clock.monotonic()
            since = self._processing.pop(key)
            if self._metrics is not None:
                self._worked.observe(max(0.0, now - since))
            if key in self._dirty:
                added = self._dirty.pop(key)
                self._enqueue(key, now, since=added, count=False)

    def close(self) -> None:
        """Wakes all workers; nothing is handed out any more."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def longest_running(self) -> float:
        """Seconds for which the slowest worker has held its key; 0.0 when none holds one."""
        return max(self._running(), default=0.0)

    def _running(self) -> list[float]:
        with self._condition:
            now = self._clock.monotonic()
            return [now - since for since in self._processing.values()]

    def _enqueue(self, key: Key, now: float, *, since: float | None = None, count: bool = True) -> None:
        not_before = self._not_before.get(key)
        if not_before is not None:
            if now < not_before:
                self._schedule(key, not_before)
                return
            del self._not_before[key]
        if key in self._dirty:
            return
        self._dirty[key] = now if since is None else since
        if count and self._metrics is not None:
            self._adds.inc()
        if key not in self._processing:
            self._ready.append(key)
            self._condition.notify()

    def _schedule(self, key: Key, due: float) -> None:
        due = max(due, self._not_before.get(key, due))
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._timers, (due, next(self._sequence), key))
        self._condition.notify()

    def _ripen(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            due, _, key = heapq.heappop(self._timers)
            if self._due.get(key) == due:
                del self._due[key]
                self._enqueue(key, now)
