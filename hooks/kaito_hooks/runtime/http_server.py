"""A small HTTP server that answers GET and HEAD, whose threads and patience are bounded.

Whoever asks, however often and however slowly, costs the process a fixed number of threads: a connection lasts so many
seconds at most, and where there are too many the oldest ends. A probe or a scrape is answered in milliseconds, so it is
hardly ever that one.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import SplitResult, urlsplit

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 64
"""At once; each has a thread."""
LONGEST_SECONDS = 20.0
"""That a connection lasts."""
_SILENCE = 10
_PLACE = 1.0


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[SplitResult, "Message[str, str]"], Page]
"""From the URL and the headers of a request to its page."""


class BoundedHTTPServer:
    """Serves from daemon threads, as soon as it is made, until ``close``.

    ``address`` is of IPv4 or IPv6; "" means all addresses of both. ``port`` 0 takes a free one. Raises OSError when it
    cannot listen there.
    """

    def __init__(self, address: str, port: int, answer: Answer) -> None:
        self._server = _Server(address, port, _handler(answer))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name=f"http {self.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving; the port is free when this returns."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


class _Server(ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._since: dict[Any, float] = {}
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        self._both = not address and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if self._both or ":" in address else socket.AF_INET
        super().__init__((address, port), handler)

    def server_bind(self) -> None:
        if self._both:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            for oldest in list(self._since)[:1]:  # in the order in which they came
                _end(oldest)
            if not self._places.acquire(timeout=_PLACE):
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
        logger.log(logging.DEBUG if broken_off else logging.WARNING, "a request got no answer", exc_info=True)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _handler(answer: Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _SILENCE

        def do_GET(self) -> None:
            try:
                url = urlsplit(self.path)
            except ValueError:
                self.send_error(400)
                return
            page = answer(url, self.headers)
            self.send_response(page.status)
            own = {"Content-Type": page.content_type, "Content-Length": str(len(page.body)), "Connection": "close"}
            for name, value in {**own, **page.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(page.body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            logger.debug(format, *args)

    return Handler
