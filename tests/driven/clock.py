"""A clock that tests turn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_MONOTONIC = 1000.0
_WALL = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class SteppedClock:
    """Stands still until it is told to advance."""

    def __init__(self) -> None:
        self._monotonic = _MONOTONIC

    def now(self) -> datetime:
        return _WALL + timedelta(seconds=self._monotonic - _MONOTONIC)

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._monotonic += seconds

    def turn_to(self, moment: float) -> None:
        """Advance to that moment of ``monotonic``, unless it has passed."""
        self._monotonic = max(self._monotonic, moment)

    def moment(self, when: datetime) -> float:
        """What ``monotonic`` says at that time."""
        return _MONOTONIC + (when - _WALL).total_seconds()
