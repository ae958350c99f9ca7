"""A cluster in memory and the controllers over it, on a clock that tests turn.

Time passes in ``run``, and whatever the controllers do then is paid for from the budget that the scenario has stated
with ``allow``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.driven.budget import Account, Budget
from tests.driven.clock import SteppedClock
from tests.driven.cluster import MemoryCluster, MemoryInformer
from tests.driven.controller import DrivenController

WATCH_LAG = 0.05
"""Seconds until a watch tells of a change."""
NEVER = float("inf")


class DrivenWorld:
    """What every scenario has; ``informers`` and ``driven`` are those of the process that runs."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.cluster = MemoryCluster(self.clock)
        self.account = Account(self.clock, self.requests)
        self.informers: list[MemoryInformer] = []
        self.driven: list[DrivenController] = []
        self._told, self._tells_at = 0, NEVER

    # What a scenario is made of

    def requests(self) -> int:
        """How many requests count so far."""
        return self.cluster.requests

    def surroundings(self) -> None:
        """Everything that others than the controllers do at this moment."""

    def next_of_surroundings(self) -> float:
        """When they do more, in the clock's monotonic seconds."""
        return NEVER

    # What tests use

    @contextmanager
    def product(self) -> Iterator[None]:
        """What is asked and written meanwhile, the product has asked and written."""
        self.cluster.product_writes = True
        try:
            yield
        finally:
            self.cluster.product_writes = False

    def sync(self) -> None:
        """The watches tell what has changed."""
        self._told, self._tells_at = self.cluster.revision, NEVER
        for informer in self.informers:
            informer.sync()

    def allow(self, budget: Budget) -> None:
        """What may be spent from here on; a reconcile that goes beyond it is an AssertionError."""
        self.account.open(budget)

    def run(self, seconds: float, *, every: tuple[float, Callable[[], None]] | None = None) -> None:
        """Let time pass: others act, watches tell, and keys are reconciled when they are woken or due.

        ``every``: what the process does besides, and after how many seconds each time.
        """
        end = self.clock.monotonic() + seconds
        pause, besides = every or (NEVER, self.sync)
        next_time = self.clock.monotonic() + pause
        while True:
            self._settle()
            if self.clock.monotonic() >= next_time:
                besides()
                next_time += pause
            moment = min(next_time, self._next_moment())
            if moment > end:
                break
            self.clock.turn_to(moment)
        self.clock.turn_to(end)

    def _settle(self) -> None:
        self.surroundings()
        if self.clock.monotonic() >= self._tells_at:
            self.sync()
        while any(controller.work() for controller in self.driven):
            pass

    def _next_moment(self) -> float:
        if self.cluster.revision != self._told and self._tells_at == NEVER:
            self._tells_at = self.clock.monotonic() + WATCH_LAG
        controllers = (controller.next_moment() for controller in self.driven)
        return min(self._tells_at, self.next_of_surroundings(), *controllers)
