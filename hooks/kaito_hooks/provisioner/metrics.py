"""Prometheus series of the provisioner: Karpenter's names where it has them, else ``kaito_provisioner_``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kaito_hooks.api.claim import ENCODINGS, STEPS, Claim
from kaito_hooks.provisioner import errors

_MINUTES = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
_DAYS = (300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 86400.0, 3 * 86400.0, 7 * 86400.0, 30 * 86400.0)
PHASES = {"launched": "Launching", "registered": "Registering", "initialized": "Initializing"}
"""Where a claim is as long as that step of it is not done; then it is Ready or NotReady, in the end Terminating."""
_AFTER = ("Ready", "NotReady", "Terminating")
_CALLS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ProvisionerMetrics:
    """The series, registered in the process's registry. Labels: kind is Machine or NodeClaim."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.claims_created = self._counter("karpenter_nodeclaims_created", "Machines ordered for a claim.", "kind")
        self.claims_terminated = self._counter("karpenter_nodeclaims_terminated", "Claims that are gone.", "kind")
        self.claims_disrupted = self._counter(
            "karpenter_nodeclaims_disrupted", "Claims that the provisioner deleted.", "kind", "reason"
        )
        self.claims_unhealthy = self._counter(
            "karpenter_nodeclaims_unhealthy_disrupted", "Claims deleted because their Node was not Ready.", "kind"
        )
        self.claim_termination = self._histogram(
            "karpenter_nodeclaims_termination_duration_seconds",
            "From deletion to the finalizer's end.",
            _MINUTES,
            "kind",
        )
        self.instance_termination = self._histogram(
            "karpenter_nodeclaims_instance_termination_duration_seconds",
            "From the request to delete a machine until it was gone.",
            _MINUTES,
            "kind",
        )
        self.nodes_created = self._counter("karpenter_nodes_created", "Nodes that registered.")
        self.nodes_terminated = self._counter("karpenter_nodes_terminated", "Nodes given back.")
        self.nodes_drained = self._counter("karpenter_nodes_drained", "Nodes drained to the end.")
        self.node_termination = self._histogram(
            "karpenter_nodes_termination_duration_seconds", "From a Node's deletion to its finalizer's end.", _MINUTES
        )
        self.node_lifetime = self._histogram(
            "karpenter_nodes_lifetime_duration_seconds", "From a Node's creation to its finalizer's end.", _DAYS
        )
        self.pods_drained = self._counter("karpenter_pods_drained", "Pods that were evicted or deleted.", "reason")
        self.evictions = self._counter("karpenter_nodes_eviction_requests", "Eviction requests.", "code")
        self.cloud_duration = self._histogram(
            "karpenter_cloudprovider_duration_seconds", "Calls of the cloud provider.", _CALLS, "method", "provider"
        )
        self.cloud_errors = self._counter(
            "karpenter_cloudprovider_errors", "Refusals of the cloud provider.", "method", "provider", "error"
        )
        self.build_info = self._gauge("karpenter_build_info", "Always 1; the labels tell.", "version")
        self.launch_errors = self._counter("kaito_provisioner_launch_errors", "Refused launches.", "class")
        self.pools_failed = self._counter(
            "kaito_provisioner_pools_failed", "Agent pools deleted because their creation had failed.", "class"
        )
        self.arm_requests = self._counter("kaito_provisioner_arm_requests", "Requests to ARM.", "method", "code")
        self.arm_throttled = self._counter(
            "kaito_provisioner_arm_throttled_seconds", "Seconds for which ARM asked writes to wait."
        )
        self.pools = self._gauge("kaito_provisioner_pools", "Agent pools of ours at the last sweep.", "state")
        self.orphans = self._gauge(
            "kaito_provisioner_orphan_pools",
            "Agent pools of ours without a claim at the last sweep: they bill for nobody.",
        )
        self.orphans_deleted = self._counter(
            "kaito_provisioner_orphan_pools_deleted", "Agent pools deleted because their claim was gone."
        )
        self.drain_blocked = self._gauge(
            "kaito_provisioner_drain_blocked_seconds", "How long an eviction on that Node has been refused.", "node"
        )
        self.leader = self._gauge("kaito_provisioner_leader", "Whether this process leads.")
        # A series that begins with its first event hides that event from rate() and increase().
        for kind in ENCODINGS:
            for counter in (self.claims_created, self.claims_terminated, self.claims_unhealthy):
                counter.labels(kind)
        for reason in errors.reasons():
            self.launch_errors.labels(reason)
            self.pools_failed.labels(reason)

    def drained(self, node: str) -> None:
        """Nothing refuses to leave that Node any more, or it is gone."""
        with contextlib.suppress(KeyError):
            self.drain_blocked.remove(node)

    def _counter(self, name: str, text: str, *label_names: str) -> Counter:
        return Counter(name, text, label_names, registry=self._registry)

    def _gauge(self, name: str, text: str, *label_names: str) -> Gauge:
        return Gauge(name, text, label_names, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *label_names: str) -> Histogram:
        return Histogram(name, text, label_names, buckets=buckets, registry=self._registry)


class ClaimCensus(Collector):
    """Claims of ours per phase at a scrape; of the leader only, so that none counts twice. ``claims`` lists them."""

    def __init__(self, claims: Callable[[], Iterable[Claim]], *, leading: Callable[[], bool]) -> None:
        self._claims, self._leading = claims, leading

    def describe(self) -> list[Metric]:
        """The family without samples."""
        return [_claims_per_phase()]

    def collect(self) -> Iterator[Metric]:
        """One pass over the caches."""
        found = _claims_per_phase()
        if self._leading():
            counts = {(kind, phase): 0 for kind in ENCODINGS for phase in (*PHASES.values(), *_AFTER)}
            for claim in self._claims():
                counts[claim.kind, _phase(claim)] += 1
            for labels, count in counts.items():
                found.add_metric(labels, count)
        yield found


def _claims_per_phase() -> GaugeMetricFamily:
    return GaugeMetricFamily("kaito_provisioner_claims", "Claims of ours.", labels=["kind", "phase"])


def _phase(claim: Claim) -> str:
    if claim.deleting:
        return "Terminating"
    waiting = next((step for step in STEPS if not claim.steps[step].done), None)
    return PHASES[waiting] if waiting is not None else "Ready" if claim.ready else "NotReady"
