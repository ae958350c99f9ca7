"""HTTP/1.1 servers, one thread per connection: the cloud's with TLS, the control port's without."""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaito_local.aks.endpoints.front import Answer, Request
from kaito_local.errors import StartError

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 300.0
_HANDSHAKE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where an emulator answers.

    ``arm`` serves ARM and tokens; ``authority`` is the file that its clients must trust.
    """

    arm: str
    control: str
    authority: Path


class Server(http.server.ThreadingHTTPServer):
    """Serves ``answer`` at ``address:port`` until `close`; ``tls`` None means plain HTTP. Raises StartError."""

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(
        self, address: str, port: int, *, answer: Callable[[Request], Answer], tls: ssl.SSLContext | None = None
    ) -> None:
        self.answer = answer
        self.tls = tls
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise StartError(f"the AKS emulator cannot listen on {address}:{port}: {error.strerror}") from error
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="http", daemon=True)

    @property
    def url(self) -> str:
        """The address to call."""
        host, port = self.server_address[:2]
        return f"{'https' if self.tls else 'http'}://{host!s}:{port}"

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stops listening and cuts every connection."""
        self.shutdown()
        self.server_close()
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The TLS handshake happens here, in the connection's own thread: a silent client holds up nobody else."""
        connection: socket.socket = request
        try:
            if self.tls is not None:
                connection.settimeout(_HANDSHAKE_SECONDS)
                connection = self.tls.wrap_socket(connection, server_side=True)
            connection.settimeout(_IDLE_SECONDS)
            with self._open_lock:
                self._open.add(connection)
            self.finish_request(connection, client_address)
        except OSError as error:
            _log.debug("connection of %s: %s", client_address, error)
        finally:
            with self._open_lock:
                self._open.discard(connection)
            with contextlib.suppress(OSError):
                self.shutdown_request(connection)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        host, port = self.server.server_address[:2]
        authority = self.headers.get("Host") or f"{host!s}:{port}"
        request = Request(
            method=self.command,
            target=self.path,
            headers={key.lower(): value for key, value in self.headers.items()},
            body=body,
            base=f"{'https' if self.server.tls else 'http'}://{authority}",
        )
        answer = self.server.answer(request)
        if answer.cut:
            self.close_connection = True
            return
        payload = answer.encoded()
        self.send_response(answer.status)
        headers = {key.title(): value for key, value in answer.headers.items()}
        if payload:
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
        for key, value in headers.items():
            self.send_header(key, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the request log has it."""
