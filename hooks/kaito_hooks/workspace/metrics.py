"""The controller's Prometheus series: what it did, and how its Workspaces and claims stand.

No series names a Workspace: ``kubectl get workspace`` tells of one, these tell of all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kaito_hooks.api.claim import ENCODINGS, Claim
from kaito_hooks.api.conditions import find
from kaito_hooks.runtime import Clock, Obj, parse_time
from kaito_hooks.workspace.status import conditions, startup

_START = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0, 900.0, 1800.0, 3600.0)
CONDITIONS = (
    conditions.WORKSPACE_READY,
    conditions.RESOURCE_READY,
    conditions.INFERENCE_READY,
    conditions.JOB_STARTED,
    conditions.WORKLOAD_UP_TO_DATE,
)
"""Those that are counted; nobody else's condition makes a series."""
STATUSES = ("True", "False", "Unknown")
_REMEMBERED = 1000
"""Claims that were given back last."""
CLAIM_PHASES = ("Pending", "Ready", "Deleting")


class WorkspaceMetrics:
    """What this process did since it started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.claims_created = Counter(
            "kaito_claims_created", "Machines and NodeClaims made: nodes asked for.", ["kind"], registry=registry
        )
        self._claims_released = Counter(
            "kaito_claims_released", "Machines and NodeClaims given back.", ["kind"], registry=registry
        )
        self.claims_lost = Counter(
            "kaito_claims_lost", "Machines and NodeClaims that went without being given back.", registry=registry
        )
        for kind in ENCODINGS:
            self.claims_created.labels(kind)
            self._claims_released.labels(kind)
        self._released: deque[str] = deque(maxlen=_REMEMBERED)
        self._to_claim = self._histogram(registry, "time_to_claim", "From a Workspace's creation to its last claim.")
        self._to_node = self._histogram(registry, "time_to_node", "From a Workspace's creation to its last node.")
        self._to_ready = self._histogram(
            registry, "time_to_ready", "From a Workspace's creation to the end of its first start."
        )
        self._phase = Histogram(
            "kaito_workspace_startup_phase_seconds",
            "Phases of first starts, as status.startup tells them.",
            ["phase"],
            buckets=_START,
            registry=registry,
        )
        for phase in startup.WORDS:
            self._phase.labels(phase)

    def released(self, kind: str, uid: str) -> None:
        """The deletion of a claim was asked for; one counts once, also if a cache that is behind has it asked again."""
        if uid not in self._released:
            self._released.append(uid)
            self._claims_released.labels(kind).inc()

    def wrote(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """A status was written; the first that tells a whole start counts as one."""
        told = after.get("startup")
        if not told or not startup.is_over(told) or startup.is_over(before.get("startup")):
            return
        seconds = {phase["name"]: phase["seconds"] for phase in told["phases"]}
        for name, took in seconds.items():
            self._phase.labels(name).observe(took)
        if startup.BOUGHT in seconds:
            self._to_claim.observe(seconds[startup.BOUGHT])
        self._to_node.observe(seconds.get(startup.BOUGHT, 0) + seconds.get(startup.NODE_READY, 0))
        self._to_ready.observe(told["totalSeconds"])

    @staticmethod
    def _histogram(registry: CollectorRegistry, name: str, text: str) -> Histogram:
        return Histogram(f"kaito_workspace_{name}_seconds", text, buckets=_START, registry=registry)


class Census(Collector):
    """Workspaces and claims as the caches have them at a scrape; of the leader only, so that none counts twice.

    ``workspaces`` and ``claims`` list them.
    """

    def __init__(
        self,
        *,
        workspaces: Callable[[], Iterable[Obj]],
        claims: Callable[[], Iterable[Obj]],
        leading: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._workspaces, self._claims = workspaces, claims
        self._leading, self._clock = leading, clock

    def describe(self) -> list[Metric]:
        """The families without samples."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """One pass over the caches."""
        found = _families()
        if self._leading():
            now = self._clock.now()
            _count_workspaces(found, list(self._workspaces()), now)
            _count_claims(found, list(self._claims()), now)
        yield from found.values()


def _families() -> dict[str, GaugeMetricFamily]:
    described = {
        "kaito_workspaces": (
            "Workspaces per condition and its status; every one counts once under WorkspaceReady.",
            ["condition", "status"],
        ),
        "kaito_workspaces_longest_unready_seconds": (
            "How long the Workspace has not been ready that waits longest; type is inference or tuning.",
            ["type"],
        ),
        "kaito_claims": ("Machines and NodeClaims of Workspaces.", ["kind", "phase"]),
        "kaito_claims_longest_pending_seconds": ("Age of the oldest claim that never became a node.", ["kind"]),
    }
    return {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in described.items()}


def _count_workspaces(found: Mapping[str, GaugeMetricFamily], workspaces: Iterable[Obj], now: datetime) -> None:
    counts = {(kind, status): 0 for kind in CONDITIONS for status in STATUSES}
    longest = {"inference": 0.0, "tuning": 0.0}
    for workspace in workspaces:
        told = (workspace.get("status") or {}).get("conditions") or ()
        for kind in CONDITIONS:
            condition = find(told, kind)
            if condition is not None or kind == conditions.WORKSPACE_READY:
                status = (condition or {}).get("status")
                counts[kind, status if status in STATUSES else "Unknown"] += 1
        since = _unready_since(workspace)
        if since is not None:
            part = "tuning" if workspace.get("tuning") else "inference"
            longest[part] = max(longest[part], (now - since).total_seconds())
    for labels, count in counts.items():
        found["kaito_workspaces"].add_metric(labels, count)
    for part, seconds in longest.items():
        found["kaito_workspaces_longest_unready_seconds"].add_metric([part], seconds)


def _unready_since(workspace: Obj) -> datetime | None:
    """None: it is ready, or it goes."""
    metadata = workspace["metadata"]
    ready = find((workspace.get("status") or {}).get("conditions"), conditions.WORKSPACE_READY) or {}
    if metadata.get("deletionTimestamp") or ready.get("status") == "True":
        return None
    since = ready.get("lastTransitionTime") or metadata.get("creationTimestamp")
    return parse_time(since) if since else None


def _count_claims(found: Mapping[str, GaugeMetricFamily], claims: Iterable[Obj], now: datetime) -> None:
    counts = {(kind, phase): 0 for kind in ENCODINGS for phase in CLAIM_PHASES}
    longest = dict.fromkeys(ENCODINGS, 0.0)
    for claim in map(Claim.read, claims):
        phase = "Deleting" if claim.deleting else "Ready" if claim.ready else "Pending"
        counts[claim.kind, phase] += 1
        # What a claim waits for that had its node is no purchase.
        if phase == "Pending" and not claim.steps["initialized"].done and claim.creation_timestamp is not None:
            longest[claim.kind] = max(longest[claim.kind], (now - claim.creation_timestamp).total_seconds())
    for labels, count in counts.items():
        found["kaito_claims"].add_metric(labels, count)
    for kind, seconds in longest.items():
        found["kaito_claims_longest_pending_seconds"].add_metric([kind], seconds)
