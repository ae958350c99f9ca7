"""The Prometheus series of the server.

Those that any inference server has bear vLLM's names (https://docs.vllm.ai, Production Metrics), so that scalers,
gateways and dashboards made for it work unmodified; ours begin with kaito_serving_.

Several replicas are told as one: where PROMETHEUS_MULTIPROC_DIR names a folder before this module is imported, every
process keeps its values in files there (prometheus_client's multiprocess mode), and any of them gives the sums of all.
Counters keep what replicas counted that have died; gauges forget them once `process_died` was called.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from kaito_serving.engine.base import Chunk, Engine, EngineStats, Limits, Request, State

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
_P = "kaito_serving_"
_V = "vllm:"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
REASONS = ("queue_full", "timeout", "unavailable")
"""Why a request is not taken."""


def process_died(pid: int) -> None:
    """Forget the gauges of a process that shared this one's folder."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]


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
        for reason in REASONS:
            self._rejected.labels(reason)
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
        self.model_load_seconds = self._gauge(_P + "model_load_seconds", "Time that loading the model took", "livemax")
        self._gauge(_P + "build_info", "Always 1", "livemax", "version").labels(version).set(1)
        self._running = self._gauge(_V + "num_requests_running", "Requests in the batch", "livesum", "model_name")
        self._waiting = self._gauge(_V + "num_requests_waiting", "Requests that wait", "livesum", "model_name")
        self._kv_cache = self._gauge(
            _V + "kv_cache_usage_perc",
            "Used part of the key-value cache, 1 = all; that of the fullest replica",
            "livemax",
            "model_name",
        )
        self._lora = self._gauge(
            _V + "lora_requests_info",
            "1 for the adapters that can be asked for",
            "livemax",
            "model_name",
            "running_lora_adapters",
        )
        self._state = self._gauge(_P + "state", "Replicas of which the engine is in this state", "livesum", "state")
        self._restarts = Counter(_P + "engine_restarts", "Failed passes of the engine", registry=self.registry)
        self._engine: Engine | None = None
        self._adapters: str | None = None
        self._restarts_counted = 0

    def answered(self, *, endpoint: str, code: int, seconds: float, adapters: Iterable[str] = ()) -> None:
        """Count one request; `adapters` are known names only, so that clients cannot invent series."""
        self._requests.labels(endpoint, self.model, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        for adapter in adapters:
            self._adapter_requests.labels(adapter).inc()

    def rejected(self, reason: str) -> None:
        """Count a request that was not taken; ``reason`` is one of REASONS."""
        self._rejected.labels(reason).inc()

    def finished(self, reason: str) -> None:
        """Count an answer that came to its end: stop, length."""
        self._success.labels(self.model, reason).inc()

    def watch(self, engine: Engine) -> None:
        """Report this process' engine; what it says is read by `refresh`."""
        self._engine = engine
        self.refresh()

    def refresh(self) -> None:
        """Read the engine. Called with every request, and every second, so that another process can tell it, too."""
        engine = self._engine
        if engine is None:
            return
        stats = engine.stats()
        self._running.labels(self.model).set(stats.running)
        self._waiting.labels(self.model).set(stats.waiting)
        self._kv_cache.labels(self.model).set(stats.kv_used / stats.kv_total if stats.kv_total else 0.0)
        now = engine.state()
        for each in State:
            self._state.labels(each.value).set(float(each is now))
        self._restarts.inc(stats.restarts - self._restarts_counted)
        self._restarts_counted = stats.restarts
        adapters = ",".join(engine.adapters)
        if self._adapters is not None and adapters != self._adapters:
            self._lora.labels(self.model, self._adapters).set(0)  # files of several processes cannot lose a series
        self._lora.labels(self.model, adapters).set(1)
        self._adapters = adapters

    def text(self) -> bytes:
        """The exposition text, of all processes that share the folder."""
        self.refresh()
        if _FOLDER not in os.environ:
            return generate_latest(self.registry)
        everything = CollectorRegistry()
        MultiProcessCollector(everything)  # type: ignore[no-untyped-call]
        return generate_latest(everything)

    def _gauge(self, name: str, text: str, of_all: Literal["livesum", "livemax"], *labels: str) -> Gauge:
        return Gauge(name, text, labels, multiprocess_mode=of_all, registry=self.registry)

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
                    metrics.refresh()
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
            metrics.refresh()
