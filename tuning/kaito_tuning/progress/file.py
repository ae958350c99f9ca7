"""How far the job is: written atomically for the next step and the next start, served on /progress while it runs.

The fields follow Kubeflow's TrainJob ``trainerStatus``. The last state also goes into the container's termination
message (at most 4 KiB), so that a reason outlives the Pod's log. Telling how far a training is never ends it: a full
disk costs the file, not the job.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kaito_tuning.progress import curve, metrics, page
from kaito_tuning.progress.history import History
from kaito_tuning.progress.state import Progress

log = logging.getLogger(__name__)

TERMINATION_LIMIT = 4096
PAGE = "progress.html"
HISTORY = "history.json"
SERIES = "metrics.txt"


class ProgressFile:
    """The newest Progress, in memory and in a file that is replaced whole, with what ``history`` knows added.

    ``document``, ``metrics`` and ``page`` are read by other threads than the one that reports.
    """

    def __init__(self, path: Path, *, history: History | None = None, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._lock = threading.Lock()
        self._written = True
        self.history = history or History()
        self._current = Progress(phase="Checking", restarts=_starts_before(path))
        self._told = ""

    @property
    def current(self) -> Progress:
        """The state last reported, completed from the history."""
        with self._lock:
            current = self._current
        known = self.history.metrics() | current.metrics
        checkpoint = self.history.checkpoint()
        ends = current.phase in ("Pushing", "Done", "Failed")
        return replace(
            current,
            message=current.message or ("" if ends else self._told),
            metrics={name: value for name, value in known.items() if math.isfinite(value)},
            curve=curve.line(self.history.curves().get("loss") or []),
            checkpointStep=checkpoint[0] if checkpoint else 0,
            checkpointSeconds=round(checkpoint[1], 2) if checkpoint else None,
        )

    def report(self, progress: Progress) -> None:
        """Makes this the current state and writes it, if there is room."""
        stamp = datetime.fromtimestamp(self._now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._lock:
            self._current = replace(progress, lastUpdatedTime=stamp, restarts=self._current.restarts)
        self._write(self._path, json.dumps(asdict(self.current)))

    def tell(self, sentence: str) -> None:
        """Adds to what is shown while there is nothing else to say."""
        self._told = f"{self._told}; {sentence}" if self._told else sentence

    def update(self, **changes: Any) -> None:
        """Reports the current state with these fields changed."""
        with self._lock:
            current = self._current
        self.report(replace(current, **changes))

    def document(self, *, history: bool = False) -> dict[str, Any]:
        """The current state as JSON; with ``history`` its curves: lists of [step, value] by name."""
        document = asdict(self.current)
        return {**document, "history": self.history.curves()} if history else document

    def page(self) -> str:
        """The current state as a page for a browser."""
        return page.render(asdict(self.current), self.history.curves())

    def leave(self) -> None:
        """Writes page, curves and series beside the state, for the step that goes on answering in this Pod."""
        self._write(self._path.with_name(HISTORY), json.dumps(self.history.curves()))
        pushing = replace(self.current, phase="Pushing")
        self._write(self._path.with_name(PAGE), page.render(asdict(pushing), self.history.curves()))
        self._write(self._path.with_name(SERIES), metrics.text(pushing))

    def _write(self, path: Path, text: str) -> None:
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(text)
            partial.chmod(0o644)
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            if self._written:
                log.warning("the progress cannot be written to %s: %s", path, error.strerror or error)
            self._written = False
        else:
            self._written = True


def termination_message(progress: Progress) -> str:
    """The sentence (or the last state as JSON) for /dev/termination-log, at most 4 KiB of UTF-8."""
    text = f"{progress.reason}: {progress.message}" if progress.phase == "Failed" else json.dumps(asdict(progress))
    return text.encode()[:TERMINATION_LIMIT].decode(errors="ignore")


def _starts_before(path: Path) -> int:
    """How often a process has reported to this file before."""
    try:
        return int(json.loads(path.read_text()).get("restarts", 0)) + 1
    except (OSError, ValueError, AttributeError, TypeError):
        return 0
