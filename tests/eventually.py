"""Waiting for what is to become true, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(probe: Callable[[], T], *, timeout: float = 30.0, every: float = 0.02, what: str = "") -> T:
    """The first truthy value of ``probe``; AssertionError with ``what`` or the last value if none comes in time."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        assert time.monotonic() < deadline, what or f"still {value!r} after {timeout:g} s"
        time.sleep(every)


def never(probe: Callable[[], T], *, within: float, every: float = 0.02) -> None:
    """AssertionError when ``probe`` becomes truthy in the next ``within`` seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        value = probe()
        assert not value, f"became {value!r}"
        time.sleep(every)
