"""The job's Prometheus series, prefix ``kaito_tuning_``, read from the current Progress at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kaito_tuning.progress import Progress

_METRICS = {"loss": "loss", "evalLoss": "eval_loss", "tokensPerSecond": "tokens_per_second"}


class ProgressCollector(Collector):
    """Gauges of step, total_steps, epoch, phase, loss, eval_loss and tokens_per_second."""

    def __init__(self, current: Callable[[], Progress]) -> None:
        self._current = current

    def collect(self) -> Iterator[Metric]:
        """One sample of each series that has a value."""
        progress = self._current()
        yield GaugeMetricFamily("kaito_tuning_step", "Optimizer steps done.", value=progress.currentStep)
        yield GaugeMetricFamily("kaito_tuning_total_steps", "Optimizer steps of the job.", value=progress.totalSteps)
        yield GaugeMetricFamily("kaito_tuning_epoch", "Passes over the data done.", value=progress.epoch)
        phase = GaugeMetricFamily("kaito_tuning_phase", "1 for the current phase.", labels=["phase"])
        phase.add_metric([progress.phase], 1)
        yield phase
        for ours, name in _METRICS.items():
            if ours in progress.metrics:
                yield GaugeMetricFamily(f"kaito_tuning_{name}", f"The last {ours}.", value=progress.metrics[ours])
