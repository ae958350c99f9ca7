"""How far the job is: written atomically for the next step and the next start, served on /progress while it runs.

The fields follow Kubeflow's TrainJob ``trainerStatus``. The last state also goes into the container's termination
message (at most 4 KiB), so that a reason outlives the Pod's log.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Phase = Literal["Checking", "LoadingModel", "Training", "Evaluating", "Exporting", "Pushing", "Done", "Failed"]
TERMINATION_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    """One state of the job. Times are RFC 3339 UTC or seconds; loss is the mean over the last logging interval."""

    phase: Phase
    progressPercentage: int = 0
    currentStep: int = 0
    totalSteps: int = 0
    epoch: float = 0.0
    epochs: float = 0.0
    estimatedRemainingSeconds: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    message: str = ""
    lastUpdatedTime: str = ""


class ProgressFile:
    """The newest Progress, in memory and in a file that is replaced whole."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._lock = threading.Lock()
        self._current = Progress(phase="Checking")

    @property
    def current(self) -> Progress:
        """The state last reported."""
        with self._lock:
            return self._current

    def report(self, progress: Progress) -> None:
        """Makes this the current state and writes it."""
        stamp = datetime.fromtimestamp(self._now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._lock:
            self._current = replace(progress, lastUpdatedTime=stamp)
            partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            partial.write_text(json.dumps(asdict(self._current)))
            partial.chmod(0o644)
            partial.replace(self._path)

    def update(self, **changes: Any) -> None:
        """Reports the current state with these fields changed."""
        self.report(replace(self.current, **changes))


def termination_message(progress: Progress) -> str:
    """The sentence (or the last state as JSON) for /dev/termination-log, at most 4 KiB of UTF-8."""
    text = f"{progress.reason}: {progress.message}" if progress.phase == "Failed" else json.dumps(asdict(progress))
    return text.encode()[:TERMINATION_LIMIT].decode(errors="ignore")
