"""A Pod as far as the controller can see it: something that answers GET /progress on port 5000."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 5000


@dataclass
class Answering:
    """``address``: of the loopback network. ``said``: what is answered from here on. ``asked``: the paths."""

    address: str
    said: Mapping[str, Any]
    asked: list[str] = field(default_factory=list)


@contextmanager
def answering(said: Mapping[str, Any]) -> Iterator[Answering]:
    """A real server at an address of its own, as a Pod has one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found.said).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    found = Answering("127." + ".".join(str(secrets.randbelow(250) + 1) for _ in range(3)), said)
    server = ThreadingHTTPServer((found.address, PORT), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
