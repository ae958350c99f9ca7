"""One listing of the cloud that all waiting claims share, so that ARM traffic does not grow with their number.

Nobody waits for anybody else's request: while one caller fetches, the others read the last listing, or ask by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kaito_hooks.provisioner.cloud import Instance
from kaito_hooks.provisioner.errors import CloudError
from kaito_hooks.runtime import Clock

STALE = 30.0


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """``asked`` is when the request was sent: what was written later is not in it for sure."""

    asked: float
    instances: dict[str, Instance]


@dataclass(slots=True)
class SharedListing:
    """A listing at most so old, and what was written since. ``fetch`` gets a complete listing or raises."""

    fetch: Callable[[], Sequence[Instance]]
    clock: Clock
    _snapshot: _Snapshot | None = None
    _fetching: bool = False
    _refusal: tuple[float, CloudError] | None = None
    _written: dict[str, tuple[float, Instance | None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, name: str, *, max_age: float) -> tuple[bool, Instance | None]:
        """Whether the listing can tell, and what it says. A refused listing is refused to all for ``max_age``."""
        with self._lock:
            now = self.clock.monotonic()
            if self._refusal is not None and now < self._refusal[0]:
                raise self._refusal[1]
            age = now - self._snapshot.asked if self._snapshot is not None else float("inf")
            if age > max_age and not self._fetching:
                self._fetching = True
            else:
                return self._find(name) if age <= max(max_age, STALE) else (False, None)
        self._refresh(max_age)
        with self._lock:
            return self._find(name)

    def wrote(self, name: str, instance: Instance | None) -> None:
        """What a write left behind; None = what became of it is unknown, ask by name."""
        with self._lock:
            self._written[name] = (self.clock.monotonic(), instance)

    def took(self, asked: float, instances: Sequence[Instance]) -> None:
        """A complete listing, asked for at ``asked``, that somebody got by other means."""
        with self._lock:
            if self._snapshot is None or asked > self._snapshot.asked:
                self._snapshot = _Snapshot(asked, {instance.name: instance for instance in instances})
                self._written = {n: (at, i) for n, (at, i) in self._written.items() if at >= asked}

    def _refresh(self, max_age: float) -> None:
        asked = self.clock.monotonic()
        try:
            instances = self.fetch()
        except CloudError as error:
            with self._lock:
                until = self.clock.monotonic() + max(max_age, error.retry_after or 0.0)
                self._refusal = (until, error)
            raise
        else:
            self.took(asked, instances)
            with self._lock:
                self._refusal = None
        finally:
            with self._lock:
                self._fetching = False

    def _find(self, name: str) -> tuple[bool, Instance | None]:
        if name in self._written:
            instance = self._written[name][1]
            return instance is not None, instance
        assert self._snapshot is not None
        return True, self._snapshot.instances.get(name)
