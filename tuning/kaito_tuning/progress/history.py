"""What was measured while training, kept small however long the run: curves for the page, the newest values, the pace.

Every curve keeps at most POINTS points. When one is full, neighbours are merged and from then on twice as many log
lines make one point, so that the whole run stays evenly covered. A run that goes on from a checkpoint overwrites the
points of the steps that it repeats.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

POINTS = 240
_RECENT = 10
# By the trainer's key: our name, and whether merged points are averaged (noise) or the newest stands for all.
_CURVES: Mapping[str, tuple[str, bool]] = {
    "loss": ("loss", True),
    "grad_norm": ("gradNorm", True),
    "learning_rate": ("learningRate", False),
    "eval_loss": ("evalLoss", False),
}
_LATEST: Mapping[str, str] = {
    "mean_token_accuracy": "meanTokenAccuracy",
    "num_tokens": "tokens",
    "base_eval_loss": "baseEvalLoss",
    "peak_gpu_memory_bytes": "peakGPUMemoryBytes",
}
_LARGEST_EXPONENT = 50.0

Curve = list[tuple[int, float]]


class Series:
    """Points (step, value) in ascending steps, at most ``limit`` and the one that is being gathered."""

    def __init__(self, *, averaged: bool, limit: int = POINTS) -> None:
        self._combine: Callable[[list[float]], float] = fmean if averaged else _newest
        self._limit = limit
        self._stride = 1
        self._points: Curve = []
        self._step = 0
        self._gathered: list[float] = []

    def add(self, step: int, value: float) -> None:
        """Appends a point; points of this step and later ones are forgotten."""
        if self._gathered and step <= self._step:
            self._gathered.clear()
        while self._points and self._points[-1][0] >= step:
            self._points.pop()
        self._step = step
        self._gathered.append(value)
        if len(self._gathered) < self._stride:
            return
        self._points.append((step, self._combine(self._gathered)))
        self._gathered.clear()
        if len(self._points) >= self._limit:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [(late, self._combine([first, second])) for (_, first), (late, second) in pairs]
            self._stride *= 2

    def points(self) -> Curve:
        """All of them, the newest last."""
        return [*self._points, (self._step, self._combine(self._gathered))] if self._gathered else [*self._points]


class History:
    """Filled by the training through ``on_log``, ``on_step`` and ``on_checkpoint``, read by other threads."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._curves = {ours: Series(averaged=averaged) for ours, averaged in _CURVES.values()}
        self._latest: dict[str, float] = {}
        self._tokens: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        self._steps = Series(averaged=False)
        self._checkpoint: tuple[int, float] | None = None

    def on_log(self, step: int, entry: Mapping[str, Any], *, replayed: bool = False) -> None:
        """One log line of the trainer (its ``log_history``), at ``step``; values that are not finite are left out.

        Besides the trainer's own keys: ``base_eval_loss``, the evaluation's loss without the adapter, and
        ``peak_gpu_memory_bytes``. ``replayed``: a line of an earlier process, which tells nothing about this one's
        speed.
        """
        numbers = {key: float(value) for key, value in entry.items() if _is_finite(value)}
        with self._lock:
            for key, (ours, _) in _CURVES.items():
                if key in numbers:
                    self._curves[ours].add(step, numbers[key])
                    self._latest[ours] = numbers[key]
            self._latest |= {ours: numbers[key] for key, ours in _LATEST.items() if key in numbers}
            if "eval_loss" in numbers:
                self._latest["perplexity"] = math.exp(min(numbers["eval_loss"], _LARGEST_EXPONENT))
            if "num_tokens" in numbers and not replayed:
                self._measure_tokens(numbers["num_tokens"])

    def on_step(self, step: int) -> None:
        """An optimizer step has ended; called first with the step that the training begins or continues at."""
        with self._lock:
            self._steps.add(step, self._monotonic())

    def on_checkpoint(self, step: int, seconds: float) -> None:
        """A checkpoint is complete on disk; ``seconds``: how long it took to write."""
        with self._lock:
            self._checkpoint = (step, seconds)

    def remaining_seconds(self, total: int) -> int | None:
        """Seconds until step ``total`` at the pace of the newer half of this process's steps; None before the first.

        Evaluations and checkpoints count as they come; a slow first step (kernels are compiled, caches filled) is
        forgotten soon.
        """
        with self._lock:
            times = self._steps.points()
        if len(times) < 2:
            return None
        last, now = times[-1]
        middle = times[0][0] + (last - times[0][0]) // 2
        step, then = max((point for point in times[:-1] if point[0] <= middle), default=times[0])
        return max(0, round((total - last) * (now - then) / (last - step)))

    def metrics(self) -> dict[str, float]:
        """The newest values by their names in /progress."""
        with self._lock:
            return dict(self._latest)

    def checkpoint(self) -> tuple[int, float] | None:
        """Step and seconds of the newest checkpoint."""
        with self._lock:
            return self._checkpoint

    def curves(self) -> dict[str, Curve]:
        """Every curve that has a point, by its name in /progress?history=1."""
        with self._lock:
            return {name: points for name, series in self._curves.items() if (points := series.points())}

    def _measure_tokens(self, tokens: float) -> None:
        if self._tokens and tokens < self._tokens[-1][0]:
            self._tokens.clear()
        self._tokens.append((tokens, self._monotonic()))
        (first, then), (last, now) = self._tokens[0], self._tokens[-1]
        if now > then and last > first:
            self._latest["tokensPerSecond"] = round((last - first) / (now - then), 1)


def _newest(values: list[float]) -> float:
    return values[-1]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
