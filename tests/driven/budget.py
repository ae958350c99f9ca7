"""What a scenario may cost: reconciles, and requests to the server that the controller must spare."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.driven.clock import SteppedClock

from kaito_hooks.runtime import Key

_REMEMBERED = 12


@dataclass(frozen=True, slots=True)
class Budget:
    """How many reconciles, and how many requests (to ARM, or to the API server), a scenario may cost.

    Budgets can be added and multiplied.
    """

    reconciles: int
    requests: int

    def __add__(self, other: Budget) -> Budget:
        return Budget(self.reconciles + other.reconciles, self.requests + other.requests)

    def __rmul__(self, times: int) -> Budget:
        return Budget(self.reconciles * times, self.requests * times)

    def covers(self, spent: Budget) -> bool:
        return spent.reconciles <= self.reconciles and spent.requests <= self.requests


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
