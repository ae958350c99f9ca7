"""Asking a Pod of ours how far it is: GET /progress, which trainers and model servers answer."""

from __future__ import annotations

import http.client
import io
import json
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, TypeGuard

LIMIT = 1.0
"""Seconds for the whole answer."""
PERIOD = 5.0
"""Seconds between two questions to the same Pod."""
_MOST = 65536


def fetch(address: str, port: int, *, limit: float = LIMIT) -> Mapping[str, Any] | None:
    """GET /progress; None if there is no good answer. Raises TimeoutError once it took ``limit`` seconds."""
    end = time.monotonic() + limit
    host = f"[{address}]" if ":" in address else address
    request = f"GET /progress HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((address, port), timeout=limit) as connection:
            connection.sendall(request.encode())
            answer = http.client.HTTPResponse(_Received(_receive(connection, end)))  # type: ignore[arg-type]
        answer.begin()
        return read(answer.read()) if answer.status == 200 else None
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException, ValueError):
        return None


def read(said: str | bytes) -> Mapping[str, Any] | None:
    """The JSON object that a Pod said; None if it is none, or one that cannot be read."""
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, Mapping) else None


def _receive(connection: socket.socket, end: float) -> bytes:
    """Everything until the other side closes, the time is over or it is too much."""
    received = b""
    while len(received) < _MOST:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(4096)
        if not part:
            break
        received += part
    return received


class _Received:
    """What ``http.client`` reads an answer from, once all of it is there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether the API server would store it as a number: it is finite as one of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max
