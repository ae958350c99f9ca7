"""Work that the leader does every so often."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from kaito_hooks.runtime.clock import Clock
from kaito_hooks.runtime.errors import LeadershipLost
from kaito_hooks.runtime.logs import log_fields
from kaito_hooks.runtime.threads import SupervisedThread

logger = logging.getLogger(__name__)


class Periodic:
    """Calls ``run`` at once and then every ``every`` seconds, with a tenth of jitter; an exception is logged and waits
    for the next time.
    """

    def __init__(
        self, name: str, *, every: float, run: Callable[[], None], clock: Clock, stuck_after: float = 900.0
    ) -> None:
        self.name = name
        self._every = every
        self._call = run
        self._clock = clock
        self._stuck_after = stuck_after
        self._rng = random.Random()
        self._stop = threading.Event()
        self._since: float | None = None
        self._thread = SupervisedThread(f"periodic {name}", self._loop, stop=self._stop)
        self._started = False

    def start(self) -> None:
        """Starts the thread; once."""
        self._started = True
        self._thread.start()

    def stop(self) -> None:
        """Starts no more runs; one in progress goes on."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Waits for a run in progress after ``stop``; whether it ended within ``timeout`` seconds."""
        return self._thread.join(timeout)

    def stuck(self) -> str | None:
        """Why this work is no longer done, or None."""
        since = self._since
        if since is not None and self._clock.monotonic() - since > self._stuck_after:
            return f"periodic {self.name} has been running for {self._clock.monotonic() - since:.0f} s"
        if self._started and not self._stop.is_set() and not self._thread.alive:
            return f"periodic {self.name} has no thread"
        return None

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._since = self._clock.monotonic()
            try:
                with log_fields(periodic=self.name):
                    self._call()
            except LeadershipLost as error:
                logger.info("periodic %s stopped: %s", self.name, error)
            except Exception:
                logger.exception("periodic %s failed", self.name)
            finally:
                self._since = None
            self._stop.wait(self._every * self._rng.uniform(0.9, 1.1))
