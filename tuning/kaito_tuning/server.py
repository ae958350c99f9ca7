"""GET /progress, /metrics and /healthz while the job runs, from a thread of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from kaito_tuning.progress import Progress


class ProgressServer:
    """Serves the current Progress as JSON and the registry as Prometheus text."""

    def __init__(self, host: str, port: int, *, current: Callable[[], Progress], registry: CollectorRegistry) -> None:
        self._server = ThreadingHTTPServer((host, port), _handler(current, registry))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="progress-server", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answers no more; the port is free when this returns."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(current: Callable[[], Progress], registry: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path == "/progress":
                self._answer(200, "application/json", json.dumps(asdict(current())).encode())
            elif path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path in ("/healthz", "/health"):
                self._answer(200, "application/json", b'{"status":"Healthy"}')
            else:
                self._answer(404, "application/json", b'{"detail":"Not Found"}')

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes and probes are not worth a line each."""

    return Handler
