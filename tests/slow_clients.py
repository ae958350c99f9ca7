"""Clients that a small HTTP server must bear: many that say nothing, and one that says it byte by byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from tests.eventually import eventually


def answering() -> list[threading.Thread]:
    """The threads of this process's servers that each answer somebody."""
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def threads_of_silent_clients(port: int, *, count: int, meanwhile: Callable[[], object]) -> int:
    """The most threads that so many connections cost over which nothing is asked; every fiftieth time ``meanwhile`` is
    called, and must be answered."""
    most = 0
    with contextlib.ExitStack() as idle:
        for number in range(count):
            idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            most = max(most, len(answering()))
            if number % 50 == 0:
                assert meanwhile()
    return most


def ask_byte_by_byte(port: int, begin: bytes) -> None:
    """Returns when nobody listens any more; AssertionError if somebody does for long."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as asking:
        asking.sendall(begin)
        eventually(answering)

        def ended() -> bool:
            try:
                asking.sendall(b"x")
            except OSError:
                return True
            return not answering()

        eventually(ended, every=0.05)
