"""What a scenario may cost: reconciles, and requests to ARM, in sums of what the contract allows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.unit.provisioner.stepped_clock import SteppedClock

from kaito_hooks.runtime import Key

_REMEMBERED = 12


@dataclass(frozen=True, slots=True)
class Budget:
    """How many reconciles, and how many requests to ARM, a scenario may cost; budgets can be added and multiplied."""

    reconciles: int
    requests: int

    def __add__(self, other: Budget) -> Budget:
        return Budget(self.reconciles + other.reconciles, self.requests + other.requests)

    def __rmul__(self, times: int) -> Budget:
        return Budget(self.reconciles * times, self.requests * times)

    def covers(self, spent: Budget) -> bool:
        return spent.reconciles <= self.reconciles and spent.requests <= self.requests


def looks(seconds: float) -> Budget:
    """What a claim that waits so long for the cloud may look: every 5 s for a minute, then every 15 s (contract, 3)."""
    number = math.ceil(min(seconds, 60.0) / 5.0 + max(0.0, seconds - 60.0) / 15.0)
    return Budget(reconciles=number, requests=number)


# What else the contract allows. A claim is also woken by what is written to it and to its Node; a Node wakes the
# controllers of both kinds.
ORDER = Budget(reconciles=4, requests=4)
"""A look, a GET and a PUT, refused or not, and one more look when the claim's own change wakes it."""
LAUNCH = ORDER + looks(180.0 + 15.0) + Budget(reconciles=16, requests=1)
"""A creation of 3 minutes, and a Node that joins, registers and is initialized."""
END = Budget(reconciles=12 + 16, requests=12 + 5)
"""A deletion of 1 minute, looked at every 5 s, with a GET and a DELETE before and a GET after it."""
DRAIN = Budget(reconciles=30 + 6, requests=0)
"""A Pod that is evicted and takes its 30 s to end, looked at every second."""
FAILURE = Budget(reconciles=8, requests=4)
"""A broken pool, whose cause is written before it is looked at once more and deleted."""


class Account:
    """What has been spent of a budget, and on what."""

    def __init__(self, clock: SteppedClock, requests: Callable[[], int]) -> None:
        self._clock = clock
        self._requests = requests
        self._budget = Budget(0, 0)
        self._reconciles = 0
        self._requests_before = 0
        self._last: deque[str] = deque(maxlen=_REMEMBERED)

    def open(self, budget: Budget) -> None:
        """That much may be spent from here on."""
        self._budget = budget
        self._reconciles = 0
        self._requests_before = self._requests()
        self._last.clear()

    @property
    def left(self) -> Budget:
        spent = self._spent()
        return Budget(self._budget.reconciles - spent.reconciles, self._budget.requests - spent.requests)

    def charge(self, key: Key, what: str) -> None:
        """One more reconcile, and whatever it asked of ARM; AssertionError when that is more than the budget."""
        self._reconciles += 1
        self._last.append(f"{self._clock.monotonic():.2f} s {key}: {what}")
        spent = self._spent()
        assert self._budget.covers(spent), f"{spent}, allowed: {self._budget}; at last\n" + "\n".join(self._last)

    def _spent(self) -> Budget:
        return Budget(self._reconciles, self._requests() - self._requests_before)
