"""The Prometheus series of one model process; names begin with kaito_serving_."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kaito_serving.engine.base import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_P = "kaito_serving_"


class ServingMetrics:
    """All series, in a registry of their own."""

    def __init__(self, *, model: str, version: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._requests = Counter(
            _P + "requests", "Requests answered", ["endpoint", "model", "code"], registry=self.registry
        )
        self._seconds = Histogram(
            _P + "request_seconds", "Time to the whole answer", ["endpoint"], buckets=_SECONDS, registry=self.registry
        )
        self._rejected = Counter(_P + "rejected", "Requests not taken", ["reason"], registry=self.registry)
        self._adapter_requests = Counter(
            _P + "adapter_requests", "Requests that named an adapter", ["adapter"], registry=self.registry
        )
        self.prompt_tokens = Counter(_P + "prompt_tokens", "Tokens of prompts", registry=self.registry)
        self.generated_tokens = Counter(_P + "generated_tokens", "Tokens generated", registry=self.registry)
        self.lane_b_seconds = Histogram(
            _P + "lane_b_seconds",
            "Time that a request with special settings held the batch",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.model_load_seconds = Gauge(
            _P + "model_load_seconds", "Time that loading the model took", registry=self.registry
        )
        Gauge(_P + "build_info", "Always 1", ["version"], registry=self.registry).labels(version).set(1)

    def answered(self, *, endpoint: str, code: int, seconds: float, adapters: Iterable[str] = ()) -> None:
        """Count one request; `adapters` are known names only, so that clients cannot invent series."""
        self._requests.labels(endpoint, self._model, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        for adapter in adapters:
            self._adapter_requests.labels(adapter).inc()

    def rejected(self, reason: str) -> None:
        """Count a request that was not taken: queue_full, timeout, unavailable."""
        self._rejected.labels(reason).inc()

    def watch(self, engine: Engine) -> None:
        """Report the engine's state with every scrape."""
        self.registry.register(_EngineCollector(engine))

    def text(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """One reading of the engine."""
        stats = self._engine.stats()
        yield GaugeMetricFamily(_P + "requests_running", "Requests in the batch", value=stats.running)
        yield GaugeMetricFamily(_P + "requests_waiting", "Requests that wait", value=stats.waiting)
        ratio = stats.kv_used / stats.kv_total if stats.kv_total else 0.0
        yield GaugeMetricFamily(_P + "kv_cache_usage_ratio", "Used part of the key-value cache", value=ratio)
        yield GaugeMetricFamily(_P + "adapters_loaded", "Loaded adapters", value=len(self._engine.adapters))
        yield CounterMetricFamily(_P + "engine_restarts", "Restarts of the generation loop", value=stats.restarts)
