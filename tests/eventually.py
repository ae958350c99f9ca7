"""Waiting for what is to become true, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 60.0
"""The least that any test waits for what must happen, in seconds: a machine may stand still for 20 of them."""


def eventually(
    probe: Callable[[], T],
    *,
    timeout: float = PATIENCE,
    every: float = 0.02,
    what: str | Callable[[], str] = "",
    despite: type[Exception] | tuple[type[Exception], ...] = (),
) -> T:
    """The first truthy value of ``probe``; AssertionError with ``what`` or the last value if none comes in time.

    ``what``: a function is called only when the time is over. ``despite``: errors of these types mean "not yet"; the
    last of them is the cause of the AssertionError. A ``timeout`` below ``PATIENCE`` is a ValueError.
    """
    if timeout < PATIENCE:
        raise ValueError(f"{timeout:g} s are too few for a busy machine; wait {PATIENCE:g} s or longer")
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        error: Exception | None = None
        value = None
        try:
            value = probe()
        except despite as caught:
            error = caught
        if value:
            return value
        if late:
            said = what() if callable(what) else what
            raise AssertionError(said or f"still {error or value!r} after {timeout:g} s") from error
        time.sleep(every)


async def eventually_here(probe: Callable[[], T], *, timeout: float = PATIENCE, every: float = 0.01) -> T:
    """The same for what happens in the event loop that waits."""
    async with asyncio.timeout(timeout):
        while not (value := probe()):
            await asyncio.sleep(every)
    return value


def never(probe: Callable[[], T], *, within: float, every: float = 0.02) -> None:
    """AssertionError when ``probe`` becomes truthy in the next ``within`` seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        value = probe()
        assert not value, f"became {value!r}"
        time.sleep(every)
