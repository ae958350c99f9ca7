"""The HTTP endpoints of a controller: /healthz, /livez, /readyz and /metrics."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

logger = logging.getLogger(__name__)

Check = Callable[[], str | None]
"""What is wrong, or None."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    content_type: str
    body: bytes


Route = Callable[["Message[str, str]"], Page]
"""From the request's headers to the answer."""


def health_page(checks: Callable[[], Mapping[str, Check]]) -> Route:
    """200 "ok" when every check has nothing to say, else 503 with one line per complaint."""

    def answer(_: Message[str, str]) -> Page:
        complaints = []
        for name, check in checks().items():
            try:
                problem = check()
            except Exception as error:
                logger.exception("health check %s failed", name)
                problem = f"the check itself failed: {error}"
            if problem:
                complaints.append(f"{name}: {problem}")
        body = "\n".join(complaints or ["ok"]) + "\n"
        return Page(503 if complaints else 200, "text/plain; charset=utf-8", body.encode())

    return answer


def metrics_page(registry: CollectorRegistry) -> Route:
    """All series of the registry, in the format that the scraper asks for."""

    def answer(headers: Message[str, str]) -> Page:
        encode, content_type = choose_encoder(headers.get("Accept", ""))
        return Page(200, content_type, encode(registry))

    return answer


class Endpoints:
    """Serves GETs of fixed paths from daemon threads, at an IPv4 or IPv6 address, or at every one of both if it is "".

    Port 0 takes a free one; OSError when the address is taken.
    """

    def __init__(self, address: str, port: int, routes: Mapping[str, Route]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                route = routes.get(urlsplit(self.path).path)
                page = route(self.headers) if route else Page(404, "text/plain", b"not found\n")
                self.send_response(page.status)
                self.send_header("Content-Type", page.content_type)
                self.send_header("Content-Length", str(len(page.body)))
                self.end_headers()
                self.wfile.write(page.body)

            def log_message(self, format: str, *args: Any) -> None:
                logger.debug(format, *args)

        address = address or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

            def server_bind(self) -> None:
                if self.address_family == socket.AF_INET6:
                    self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                super().server_bind()

            def handle_error(self, request: Any, client_address: Any) -> None:
                logger.debug("a connection to the endpoints broke off", exc_info=True)

        self._server = Server((address, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name=f"endpoints {self.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)
