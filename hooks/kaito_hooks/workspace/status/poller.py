"""Pods are asked for their progress beside the reconciles, which only read what was answered last.

A Pod that cannot be reached costs a second at each question. Those seconds are spent by workers of their own, so that
no other Workspace waits for them, and are spent less often the longer nobody answers. A container that only starts
refuses at once, which costs nothing: it is asked as often as one that answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_hooks.runtime import Key, Result
from kaito_hooks.workspace.status import progress

WORKERS = 8
LONGEST_PAUSE = 30.0
"""Seconds between two questions to Pods that let wait; the pause doubles up to it."""

Said = Mapping[str, Any]
Place = tuple[str, int]
"""Address and port at which a Pod answers /progress."""


@dataclass(slots=True)
class _Polled:
    """The Pods of one Workspace, by uid: where each answers, and what it said last; None: nothing."""

    places: Mapping[str, Place]
    said: Mapping[str, Said | None]
    pause: float = progress.PERIOD

    def answers(self) -> dict[str, Said]:
        return {uid: said for uid, said in self.said.items() if said is not None}


class ProgressPoller:
    """What the Pods of each Workspace said last. Thread-safe.

    ``poll`` is the reconcile of a controller of its own. ``connect`` says how to have a Workspace polled, and whom to
    tell that its Pods said something else than before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._polled: dict[Key, _Polled] = {}
        self._poll: Callable[[Key], None] = lambda _: None
        self._tell: Callable[[Key], None] = lambda _: None

    def connect(self, *, poll: Callable[[Key], None], tell: Callable[[Key], None]) -> None:
        """Before the first Workspace is looked at."""
        self._poll, self._tell = poll, tell

    def answers(self, key: Key, places: Mapping[str, Place]) -> dict[str, Said]:
        """What these Pods of the Workspace, by uid, answered last; from here on they are asked, and no others."""
        with self._lock:
            polled = self._polled.pop(key, None)
            if not places:
                return {}
            if polled is not None and polled.places == places:
                self._polled[key] = polled
                return polled.answers()
            before = polled.said if polled is not None else {}
            self._polled[key] = found = _Polled(dict(places), {uid: before.get(uid) for uid in places})
        self._poll(key)
        return found.answers()

    def poll(self, key: Key) -> Result:
        """Ask the Workspace's Pods once."""
        with self._lock:
            polled = self._polled.get(key)
        if polled is None:
            return Result()
        said: dict[str, Said | None] = {}
        waited = False
        for uid, place in polled.places.items():
            try:
                said[uid] = progress.fetch(*place)
            except TimeoutError:
                said[uid], waited = None, True
        with self._lock:
            if self._polled.get(key) is not polled:
                # Meanwhile other Pods are to be asked, or none.
                return Result()
            changed = polled.said != said
            polled.said = said
            silent = waited and not polled.answers()
            pause = polled.pause if silent else progress.PERIOD
            polled.pause = min(2 * pause, LONGEST_PAUSE) if silent else progress.PERIOD
        if changed:
            self._tell(key)
        return Result(requeue_after=pause)
