"""Pushing the result of a training that must not be lost: tried until it works or the deadline is over.

A container that fails would count against the Job's back-off limit, and with the Pod the result would go; so the tries
happen inside one process, which reads the mounted secret again each time and tells on /progress why it still waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import SplitResult, parse_qs

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from kaito_hooks.artifacts.errors import ArtifactError, NotPushed
from kaito_hooks.artifacts.package import Package
from kaito_hooks.artifacts.registry.writer import RegistryWriter
from kaito_hooks.artifacts.results import Results
from kaito_hooks.runtime import BoundedHTTPServer, Page

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 300.0
# The page brings the rest of its policy along.
_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(slots=True)
class State:
    """What /progress says. ``results``: what the training left, which is told as before."""

    results: Results = field(default_factory=Results)
    message: str = ""
    updated: datetime = field(default_factory=lambda: datetime.now(UTC))

    def say(self, message: str) -> None:
        """Why the push still waits."""
        self.message, self.updated = message, datetime.now(UTC)

    def document(self, *, history: bool = False) -> dict[str, object]:
        """In the form of the trainer's own progress; with ``history`` its curves."""
        document: dict[str, object] = {
            **self.results.progress,
            "phase": "Pushing",
            "progressPercentage": 100,
            "estimatedRemainingSeconds": None,
            "reason": "PushFailed" if self.message else "",
            "message": self.message,
            "lastUpdatedTime": self.updated.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return {**document, "history": dict(self.results.history)} if history else document


def push(
    package: Package,
    *,
    writer: Callable[[], RegistryWriter],
    deadline: float,
    state: State,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> str:
    """The digest, once the registry has it. ``writer`` makes a new one for each try, with the secret as it is then.

    Raises NotPushed after ``deadline`` seconds, and at once what no registry could accept.
    """
    began = monotonic()
    pause = 1.0
    while True:
        try:
            return writer().push(package)
        except ArtifactError as error:
            if error.final:
                raise
            state.say(str(error))
            left = deadline - (monotonic() - began)
            if left <= 0:
                raise NotPushed(f"gave up pushing after {deadline / 3600:.1f} h: {error}") from error
            wait = min(max(pause, getattr(error, "retry_after", None) or 0.0), _LONGEST_PAUSE, left)
            logger.warning("%s; trying again in %.0f s", error, wait)
            sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)


@contextlib.contextmanager
def progress_served(state: State, host: str, port: int) -> Iterator[int | None]:
    """Answers GET /progress, and the page and /metrics that the training left, on an IPv4 or IPv6 address meanwhile;
    yields the port.

    None if it cannot listen there: a push that nobody can watch is still better than none.
    """
    try:
        server = BoundedHTTPServer(host, port, lambda url, _: _page(state, url))
    except OSError as error:
        logger.warning("nobody can ask for the progress: %s port %d: %s", host, port, error.strerror or error)
        yield None
        return
    try:
        yield server.port
    finally:
        server.close()


def _page(state: State, url: SplitResult) -> Page:
    if url.path == "/" and state.results.page:
        return Page(200, "text/html; charset=utf-8", state.results.page, _HEADERS)
    if url.path == "/metrics" and state.results.series:
        return Page(200, CONTENT_TYPE_LATEST, state.results.series, _HEADERS)
    if url.path in ("/progress", "/healthz", "/health"):
        document = state.document(history=parse_qs(url.query).get("history") == ["1"])
        return Page(200, "application/json", json.dumps(document).encode(), _HEADERS)
    return Page(404, "application/json", b'{"detail": "Not Found"}', _HEADERS)
