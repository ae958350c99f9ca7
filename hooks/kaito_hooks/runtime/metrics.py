"""Prometheus series under the names that dashboards for controller-runtime and client-go expect.

https://book.kubebuilder.io/reference/metrics-reference
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

_RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60)
_QUEUE_BUCKETS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 60, 600)


class Metrics:
    """One process's series. ``registry`` is the CollectorRegistry to which rooms add their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.reconcile_total = self._counter(
            "controller_runtime_reconcile_total", "Reconciliations per controller and result.", "controller", "result"
        )
        self.reconcile_errors = self._counter(
            "controller_runtime_reconcile_errors_total", "Reconciliations that failed.", "controller"
        )
        self.reconcile_panics = self._counter(
            "controller_runtime_reconcile_panics_total",
            "Reconciliations that failed with an exception that is not an answer of the API server.",
            "controller",
        )
        self.reconcile_time = self._histogram(
            "controller_runtime_reconcile_time_seconds",
            "Length of reconciliations.",
            "controller",
            buckets=_RECONCILE_BUCKETS,
        )
        self.workers = self._gauge(
            "controller_runtime_max_concurrent_reconciles", "Workers of the controller.", "controller"
        )
        self.active_workers = self._gauge("controller_runtime_active_workers", "Workers that reconcile.", "controller")
        self.queue_depth = self._gauge("workqueue_depth", "Keys that wait for a worker.", "name", "controller")
        self.queue_adds = self._counter("workqueue_adds_total", "Keys added.", "name", "controller")
        self.queue_retries = self._counter(
            "workqueue_retries_total", "Keys added after a failure.", "name", "controller"
        )
        self.queue_duration = self._histogram(
            "workqueue_queue_duration_seconds",
            "How long a key waits for a worker.",
            "name",
            "controller",
            buckets=_QUEUE_BUCKETS,
        )
        self.work_duration = self._histogram(
            "workqueue_work_duration_seconds",
            "How long a worker holds a key.",
            "name",
            "controller",
            buckets=_QUEUE_BUCKETS,
        )
        self.unfinished_work = self._gauge(
            "workqueue_unfinished_work_seconds", "Seconds of work in progress, summed.", "name", "controller"
        )
        self.longest_running = self._gauge(
            "workqueue_longest_running_processor_seconds",
            "Seconds of the longest work in progress.",
            "name",
            "controller",
        )
        self.requests = self._counter(
            "rest_client_requests_total",
            'Requests to the API server; code "<error>" is one without an answer.',
            "code",
            "method",
            "host",
        )
        self.leader = self._gauge("leader_election_master_status", "Whether this process leads.", "name")
        self.informer_lists = self._counter("reflector_lists_total", "Lists of the informer.", "name")
        self.informer_watches = self._counter("reflector_watches_total", "Watches that the informer opened.", "name")
        self.informer_failures = self._counter(
            "reflector_failures_total", "Lists and watches that failed or broke off.", "name"
        )
        self.informer_events = self._counter(
            "reflector_watch_events_total", "Watch events received, bookmarks included.", "name"
        )
        self.informer_objects = self._gauge("reflector_cached_objects", "Objects in the informer's cache.", "name")
        self.events_dropped = self._counter(
            "kaito_events_dropped_total", "Kubernetes Events that were not written.", "component"
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def observe_request(self, method: str, status: int, host: str) -> None:
        """Counts one request to the API server; ``status`` 0 means no answer."""
        self.requests.labels(str(status) if status else "<error>", method, host.split("://", 1)[-1]).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)
