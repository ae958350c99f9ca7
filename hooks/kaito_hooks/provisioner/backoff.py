"""How often each claim's machine was refused and when it may be ordered again.

In memory: a restart costs one early try.
"""

from __future__ import annotations

import math
import random
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kaito_hooks.provisioner.errors import CloudError
from kaito_hooks.runtime import Clock

JITTER = 0.2
SHORTEST_ANNOUNCED = 60.0


@dataclass(slots=True)
class Attempt:
    """What is remembered of one claim; ``not_before`` on the monotonic clock, ``again`` the same moment for people,
    ``instance`` = the last failed one.
    """

    failures: dict[type[CloudError], int] = field(default_factory=dict)
    error: CloudError | None = None
    not_before: float = 0.0
    again: datetime | None = None
    instance: object = None


@dataclass(slots=True)
class Backoff:
    """Back-off per claim UID. Only ever delays: jitter is added, never taken off, so a budget of tries holds."""

    clock: Clock
    rng: random.Random = field(default_factory=random.Random)
    _of: dict[str, Attempt] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def failed(self, uid: str, error: CloudError, *, instance: object = None, longest: float = math.inf) -> float:
        """Note a refusal; returns the seconds until the next try may be made, before jitter at most ``longest``.

        ``instance`` names the failed machine, so that looking at it twice counts once.
        """
        with self._lock:
            attempt = self._of.setdefault(uid, Attempt())
            if instance is not None and attempt.instance == instance:
                return max(0.0, attempt.not_before - self.clock.monotonic())
            count = attempt.failures.get(type(error), 0) + 1
            attempt.failures[type(error)] = count
            attempt.error = error
            attempt.instance = instance if instance is not None else attempt.instance
            delay = min(error.delay(count), longest) * self.rng.uniform(1.0, 1.0 + JITTER)
            now = self.clock.monotonic()
            attempt.not_before = max(attempt.not_before, now + delay)
            wait = attempt.not_before - now
            attempt.again = self.clock.now() + timedelta(seconds=wait) if delay >= SHORTEST_ANNOUNCED else None
            return wait

    def remaining(self, uid: str) -> float:
        """Seconds until that claim's machine may be ordered; 0 = now."""
        with self._lock:
            attempt = self._of.get(uid)
            return max(0.0, attempt.not_before - self.clock.monotonic()) if attempt else 0.0

    def again(self, uid: str) -> datetime | None:
        """When that claim's machine may be ordered again; None where that is too soon to tell anybody."""
        with self._lock:
            attempt = self._of.get(uid)
            return attempt.again if attempt else None

    def last_error(self, uid: str) -> CloudError | None:
        """Why the last try failed, as far as this process knows."""
        with self._lock:
            attempt = self._of.get(uid)
            return attempt.error if attempt else None

    def forget(self, uid: str) -> None:
        """The machine is there, or the claim is gone."""
        with self._lock:
            self._of.pop(uid, None)
