"""Every series that our programs export, read from their registries."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from kaito_hooks.provisioner.metrics import ClaimCensus, ProvisionerMetrics
from kaito_hooks.runtime import Metrics, SystemClock
from kaito_hooks.workspace.metrics import Census, WorkspaceMetrics
from kaito_serving.http.metrics import ServingMetrics
from kaito_tuning.progress import Progress
from kaito_tuning.progress.metrics import ProgressCollector

STANDARD = ("python_", "process_")
"""Beginnings of what every Python program exports."""


@dataclass(frozen=True, slots=True)
class Series:
    """``name`` as Prometheus stores it; of a histogram without _bucket, _sum and _count. ``labels``: of its samples,
    none where it has no sample yet."""

    name: str
    type: str
    help: str
    labels: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def stored(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.type == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


class _Everything(dict[str, float]):
    """Measurements of every name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> float:
        return 1.0


def _read(registry: CollectorRegistry) -> tuple[Series, ...]:
    found = {
        family.name: Series(
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            family.documentation,
            frozenset(label for sample in family.samples for label in sample.labels) - {"le"},
        )
        for family in registry.collect()
        if not family.name.startswith(STANDARD)
    }
    return tuple(found[name] for name in sorted(found))


def runtime() -> tuple[Series, ...]:
    """Of both controllers."""
    return _read(Metrics().registry)


def controller() -> tuple[Series, ...]:
    """Of the Workspace controller alone."""
    registry = CollectorRegistry()
    WorkspaceMetrics(registry)
    registry.register(Census(workspaces=list, claims=list, leading=lambda: True, clock=SystemClock()))
    return _read(registry)


def provisioner() -> tuple[Series, ...]:
    """Of gpu-provisioner alone."""
    registry = CollectorRegistry()
    ProvisionerMetrics(registry)
    registry.register(ClaimCensus(list, leading=lambda: True))
    return _read(registry)


def serving() -> tuple[Series, ...]:
    """Of a model's server."""
    return _read(ServingMetrics(model="m", version="1").registry)


def tuning() -> tuple[Series, ...]:
    """Of a tuning job that has measured everything."""
    everything = Progress(phase="Training", metrics=_Everything(), checkpointSeconds=1.0, estimatedRemainingSeconds=1)
    registry = CollectorRegistry()
    registry.register(ProgressCollector(lambda: everything))
    return _read(registry)
