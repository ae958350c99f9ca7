"""What a tuning Pod answers while the job runs, from a thread of its own.

``GET /`` is a page for people, ``/progress`` the state as JSON (``?history=1``: with the curves), ``/metrics``
Prometheus text, ``/healthz`` for probes. Nothing here can end a training, whoever asks however often: where it cannot
listen, it says so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from kaito_tuning.progress import page
from kaito_tuning.progress.file import ProgressFile

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 64
"""At once: each has a thread of the process that trains."""
LONGEST_SECONDS = 20.0
"""That a connection lasts, however slowly somebody asks or reads."""
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
    """Ends connections that last too long, and the oldest where there are too many."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._since: dict[Any, float] = {}
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            for oldest in list(self._since)[:1]:  # in the order in which they came
                _end(oldest)
            if not self._places.acquire(timeout=1.0):
                self.shutdown_request(request)
                return
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        if self._since.pop(request, None) is not None:
            self._places.release()

    def service_actions(self) -> None:
        for request, since in list(self._since.items()):
            if time.monotonic() - since > LONGEST_SECONDS:
                _end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        broken_off = isinstance(sys.exception(), OSError)
        log.log(logging.DEBUG if broken_off else logging.WARNING, "nobody got an answer", exc_info=True)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


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
            try:
                asked = urlsplit(self.path)
            except ValueError:
                self.send_error(400)
                return
            answer = answers.get(asked.path)
            kind, body = answer(parse_qs(asked.query)) if answer else (_JSON, b'{"detail":"Not Found"}')
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")  # nobody who stays connected is answered after stop()
            for name, value in page.HEADERS.items() if asked.path == "/" else ():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes and probes are not worth a line each."""

    return Handler
