"""Watching the replicas until the server is to end: what they told decides; Ray Serve replaces those that die."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from kaito_serving.engine.base import State
from kaito_serving.errors import ServerFailed, StartupError
from kaito_serving.http.contract import Progress
from kaito_serving.http.metrics import process_died
from kaito_serving.run import processes
from kaito_serving.run.front import Front
from kaito_serving.run.server import APPLICATION
from kaito_serving.run.signals import Signals
from kaito_serving.run.startup import Told, forget, read

_LOG = logging.getLogger(__name__)

_MOST_DEATHS = 2  # of a replica while it loads, before the start counts as failed
_LOOK_EVERY = 0.5  # seconds
_ASK_SERVE = 20  # looks; Serve itself says when replicas cannot be placed at all
_TELL_EVERY = 5.0  # seconds


def watch(serve: Any, front: Front, stopping: Signals, *, own: Sequence[int], began: float) -> None:
    """Returns after a signal; StartupError or ServerFailed when the model cannot be served.

    `own` are the process ids that Ray collects itself, `began` is when this server did.
    """
    looks = 0
    narrator = Narrator(began=began, monotonic=time.monotonic)
    while not stopping.within(_LOOK_EVERY):
        processes.collect_orphans(but=(*own, front.door.pid))
        if front.door.keep_open():
            _LOG.warning("HAProxy died and was started again")
        told = read(front.folder.reports)
        for each in told:
            if not each.alive:
                process_died(each.pid)
        narrator.hear(front.pod.look(told, routed=front.door.routed()))
        if front.pod.was_ready:
            forget(front.folder.reports, told)
            continue
        give_up(told, replicas=front.pod.replicas)
        looks += 1
        if looks % _ASK_SERVE == 0:
            application = serve.status().applications.get(APPLICATION)
            if application is not None and application.status == "DEPLOY_FAILED":
                raise ServerFailed(f"Ray Serve cannot start the model: {application.message.strip().splitlines()[-1]}")


def give_up(told: Sequence[Told], *, replicas: int) -> None:
    """Raise StartupError or ServerFailed when the first start has failed; replicas that only load are no deaths."""
    failed = [each.startup for each in told if each.startup.phase == "failed"]
    if failed:
        raise (StartupError if failed[-1].final else ServerFailed)(failed[-1].reason)
    died = sum(not each.alive and each.startup.phase == "loading" for each in told)
    if died > _MOST_DEATHS * replicas:
        raise ServerFailed("The model's process died several times while it loaded; it may need more memory.")


class Narrator:
    """Writes into the log how the server is: while it loads every few seconds, then whenever it changes."""

    def __init__(self, *, began: float, monotonic: Callable[[], float]) -> None:
        self._began = began
        self._monotonic = monotonic
        self._was_ready = False
        self._last: tuple[State, str] = (State.LOADING, "")
        self._told_at = began

    def hear(self, now: Progress) -> None:
        """Tell it if it is worth a line."""
        (before, message), self._last = self._last, (now.state, now.message)
        if now.state is State.READY:
            if (before, message) != self._last:
                self._tell_ready(now)
        elif now.state is not before and (before is State.READY or now.state is State.FAILED):
            _LOG.warning("Not ready: %s", now.message)
        else:
            self._tell_part(now)

    def _tell_part(self, now: Progress) -> None:
        time = self._monotonic()
        if now.progress is not None and time - self._told_at >= _TELL_EVERY:
            self._told_at = time
            _LOG.info("%s%s: %.0f %%", now.message[:1].upper(), now.message[1:], 100 * now.progress)

    def _tell_ready(self, now: Progress) -> None:
        if not self._was_ready:
            self._was_ready = True
            _LOG.info("Ready after %.0f s", self._monotonic() - self._began)
        elif now.message:
            _LOG.warning("%s", now.message)
        else:
            _LOG.info("Ready again")
