"""Threads that never die silently."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class SupervisedThread:
    """Runs ``body`` in a daemon thread until ``stop`` is set; a body that raises or returns early is logged and run
    again.

    ``body`` is level-triggered: it must be able to start over. ``restarts`` counts how often it had to.
    """

    def __init__(self, name: str, body: Callable[[], None], *, stop: threading.Event, pause: float = 1.0) -> None:
        self.name = name
        self.restarts = 0
        self._body = body
        self._stop = stop
        self._pause = pause
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread; once."""
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Waits for the thread's end; whether it ended within ``timeout`` seconds."""
        if self._thread.ident is None or self._thread is threading.current_thread():
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._body()
                if self._stop.is_set():
                    return
                logger.error("thread %s ended although nobody asked it to; it is started again", self.name)
            except BaseException:
                logger.exception("thread %s failed; it is started again", self.name)
            self.restarts += 1
            self._stop.wait(self._pause)
