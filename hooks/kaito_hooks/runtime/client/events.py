"""Kubernetes Events, written by a thread of their own.

Equal events are counted on one object, many similar ones (same object and reason, different texts) are combined, and a
single object that keeps talking is slowed down: the limits are those of client-go's recorder. A recorder may gather
what goes well with an object within some seconds into one Event; what goes wrong is written at once.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kaito_hooks.runtime.client.client import Client
from kaito_hooks.runtime.client.resource import Obj, Resource
from kaito_hooks.runtime.clock import Clock, SystemClock, now_rfc3339
from kaito_hooks.runtime.errors import (
    ApiError,
    ConnectionFailed,
    InternalError,
    LeadershipLost,
    NotFound,
    ServerTimeout,
    ServiceUnavailable,
    TooManyRequests,
)
from kaito_hooks.runtime.metrics import Metrics
from kaito_hooks.runtime.threads import SupervisedThread

logger = logging.getLogger(__name__)

EVENT = Resource(group="", version="v1", plural="events", kind="Event", namespaced=True)

_MESSAGE_LIMIT = 1024
_QUEUE_LIMIT = 4096
_REMEMBERED = 4096
_SIMILAR_LIMIT = 10
_SIMILAR_WINDOW = 600.0
_LONGEST_YIELD = 30.0
_YIELD_PERIOD = 0.1
_BURST = 25
_REFILL_SECONDS = 300.0
_ATTEMPTS = 8
_LONGEST_PAUSE = 10.0
_PASSING = (ConnectionFailed, InternalError, ServerTimeout, ServiceUnavailable, TooManyRequests)


@dataclass(slots=True)
class _Happening:
    """One call of ``event``, or several of type Normal about one object, from ``when`` until ``last``.

    ``due``: when it is written, in the clock's monotonic seconds.
    """

    involved: Obj
    type: str
    reason: str
    messages: list[str]
    when: str
    last: str
    due: float

    @property
    def message(self) -> str:
        """All that is said, in the order in which it happened."""
        return _shortened("; ".join(self.messages))


@dataclass(slots=True)
class _Similar:
    """Texts seen for one object, type and reason."""

    messages: set[str]
    since: float


@dataclass(slots=True)
class _Allowance:
    """A token bucket for one object."""

    tokens: float
    since: float


@dataclass(slots=True)
class _Written:
    """An Event that exists and counts."""

    name: str
    count: int


class EventRecorder:
    """Writes Events about objects. ``event`` returns at once and never raises; what cannot be written is dropped and
    counted.

    ``gather``: for how many seconds an Event of type Normal waits for others about its object; they are written as one,
    under the reason of the last. A Warning about the object ends the wait, and so does what is told alone. ``busy``:
    whether there is more important work, for which a gathered Event waits on, 30 seconds at most.
    """

    def __init__(
        self,
        client: Client,
        *,
        component: str,
        gather: float = 0.0,
        busy: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._client = client
        self._component = component
        self._gather = gather
        self._is_busy = busy
        self._clock = clock or SystemClock()
        self._dropped = metrics.events_dropped.labels(component) if metrics is not None else None
        self._waiting: deque[_Happening] = deque()
        self._gathering: OrderedDict[tuple[str, ...], _Happening] = OrderedDict()
        self._condition = threading.Condition()
        self._busy = False
        self._closed = False
        self._stop = threading.Event()
        self._thread: SupervisedThread | None = None
        self._written: OrderedDict[tuple[str, ...], _Written] = OrderedDict()
        self._similar: OrderedDict[tuple[str, ...], _Similar] = OrderedDict()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    def event(
        self, obj: Obj, type: Literal["Normal", "Warning"], reason: str, message: str, *, alone: bool = False
    ) -> None:
        """Records that ``reason`` (CamelCase) happened to ``obj``; ``message`` is a sentence.

        ``alone``: it is written at once, under its own reason, and never gathered with others.
        """
        metadata = obj.get("metadata") or {}
        involved = {
            "apiVersion": obj.get("apiVersion", ""),
            "kind": obj.get("kind", ""),
            "namespace": metadata.get("namespace", ""),
            "name": metadata.get("name", ""),
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        when, due = now_rfc3339(self._clock), self._clock.monotonic() + self._gather
        happening = _Happening(involved, type, reason, [_shortened(message)], when, when, due)
        with self._condition:
            if self._closed or len(self._waiting) + len(self._gathering) >= _QUEUE_LIMIT:
                self._drop()
                return
            self._put_in_line(happening, gathers=type == "Normal" and not alone and self._gather > 0)
            if self._thread is None:
                self._thread = SupervisedThread(f"events {self._component}", self._run, stop=self._stop)
                self._thread.start()
            self._condition.notify_all()

    def _put_in_line(self, happening: _Happening, *, gathers: bool) -> None:
        subject = tuple(happening.involved[field] for field in ("uid", "kind", "namespace", "name"))
        open_one = self._gathering.get(subject)
        if open_one is not None and gathers:
            new = [message for message in happening.messages if message not in open_one.messages]
            if sum(map(len, [*open_one.messages, *new])) + 2 * len(open_one.messages) <= _MESSAGE_LIMIT:
                open_one.messages += new
                open_one.reason, open_one.last = happening.reason, happening.when
                return
        if open_one is not None:
            self._waiting.append(self._gathering.pop(subject))
        if gathers:
            self._gathering[subject] = happening
        else:
            self._waiting.append(happening)

    def _next(self) -> _Happening | None:
        """Takes what is to be written; None when nothing is, yet. All wait equally long, so the first is due first."""
        if not self._waiting and self._gathering:
            subject, first = next(iter(self._gathering.items()))
            late = self._clock.monotonic() - first.due
            if late >= (_LONGEST_YIELD if self._is_busy() else 0.0):
                self._waiting.append(self._gathering.pop(subject))
        return self._waiting.popleft() if self._waiting else None

    def _pause(self) -> float | None:
        """Seconds until something is due; None if nothing will be by itself."""
        first = next(iter(self._gathering.values()), None)
        return max(_YIELD_PERIOD, first.due - self._clock.monotonic()) if first is not None else None

    def flush(self, timeout: float) -> bool:
        """Waits until everything recorded so far is written or dropped; whether it was within ``timeout`` seconds."""
        with self._condition:
            self._waiting.extend(self._gathering.values())
            self._gathering.clear()
            self._condition.notify_all()
            return self._condition.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def close(self, timeout: float) -> None:
        """Flushes and ends the thread; later events are dropped."""
        self.flush(timeout)
        with self._condition:
            self._closed = True
            self._stop.set()
            self._condition.notify_all()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._busy = False
                self._condition.notify_all()
                while (happening := self._next()) is None and not self._closed:
                    self._condition.wait(self._pause())
                if happening is None or self._closed:
                    return
                self._busy = True
            try:
                self._handle(happening)
            except Exception:
                self._drop()
                logger.exception("an event was not written")

    def _handle(self, happening: _Happening) -> None:
        if not self._allowed(happening):
            self._drop()
            return
        message = self._combined(happening)
        for attempt in range(_ATTEMPTS):
            try:
                self._write(happening, message)
                return
            except _PASSING as error:
                with self._condition:
                    if self._closed:
                        break
                    # All Events wait meanwhile, so that nobody's Retry-After is kept for long.
                    pause = min(_LONGEST_PAUSE, max(0.25 * 2**attempt, error.retry_after or 0.0))
                    self._condition.wait_for(lambda: self._closed, timeout=pause)
            except (ApiError, LeadershipLost) as error:
                logger.debug("an event was not written: %s", error)
                break
        self._drop()

    def _write(self, happening: _Happening, message: str) -> None:
        involved = happening.involved
        namespace = involved["namespace"] or "default"
        identity = (
            involved["uid"],
            involved["kind"],
            namespace,
            involved["name"],
            happening.type,
            happening.reason,
            message,
        )
        known = self._written.get(identity)
        if known is not None:
            patch = {"count": known.count + 1, "lastTimestamp": happening.last}
            try:
                self._client.patch(EVENT, known.name, patch, namespace=namespace, kind="strategic")
                known.count += 1
                self._written.move_to_end(identity)
                return
            except NotFound:
                del self._written[identity]
        name = f"{involved['name'][:230].rstrip('.-')}.{uuid.uuid4().hex[:16]}"
        self._client.create(
            EVENT,
            {
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": {field: value for field, value in involved.items() if value},
                "type": happening.type,
                "reason": happening.reason,
                "message": message,
                "source": {"component": self._component},
                "reportingComponent": self._component,
                "reportingInstance": "",
                "firstTimestamp": happening.when,
                "lastTimestamp": happening.last,
                "count": 1,
            },
        )
        self._written[identity] = _Written(name=name, count=1)
        _bound(self._written)

    def _combined(self, happening: _Happening) -> str:
        """The message, or that of the combined event once there were too many different ones of this kind."""
        key = (happening.involved["uid"], happening.involved["name"], happening.type, happening.reason)
        now = self._clock.monotonic()
        seen = self._similar.get(key)
        if seen is None or now - seen.since > _SIMILAR_WINDOW:
            seen = self._similar[key] = _Similar(messages=set(), since=now)
            _bound(self._similar)
        self._similar.move_to_end(key)
        message = happening.message
        if len(seen.messages) < _SIMILAR_LIMIT:
            seen.messages.add(message)
        if message in seen.messages:
            return message
        return "(combined from similar events)"

    def _allowed(self, happening: _Happening) -> bool:
        """Whether the object has not talked too much: 25 events at once, then one in five minutes."""
        key = f"{happening.involved['uid']}/{happening.involved['name']}"
        now = self._clock.monotonic()
        allowance = self._allowances.setdefault(key, _Allowance(tokens=_BURST, since=now))
        allowance.tokens = min(_BURST, allowance.tokens + (now - allowance.since) / _REFILL_SECONDS)
        allowance.since = now
        self._allowances.move_to_end(key)
        _bound(self._allowances)
        if allowance.tokens < 1:
            return False
        allowance.tokens -= 1
        return True

    def _drop(self) -> None:
        if self._dropped is not None:
            self._dropped.inc()


def _shortened(message: str) -> str:
    return message if len(message) <= _MESSAGE_LIMIT else message[: _MESSAGE_LIMIT - 1] + "…"


def _bound(remembered: OrderedDict[Any, Any]) -> None:
    while len(remembered) > _REMEMBERED:
        remembered.popitem(last=False)
