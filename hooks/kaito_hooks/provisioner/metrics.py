"""Prometheus series of the provisioner: Karpenter's names where it has them, else ``kaito_provisioner_``."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_MINUTES = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
_DAYS = (300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 86400.0, 3 * 86400.0, 7 * 86400.0, 30 * 86400.0)
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
        self.arm_requests = self._counter("kaito_provisioner_arm_requests", "Requests to ARM.", "method", "code")
        self.arm_throttled = self._counter(
            "kaito_provisioner_arm_throttled_seconds", "Seconds for which ARM asked writes to wait."
        )
        self.pools = self._gauge("kaito_provisioner_pools", "Agent pools of ours at the last sweep.", "state")
        self.orphans_deleted = self._counter(
            "kaito_provisioner_orphan_pools_deleted", "Agent pools deleted because their claim was gone."
        )
        self.drain_blocked = self._gauge(
            "kaito_provisioner_drain_blocked_seconds", "How long an eviction on that Node has been refused.", "node"
        )
        self.leader = self._gauge("kaito_provisioner_leader", "Whether this process leads.")

    def _counter(self, name: str, text: str, *label_names: str) -> Counter:
        return Counter(name, text, label_names, registry=self._registry)

    def _gauge(self, name: str, text: str, *label_names: str) -> Gauge:
        return Gauge(name, text, label_names, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *label_names: str) -> Histogram:
        return Histogram(name, text, label_names, buckets=buckets, registry=self._registry)
