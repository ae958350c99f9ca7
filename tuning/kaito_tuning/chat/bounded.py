"""A bound on how long code of others runs, such as a chat template, which may hold a loop without an end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class DoesNotEnd(Exception):
    """The bound was reached."""


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raises DoesNotEnd inside when the process has computed so long. Other threads than the main one are not bounded.

    The process's own time counts, so that a machine that stalls ends nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise DoesNotEnd(f"it does not end within {seconds:g} s for one conversation")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
