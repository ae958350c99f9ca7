"""The cloud's time, and what happens in it.

`Clock` runs like the wall clock, faster, or only when told to. `Agenda` is the one thread that does things when they
are due by that clock, so that an operation ends although nobody asks for it.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from kaito_local.machine.pki import write_private

_log = logging.getLogger(__name__)


class Clock:
    """Seconds since 1970 (UTC). ``speed`` 1 is real time, 60 a minute per second, 0 stands still until `advance`.

    With ``file`` it goes on where it was after a restart of the process.
    """

    def __init__(self, *, speed: float = 1.0, file: Path | None = None) -> None:
        self.speed = speed
        self._file = file
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._anchor, self._real = time.time(), time.monotonic()
        if file is not None and file.exists():
            saved = json.loads(file.read_text())
            self._anchor = saved["now"] + max(0.0, time.time() - saved["wall"]) * speed
        self._save()

    def now(self) -> float:
        """The time in this cloud."""
        with self._lock:
            return self._anchor + (time.monotonic() - self._real) * self.speed

    def text(self) -> str:
        """The time as RFC 3339 with microseconds."""
        return format_time(self.now())

    def advance(self, seconds: float) -> None:
        """Moves time forward; whatever became due happens soon after (`Agenda.settle` waits for it)."""
        if seconds < 0:
            raise ValueError("time does not go backwards")
        with self._lock:
            self._anchor += seconds
        self._save()
        for listener in self._listeners:
            listener()

    def real_seconds_until(self, due: float) -> float | None:
        """How long to wait for ``due`` on the wall; None when only `advance` brings it."""
        return max(0.0, due - self.now()) / self.speed if self.speed else None

    def subscribe(self, listener: Callable[[], None]) -> None:
        """``listener`` is called after every `advance`."""
        self._listeners.append(listener)

    def _save(self) -> None:
        if self._file is not None:
            state = {"now": self.now(), "wall": time.time()}
            write_private(self._file, json.dumps(state).encode(), mode=0o644)


class Agenda:
    """Calls actions when they are due, in order, in one thread. An action that raises is logged, not repeated."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._entries: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="agenda", daemon=True)
        clock.subscribe(self._wake)

    def start(self) -> None:
        """Begins; what was entered before and is due happens now."""
        self._thread.start()

    def at(self, due: float, action: Callable[[float], None]) -> None:
        """``action`` is called with ``due`` (not with the time of the call) once the clock has reached it."""
        with self._changed:
            heapq.heappush(self._entries, (due, next(self._order), action))
            self._changed.notify_all()

    def settle(self, *, seconds: float = 30.0) -> None:
        """Waits until nothing is due any more; TimeoutError after that many real seconds."""
        with self._changed:
            if not self._changed.wait_for(self._idle, timeout=seconds):
                raise TimeoutError("the emulator's agenda does not come to rest")

    def idle(self) -> bool:
        """Whether nothing is due or being done."""
        with self._changed:
            return self._idle()

    def close(self) -> None:
        """Ends the thread; entries that are not due are forgotten."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _idle(self) -> bool:
        return self._closed or not (self._busy or (self._entries and self._entries[0][0] <= self._clock.now()))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._closed and (not self._entries or self._entries[0][0] > self._clock.now()):
                    wait = self._clock.real_seconds_until(self._entries[0][0]) if self._entries else None
                    self._changed.wait(wait)
                if self._closed:
                    return
                due, _, action = heapq.heappop(self._entries)
                self._busy = True
            try:
                action(due)
            except Exception:
                _log.exception("an action of the emulator failed")


def format_time(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC with microseconds, as ARM writes times."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
