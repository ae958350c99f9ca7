"""What a tuning Pod answers while the job runs, from a thread of its own.

``GET /`` is a page for people, ``/progress`` the state as JSON (``?history=1``: with the curves), ``/metrics``
Prometheus text, ``/healthz`` for probes. Nothing here can end a training: where it cannot listen, it says so.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from kaito_tuning.progress import page
from kaito_tuning.progress.file import ProgressFile

log = logging.getLogger(__name__)

_JSON = "application/json"


class ProgressServer:
    """Answers for ``progress`` and ``registry`` on an IPv4 or IPv6 address; ``port`` 0 takes a free one."""

    def __init__(self, host: str, port: int, *, progress: ProgressFile, registry: CollectorRegistry) -> None:
        self._server: ThreadingHTTPServer | None = None
        try:
            self._server = (_IPv6Server if ":" in host else _Server)((host, port), _handler(progress, registry))
        except OSError as error:
            log.warning("nobody can ask for the progress: %s port %d: %s", host, port, error.strerror or error)

    @property
    def port(self) -> int | None:
        """The port that is listened on, None if none is."""
        return int(self._server.server_address[1]) if self._server else None

    def start(self) -> None:
        """Answers from now on."""
        if self._server:
            threading.Thread(
                target=self._server.serve_forever, args=(0.1,), name="progress-server", daemon=True
            ).start()

    def stop(self) -> None:
        """Answers no more; the port is free when this returns."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


def _handler(progress: ProgressFile, registry: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    def progress_document(query: Mapping[str, list[str]]) -> bytes:
        return json.dumps(progress.document(history=query.get("history") == ["1"])).encode()

    answers: dict[str, Callable[[Mapping[str, list[str]]], tuple[str, bytes]]] = {
        "/": lambda query: ("text/html; charset=utf-8", progress.page().encode()),
        "/progress": lambda query: (_JSON, progress_document(query)),
        "/metrics": lambda query: (CONTENT_TYPE_LATEST, generate_latest(registry)),
        "/healthz": lambda query: (_JSON, b'{"status":"Healthy"}'),
    }
    answers["/health"] = answers["/healthz"]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            answer = answers.get(asked.path)
            kind, body = answer(parse_qs(asked.query)) if answer else (_JSON, b'{"detail":"Not Found"}')
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")  # nobody who stays connected is answered after stop()
            for name, value in page.HEADERS.items() if asked.path == "/" else ():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes and probes are not worth a line each."""

    return Handler
