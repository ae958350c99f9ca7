"""How long to wait before the next try."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with jitter; seconds.

    The n-th failure in a row waits between half and all of ``minimum * factor**n``, at most ``maximum``: jitter keeps
    replicas and keys that failed together from coming back together.
    """

    minimum: float = 0.005
    maximum: float = 60.0
    factor: float = 2.0
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def delay(self, failures: int, *, at_least: float | None = None, at_most: float | None = None) -> float:
        """Seconds to wait after ``failures`` failures in a row (1 = the first).

        ``at_least`` is a server's Retry-After, which is never undercut: jitter is added on top of it, up to a tenth.
        ``at_most`` lowers ``maximum`` for this once.
        """
        exponent = min(max(failures - 1, 0), 64)
        maximum = self.maximum if at_most is None else min(self.maximum, at_most)
        full = min(maximum, self.minimum * self.factor**exponent)
        delay = self.rng.uniform(full / 2, full)
        if at_least is None:
            return delay
        return max(delay, at_least * self.rng.uniform(1.0, 1.1))
