"""The clock that everything is handed, and times as Kubernetes writes them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What time it is. Tests hand in one that they turn."""

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()


def format_time(when: datetime) -> str:
    """``metav1.Time``: RFC 3339 in UTC to the second, "2026-01-02T15:04:05Z"."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(when: datetime) -> str:
    """``metav1.MicroTime``: RFC 3339 in UTC to the microsecond, "2026-01-02T15:04:05.000000Z"."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """An RFC 3339 time as an aware datetime in UTC; ValueError says what is wrong."""
    try:
        when = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"{text!r} is not an RFC 3339 time such as 2026-01-02T15:04:05Z") from None
    if when.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; write Z or an offset")
    try:
        return when.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is no year from 1 to 9999 in UTC") from None


def later(when: datetime, seconds: float) -> datetime:
    """So many seconds after an aware time; at the latest the last moment of the year 9999."""
    try:
        return when + timedelta(seconds=seconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def now_rfc3339(clock: Clock) -> str:
    """The clock's time as ``metav1.Time``."""
    return format_time(clock.now())
