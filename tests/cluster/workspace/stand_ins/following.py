"""What all stand-ins are made of: they follow objects with a watch and act on each at its time.

Nothing here looks at everything again and again, so that hundreds of Workspaces at once cost next to nothing.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.eventually import PATIENCE

from kaito_hooks.runtime import (
    ApiError,
    Client,
    Conflict,
    ConnectionFailed,
    Informer,
    NotFound,
    Resource,
    ServerTimeout,
    SystemClock,
    TooManyRequests,
    now_rfc3339,
)

Obj = dict[str, Any]
logger = logging.getLogger(__name__)
_THREADS = 4
_PAUSE = 0.2  # seconds


class Later:
    """Calls functions at their time, on a few threads; ends with its ``with`` block, whatever is still to come."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._ended = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(_THREADS)]

    def __enter__(self) -> Later:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(PATIENCE)

    def call(self, delay: float, function: Callable[[], None]) -> None:
        """``function`` after ``delay`` seconds; what the API server refuses it is logged, what fails by chance is tried
        again.
        """
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + delay, next(self._numbers), function))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ended and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._ended:
                    return
                _, _, function = heapq.heappop(self._due)
            try:
                function()
            except (Conflict, ConnectionFailed, ServerTimeout, TooManyRequests):
                self.call(_PAUSE, function)
            except ApiError as error:
                logger.warning("a stand-in was refused: %s", error)


class Follower:
    """Follows resources with watches; ends with its ``with`` block."""

    def __init__(self, client: Client, *resources: Resource) -> None:
        self.client = client
        self.informers = [Informer(client, resource) for resource in resources]
        for informer in self.informers:
            informer.subscribe(self.changed)

    def __enter__(self):  # type: ignore[no-untyped-def]
        for informer in self.informers:
            informer.start()
        for informer in self.informers:
            assert informer.wait_synced(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        for informer in self.informers:
            informer.stop()

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        """An object came (None, new), changed, or went (old, None)."""
        raise NotImplementedError


def let_go(client: Client, resource: Resource, obj: Obj) -> None:
    """The object loses its finalizers, and with them itself if it is being deleted."""
    metadata = obj["metadata"]
    with contextlib.suppress(NotFound):
        client.patch(
            resource, metadata["name"], {"metadata": {"finalizers": None}}, namespace=metadata.get("namespace")
        )


def condition(kind: str, status: str, reason: str, message: str = "") -> Obj:
    """A condition that has changed at this moment."""
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": now_rfc3339(SystemClock()),
    }
