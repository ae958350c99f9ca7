"""One state of the job: what file, page, /progress and /metrics tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["Checking", "LoadingModel", "Training", "Evaluating", "Exporting", "Pushing", "Done", "Failed"]
PHASES: tuple[Phase, ...] = (
    "Checking", "LoadingModel", "Training", "Evaluating", "Exporting", "Pushing", "Done", "Failed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Progress:
    """One state of the job. Times are RFC 3339 UTC or seconds.

    ``metrics``: loss (mean over the last logging interval), evalLoss, baseEvalLoss (without the adapter), perplexity,
    learningRate, gradNorm, meanTokenAccuracy, tokens, tokensPerSecond, peakGPUMemoryBytes. ``curve``: the loss as a
    line of text. ``checkpointStep``: of the newest checkpoint, 0 without one. ``restarts``: earlier starts of this job
    on the same volume.
    """

    phase: Phase
    progressPercentage: int = 0
    currentStep: int = 0
    totalSteps: int = 0
    epoch: float = 0.0
    epochs: float = 0.0
    estimatedRemainingSeconds: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curve: str = ""
    checkpointStep: int = 0
    checkpointSeconds: float | None = None
    restarts: int = 0
    reason: str = ""
    message: str = ""
    lastUpdatedTime: str = ""
