"""The job's Prometheus series, prefix ``kaito_tuning_``, read from the current Progress at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from kaito_tuning.progress.state import PHASES, Progress

_GAUGES = {
    "loss": ("loss", "Mean loss of the last logging interval."),
    "evalLoss": ("eval_loss", "Loss on the rows that were held back."),
    "baseEvalLoss": ("base_eval_loss", "The base model's loss on the rows that were held back."),
    "perplexity": ("perplexity", "exp of the evaluation's loss."),
    "learningRate": ("learning_rate", "The optimizer's learning rate."),
    "gradNorm": ("grad_norm", "Norm of the gradient before clipping."),
    "meanTokenAccuracy": ("mean_token_accuracy", "Share of the trained tokens that the model would choose."),
    "tokensPerSecond": ("tokens_per_second", "Tokens trained in a second, of late."),
    "peakGPUMemoryBytes": ("peak_gpu_memory_bytes", "The most memory that tensors took on one GPU."),
}

_SPEED, _AT_SPEED = "tokensPerSecond", ("Training", "Evaluating")
"""What is true only while a model trains; other values stay as they were last measured."""


class ProgressCollector(Collector):
    """step, total_steps, epoch, phase, restarts_total, and what was measured so far."""

    def __init__(self, current: Callable[[], Progress]) -> None:
        self._current = current

    def collect(self) -> Iterator[Metric]:
        """One sample of each series that has a value; of ``phase`` one for each, 1 for the current."""
        progress = self._current()
        yield _gauge("step", "Optimizer steps done.", progress.currentStep)
        yield _gauge("total_steps", "Optimizer steps of the job.", progress.totalSteps)
        yield _gauge("epoch", "Passes over the data done.", progress.epoch)
        phases = GaugeMetricFamily("kaito_tuning_phase", "1 for the current phase.", labels=["phase"])
        for phase in PHASES:
            phases.add_metric([phase], float(phase == progress.phase))
        yield phases
        yield _counter("restarts", "Earlier starts of this job on the same volume.", progress.restarts)
        for ours, (name, says) in _GAUGES.items():
            if ours in progress.metrics and (ours != _SPEED or progress.phase in _AT_SPEED):
                yield _gauge(name, says, progress.metrics[ours])
        if "tokens" in progress.metrics:
            yield _counter("tokens", "Tokens trained on.", progress.metrics["tokens"])
        if progress.checkpointSeconds is not None:
            yield _gauge(
                "checkpoint_seconds", "How long writing the newest checkpoint took.", progress.checkpointSeconds
            )
        if progress.estimatedRemainingSeconds is not None:
            yield _gauge("remaining_seconds", "Estimated time to the last step.", progress.estimatedRemainingSeconds)


def text(progress: Progress) -> str:
    """All series of one state, as Prometheus reads them."""
    registry = CollectorRegistry()
    registry.register(ProgressCollector(lambda: progress))
    return generate_latest(registry).decode()


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"kaito_tuning_{name}", says, value=value)


def _counter(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(f"kaito_tuning_{name}", says, value=value)
