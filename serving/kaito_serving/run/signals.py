"""SIGTERM and SIGINT, as the end of a wait."""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue
from types import FrameType


class Signals:
    """Which signal came, if one did. A SimpleQueue bears a handler that interrupts a thread holding its lock."""

    def __init__(self) -> None:
        self._came: SimpleQueue[int] = SimpleQueue()
        self.reason = ""

    def listen(self) -> None:
        """Hear them from now on; again, after others have put their handlers there."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def within(self, seconds: float) -> bool:
        """Wait; whether one has come."""
        try:
            self._came.get(timeout=seconds)
        except Empty:
            return False
        return True

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        self._came.put(number)
