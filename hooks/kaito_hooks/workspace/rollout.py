"""Rolls by themselves, n at a time: which Workspaces get the settings of today next.

Everything that is decided upon is in the cluster: a Workspace that was chosen has an annotation, its workload has the
same one as soon as it is made anew, and the roll is over when that is available. So a controller that dies in between
goes on where it was, and a roll that fails holds up all that would come after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kaito_hooks.api import labels
from kaito_hooks.api.conditions import find
from kaito_hooks.runtime import Clock, Key, Obj
from kaito_hooks.workspace.children import workload
from kaito_hooks.workspace.children.upkeep import is_owned
from kaito_hooks.workspace.configuration.settings import Window, Workloads
from kaito_hooks.workspace.execute import Executor
from kaito_hooks.workspace.status import conditions
from kaito_hooks.workspace.world import World
from kaito_hooks.workspace.writer import REFUSED

ROLLOUT_PERIOD = 2.0
"""Seconds between two looks at all Workspaces."""
REFUSED_PAUSE = timedelta(minutes=10)
"""Before a Workspace that may not be asked to roll is asked again."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """How far a Workspace is.

    ``drifted``: it may be rolled. ``asked``: it was chosen, and its workload is not of that roll yet. ``chosen``: it
    was chosen, and perhaps its roll is not over. ``available``: its workload is ready, or scaled to zero.
    """

    key: Key
    drifted: bool
    chosen: bool
    asked: bool
    available: bool

    @property
    def rolling(self) -> bool:
        """Whether it counts as unavailable because of a roll."""
        return self.chosen and (self.asked or not self.available)


def choose(found: Iterable[Rolled], *, max_unavailable: int) -> list[Key]:
    """Who is rolled now: those whose last roll failed and would be another today, then others in their order by name,
    those that are available first, while no more than ``max_unavailable`` are rolling."""
    everyone = sorted(found, key=lambda rolled: (not rolled.available, str(rolled.key)))
    again = [rolled.key for rolled in everyone if rolled.rolling and rolled.drifted and not rolled.asked]
    free = max_unavailable - sum(rolled.rolling for rolled in everyone)
    fresh = [rolled.key for rolled in everyone if rolled.drifted and not rolled.rolling]
    return again + fresh[: max(0, free)]


def look_at(workspace: Obj, workloads: Iterable[Obj], *, last: str | None) -> Rolled:
    """How far that Workspace is. ``last``: the roll that was asked for last, which a cache may not show yet."""
    metadata = workspace["metadata"]
    ours = [w for w in workloads if is_owned(w, metadata["uid"]) and not w["metadata"].get("deletionTimestamp")]
    made = (ours[0]["metadata"].get("annotations") or {}).get(labels.AUTOMATIC_ROLL) if ours else None
    wanted = last or (metadata.get("annotations") or {}).get(labels.AUTOMATIC_ROLL)
    said = (workspace.get("status") or {}).get("conditions")
    reason = (find(said, conditions.WORKLOAD_UP_TO_DATE) or {}).get("reason")
    # Who has no nodes is down for that reason, and nobody knows for how long.
    has_nodes = (find(said, conditions.RESOURCE_READY) or {}).get("status") != "False"
    is_over = reason == conditions.UP_TO_DATE and wanted == made
    return Rolled(
        Key.of(workspace),
        drifted=reason == conditions.PLATFORM_CHANGED,
        # Nobody waits for a roll that does not come: of a model that is being tuned again, say.
        chosen=wanted is not None
        and reason not in (conditions.CANNOT_ROLL, conditions.NO_WORKLOAD)
        and has_nodes
        and not is_over,
        asked=wanted != made,
        available=bool(ours) and workload.is_available(ours[0]),
    )


def is_open(window: Window | None, now: datetime) -> bool:
    """Whether a roll may begin now; one that has begun is never held up."""
    if window is None:
        return True
    for back in range(1 + math.ceil(window.duration / timedelta(days=1).total_seconds())):
        day = now.astimezone(UTC).date() - timedelta(days=back)
        begin = datetime.combine(day, window.start, UTC)
        if day.weekday() in window.days and begin <= now < begin + timedelta(seconds=window.duration):
            return True
    return False


class Rollout:
    """Chooses by what the caches show; only one of it runs at a time, in the process that leads."""

    def __init__(self, world: World, executor: Executor, *, settings: Workloads, clock: Clock) -> None:
        self._world, self._executor, self._settings, self._clock = world, executor, settings, clock
        self._last: dict[str, str] = {}
        self._held: dict[Key, datetime] = {}

    def proceed(self) -> None:
        """Ask for the rolls that are next; who may not be asked holds up nobody."""
        now = self._clock.now()
        if not is_open(self._settings.window, now):
            return
        self._held = {key: until for key, until in self._held.items() if now < until}
        workspaces = {Key.of(w): w for w in self._world.workspaces.list() if not w["metadata"].get("deletionTimestamp")}
        found = [self._look_at(key, workspace) for key, workspace in workspaces.items() if key not in self._held]
        for key in choose(found, max_unavailable=self._settings.max_unavailable):
            try:
                name = self._executor.roll(workspaces[key])
            except REFUSED:
                self._held[key] = now + REFUSED_PAUSE
                continue
            if name is not None:
                self._last[workspaces[key]["metadata"]["uid"]] = name
        self._last = {
            w["metadata"]["uid"]: n for w in workspaces.values() if (n := self._last.get(w["metadata"]["uid"]))
        }

    def _look_at(self, key: Key, workspace: Obj) -> Rolled:
        caches = (self._world.deployments, self._world.stateful_sets)
        workloads = [found for cache in caches if (found := cache.get(key)) is not None]
        return look_at(workspace, workloads, last=self._last.get(workspace["metadata"]["uid"]))
