"""A clock that tests turn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class TurnedClock:
    """Time passes when ``turn`` says so."""

    def __init__(self) -> None:
        self._seconds = 1000.0

    def now(self) -> datetime:
        return datetime(2026, 1, 2, 15, 4, 5, tzinfo=UTC) + timedelta(seconds=self._seconds - 1000.0)

    def monotonic(self) -> float:
        return self._seconds

    def turn(self, seconds: float) -> None:
        self._seconds += seconds
