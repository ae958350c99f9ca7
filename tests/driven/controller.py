"""A controller without threads, on a clock that tests turn.

The queue, its delays and its back-off are the product's own. A key is reconciled when an object that the controller
watches has changed or when the delay that the last reconcile asked for is over, and never otherwise: neither a key
that asks to be called at once for ever nor one that forgets to ask stays hidden. The controller's resync is left out,
because it would bring a forgotten key back after ten minutes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from tests.driven.budget import Account
from tests.driven.clock import SteppedClock
from tests.driven.cluster import MemoryInformer

from kaito_hooks.runtime import ApiError, Backoff, Key, LeadershipLost, Obj, Result
from kaito_hooks.runtime.queue import WorkQueue


class DrivenController:
    """Does with keys and results what ``runtime.Controller`` does; ``reconcile`` may raise what the product raises."""

    def __init__(self, name: str, reconcile: Callable[[Key], Result], *, clock: SteppedClock, account: Account) -> None:
        self._reconcile = reconcile
        self._clock = clock
        self._account = account
        self._queue = WorkQueue(name, clock=clock, backoff=Backoff(rng=random.Random(1)))
        self._moments: list[float] = []

    def watch(self, informer: MemoryInformer, to_keys: Callable[[Obj], Iterable[Key]]) -> None:
        """Every change enqueues the keys of the object's old and of its new state."""

        def changed(old: Obj | None, new: Obj | None) -> None:
            for key in {key: None for state in (old, new) if state is not None for key in to_keys(state)}:
                self._queue.add(key)

        informer.subscribe(changed)

    def enqueue(self, key: Key, after: float = 0.0) -> None:
        """Asks for a reconcile of the key, ``after`` seconds from now."""
        self._queue.add(key, after)
        if after:
            self._later(after)

    def work(self) -> bool:
        """Reconcile one key that is due; False if none is."""
        key = self._queue.get(timeout=0)
        if key is None:
            return False
        try:
            self._account.charge(key, self._attempt(key))
        finally:
            self._queue.done(key)
        return True

    def next_moment(self) -> float:
        """When a key may be due; infinity if nothing is planned."""
        self._moments = [moment for moment in self._moments if moment > self._clock.monotonic()]
        return min(self._moments, default=float("inf"))

    def _attempt(self, key: Key) -> str:
        try:
            after = self._reconcile(key).requeue_after
        except (ApiError, LeadershipLost) as error:
            retry_after = error.retry_after if isinstance(error, ApiError) else None
            delay = self._queue.add_failed(key, retry_after=retry_after)
            return f"{type(error).__name__}, again in {self._later(delay)} s"
        self._queue.forget(key)
        if after is None:
            return "done"
        self._queue.add(key, after)
        return f"again in {self._later(after)} s"

    def _later(self, seconds: float) -> str:
        self._moments.append(self._clock.monotonic() + seconds)
        return f"{seconds:.2f}"
