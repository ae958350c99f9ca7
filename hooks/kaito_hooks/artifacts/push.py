"""Pushing the result of a training that must not be lost: tried until it works or the deadline is over.

A container that fails would count against the Job's back-off limit, and with the Pod the result would go; so the tries
happen inside one process, which reads the mounted secret again each time and tells on /progress why it still waits.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kaito_hooks.artifacts.errors import ArtifactError, NotPushed
from kaito_hooks.artifacts.package import Package
from kaito_hooks.artifacts.upload import RegistryWriter

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 300.0


@dataclass(slots=True)
class State:
    """What /progress says."""

    message: str = ""
    updated: datetime = field(default_factory=lambda: datetime.now(UTC))

    def say(self, message: str) -> None:
        """Why the push still waits."""
        self.message, self.updated = message, datetime.now(UTC)

    def document(self) -> dict[str, object]:
        """In the form of the trainer's own progress."""
        stamp = self.updated.strftime("%Y-%m-%dT%H:%M:%SZ")
        reason = "PushFailed" if self.message else ""
        return {
            "phase": "Pushing",
            "progressPercentage": 100,
            "reason": reason,
            "message": self.message,
            "lastUpdatedTime": stamp,
        }


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


class ProgressServer:
    """GET /progress, from a thread of its own, until `stop`."""

    def __init__(self, host: str, port: int, *, state: State) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                found = self.path.split("?")[0] in ("/progress", "/healthz", "/health")
                body = json.dumps(state.document() if found else {"detail": "Not Found"}).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="progress", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Answers no more."""
        self._server.shutdown()
        self._server.server_close()
