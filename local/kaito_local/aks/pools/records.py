"""What happened, as JSON lines on disk: every request with its answer, and the life of every pool."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaito_local.aks.clock import Clock, format_time
from kaito_local.aks.pools.pool import CLAIM_UID_LABEL, STOPPED, SUCCEEDED, WORKSPACE_LABEL, Pool


class Lines:
    """An append-only file of JSON objects; thread-safe. A line that a killed process left half written is dropped."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes() if file.exists() else b""
        if content and not content.endswith(b"\n"):
            file.write_bytes(content[: content.rfind(b"\n") + 1])
        self._count = content.count(b"\n")

    def append(self, entry: dict[str, Any]) -> None:
        """Adds an entry, numbered from 1 in its field ``n``."""
        with self._lock:
            self._count += 1
            with self._file.open("a") as file:
                file.write(json.dumps({"n": self._count, **entry}) + "\n")

    def read(self, *, after: int = 0) -> Iterator[dict[str, Any]]:
        """The entries whose number is greater than ``after``."""
        if not self._file.exists():
            return
        for number, line in enumerate(self._file.read_text().splitlines(), start=1):
            if number > after:
                yield json.loads(line)


@dataclass(frozen=True, slots=True)
class Bill:
    """What one pool cost. Times are seconds of the cloud's clock, None = not yet.

    ``seconds``: how long its machines billed so far: from success until they were gone, but not while the pool was
    stopped. A creation that failed bills nothing, a surge machine is not counted.
    """

    pool: str
    uid: str
    size: str
    claim_uid: str
    workspace: str
    created: float
    succeeded: float | None
    failed: float | None
    deleting: float | None
    gone: float | None
    seconds: float


class Ledger:
    """The life of every pool, by name and by the claim it was made for."""

    def __init__(self, file: Path, *, clock: Clock) -> None:
        self._lines = Lines(file)
        self._clock = clock

    def record(self, event: str, pool: Pool, *, at: float, **more: Any) -> None:
        """``event``: what began or ended, such as Created, Succeeded, Failed, Stopped, Deleting, Gone."""
        self._lines.append(
            {
                "time": format_time(at),
                "at": at,
                "event": event,
                "pool": pool.name,
                "uid": pool.uid,
                "size": pool.size,
                "count": pool.properties.get("count", 1),
                "claimUid": pool.labels.get(CLAIM_UID_LABEL, ""),
                "workspace": pool.labels.get(WORKSPACE_LABEL, ""),
                **more,
            }
        )

    def events(self) -> list[dict[str, Any]]:
        """Every entry, oldest first."""
        return list(self._lines.read())

    def bills(self) -> list[Bill]:
        """One bill per pool that ever was, oldest first."""
        lives: dict[str, list[dict[str, Any]]] = {}
        for entry in self.events():
            lives.setdefault(entry["uid"], []).append(entry)
        return [self._bill(entries) for entries in lives.values()]

    def _bill(self, entries: list[dict[str, Any]]) -> Bill:
        first = entries[0]

        def when(event: str) -> float | None:
            return next((entry["at"] for entry in entries if entry["event"] == event), None)

        return Bill(
            pool=first["pool"],
            uid=first["uid"],
            size=first["size"],
            claim_uid=first["claimUid"],
            workspace=first["workspace"],
            created=first["at"],
            succeeded=when(SUCCEEDED),
            failed=when("Failed"),
            deleting=when("Deleting"),
            gone=when("Gone"),
            seconds=_running_seconds(entries, self._clock.now()) * first["count"],
        )


def _running_seconds(entries: Sequence[Mapping[str, Any]], now: float) -> float:
    seconds, since = 0.0, None
    for entry in entries:
        if since is None and entry["event"] == SUCCEEDED:
            since = entry["at"]
        elif since is not None and entry["event"] in (STOPPED, "Gone"):
            seconds += max(0.0, entry["at"] - since)
            since = None
    return seconds if since is None else seconds + max(0.0, now - since)
