"""The Prometheus series of one model process.

Those that any inference server has bear vLLM's names (https://docs.vllm.ai, Production Metrics), so that scalers,
gateways and dashboards made for it work unmodified; ours begin with kaito_serving_.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kaito_serving.engine.base import Chunk, Engine, EngineStats, Limits, Request, State

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
_P = "kaito_serving_"
_V = "vllm:"


class ServingMetrics:
    """All series, in a registry of their own. `model` is the name that clients use."""

    def __init__(self, *, model: str, version: str) -> None:
        self.registry = CollectorRegistry()
        self.model = model
        self._requests = Counter(
            _P + "requests", "Requests answered", ["endpoint", "model", "code"], registry=self.registry
        )
        self._seconds = Histogram(
            _P + "request_seconds", "Time to the answer", ["endpoint"], buckets=_SECONDS, registry=self.registry
        )
        self._rejected = Counter(_P + "rejected", "Requests not taken", ["reason"], registry=self.registry)
        self._adapter_requests = Counter(
            _P + "adapter_requests", "Requests that named an adapter", ["adapter"], registry=self.registry
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.generated_tokens = self._counter("generation_tokens", "Tokens generated")
        self.time_to_first_token = self._histogram("time_to_first_token_seconds", "Time to the first token", _SECONDS)
        self.inter_token = self._histogram("inter_token_latency_seconds", "Time from token to token", _TOKEN_SECONDS)
        self.latency = self._histogram("e2e_request_latency_seconds", "Time from request to last token", _SECONDS)
        self.queue_time = self._histogram("request_queue_time_seconds", "Time that a request waited", _SECONDS)
        self._success = Counter(
            _V + "request_success",
            "Requests answered to their end",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self.model_load_seconds = Gauge(
            _P + "model_load_seconds", "Time that loading the model took", registry=self.registry
        )
        Gauge(_P + "build_info", "Always 1", ["version"], registry=self.registry).labels(version).set(1)

    def answered(self, *, endpoint: str, code: int, seconds: float, adapters: Iterable[str] = ()) -> None:
        """Count one request; `adapters` are known names only, so that clients cannot invent series."""
        self._requests.labels(endpoint, self.model, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        for adapter in adapters:
            self._adapter_requests.labels(adapter).inc()

    def rejected(self, reason: str) -> None:
        """Count a request that was not taken: queue_full, timeout, unavailable."""
        self._rejected.labels(reason).inc()

    def finished(self, reason: str) -> None:
        """Count an answer that came to its end: stop, length."""
        self._success.labels(self.model, reason).inc()

    def watch(self, engine: Engine) -> None:
        """Report the engine's state with every scrape."""
        self.registry.register(_EngineCollector(engine, self.model))

    def text(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(_V + name, text, ["model_name"], registry=self.registry).labels(self.model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        whole = Histogram(_V + name, text, ["model_name"], buckets=buckets, registry=self.registry)
        return whole.labels(self.model)


class MeteredEngine:
    """An engine whose requests are measured; `monotonic` is the clock."""

    def __init__(self, engine: Engine, metrics: ServingMetrics, *, monotonic: Callable[[], float]) -> None:
        self._engine = engine
        self._metrics = metrics
        self._monotonic = monotonic
        self.start = engine.start
        self.stop = engine.stop
        self.load_adapter = engine.load_adapter
        self.unload_adapter = engine.unload_adapter
        self.check = engine.check

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        return self._engine.limits

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters, sorted."""
        return self._engine.adapters

    def state(self) -> State:
        """What the engine does at the moment."""
        return self._engine.state()

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        return self._engine.stats()

    async def submit(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Generate, and measure."""
        metrics = self._metrics
        began = last = self._monotonic()
        first = True
        chunks = self._engine.submit(request)
        try:
            async for chunk in chunks:
                now = self._monotonic()
                if first:
                    first = False
                    metrics.prompt_tokens.inc(len(request.prompt_ids))
                    metrics.time_to_first_token.observe(now - began)
                    metrics.queue_time.observe(chunk.queued)
                else:
                    metrics.inter_token.observe((now - last) / max(1, len(chunk.token_ids)))
                last = now
                metrics.generated_tokens.inc(len(chunk.token_ids))
                if chunk.finish_reason is not None:
                    metrics.latency.observe(now - began)
                    metrics.finished(chunk.finish_reason)
                yield chunk
        finally:
            await chunks.aclose()


class _EngineCollector(Collector):
    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    def collect(self) -> Iterable[Metric]:
        """One reading of the engine."""
        stats = self._engine.stats()
        ratio = stats.kv_used / stats.kv_total if stats.kv_total else 0.0
        yield self._gauge("num_requests_running", "Requests in the batch", stats.running)
        yield self._gauge("num_requests_waiting", "Requests that wait", stats.waiting)
        yield self._gauge("kv_cache_usage_perc", "Used part of the key-value cache, 1 = all", ratio)
        info = GaugeMetricFamily(
            _V + "lora_requests_info", "Adapters that can be asked for", labels=["model_name", "running_lora_adapters"]
        )
        info.add_metric([self._model, ",".join(self._engine.adapters)], 1)
        yield info
        state = GaugeMetricFamily(_P + "state", "1 for what the engine does at the moment", labels=["state"])
        for each in State:
            state.add_metric([each.value], float(self._engine.state() is each))
        yield state
        yield CounterMetricFamily(_P + "engine_restarts", "Failed passes of the engine", value=stats.restarts)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(_V + name, text, labels=["model_name"])
        gauge.add_metric([self._model], value)
        return gauge
