"""The throttle of ARM writes: closed for everybody while ARM asks to wait, and for good once we do not lead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from kaito_hooks.provisioner.errors import Throttled
from kaito_hooks.runtime import Clock, format_time


@dataclass(slots=True)
class Throttle:
    """Thread-safe. ``fence`` raises LeadershipLost when this process may not write."""

    clock: Clock
    fence: Callable[[], object]
    _open_at: float = 0.0
    _until: str = ""
    _in_a_row: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Called before every ARM write; Throttled or LeadershipLost, and nothing is sent."""
        self.fence()
        with self._lock:
            left, until = self._open_at - self.clock.monotonic(), self._until
        if left > 0:
            raise Throttled("TooManyRequests", f"ARM asked for patience until {until}", retry_after=left)

    def close(self, retry_after: float | None) -> float:
        """ARM answered 429; returns for how many seconds more the throttle is closed than it was."""
        with self._lock:
            self._in_a_row += 1
            wait = Throttled("", "", retry_after=retry_after).delay(self._in_a_row)
            now = self.clock.monotonic()
            before = max(self._open_at, now)
            if now + wait > self._open_at:
                self._open_at = now + wait
                self._until = format_time(self.clock.now() + timedelta(seconds=wait))
            return self._open_at - before

    def succeeded(self) -> None:
        """ARM accepted a write."""
        with self._lock:
            self._in_a_row = 0
