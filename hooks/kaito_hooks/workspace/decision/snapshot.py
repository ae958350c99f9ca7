"""What ``plan`` decides upon: one Workspace and everything around it, at one moment, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kaito_hooks.api.catalog import Catalog
from kaito_hooks.api.claim import Claim
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.purchases.history import Purchases


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server refused a write for good; it is tried again at ``retry_at``."""

    message: str
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class Memory:
    """What this process remembers of a Workspace between reconciles; losing it costs a retry, never a node.

    ``labelled``: when we labelled a Node. ``refusals``: by what ``refusals`` calls them. ``salts``: how often a slot's
    claim name was found to belong to somebody else. ``settled``: a child's fingerprints after a write that the API
    server changed. ``superseded``: resourceVersions of the Workspace that our last writes replaced. ``pull_errors``: by
    Pod uid and container, why its image cannot be pulled. ``job_failures``: by Job uid, what last failed in its Pods,
    which go with it. ``idle_since``: as ``status.idleSince``.
    """

    purchases: Purchases = field(default_factory=Purchases)
    labelled: Mapping[str, datetime] = field(default_factory=dict)
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    salts: Mapping[int, int] = field(default_factory=dict)
    settled: Mapping[str, str] = field(default_factory=dict)
    superseded: frozenset[str] = frozenset()
    pull_errors: Mapping[str, str] = field(default_factory=dict)
    job_failures: Mapping[str, str] = field(default_factory=dict)
    idle_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """Another Workspace that lists a Node in its workerNodes; tenants order by age."""

    creation_timestamp: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class TuningConfig:
    """The ConfigMap that a tuning Job would use, by name, or its ``template`` in the release's namespace."""

    name: str
    found: Obj | None = None
    template: Obj | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The world of one Workspace.

    ``nodes``: Nodes whose labels match, and those that it uses or that its claims name. ``claims``: Machines and
    NodeClaims with its two workspace labels; ``claim_warnings``: by claim uid, what Events say of them. ``children``:
    by ``Kind/name``. ``pods``: with its label, in its namespace; ``pod_warnings``: by Pod uid, what the kubelet says of
    a Pod that does not start; ``pull_secrets``: by Pod uid, what it says of Secrets for images that it does not find;
    ``pod_refusals``: by uid of a Job or StatefulSet, why it has no Pod; ``servers``: by Pod uid, what one that runs and
    is not ready says. ``check_jobs`` and ``check_pods``: those that look at a tuning before a node is bought, which are
    neither among the children nor among the Pods. ``claims_gone``: for a Workspace that goes, a fresh list (no cache)
    held no claim of it.
    """

    now: datetime
    settings: Settings
    workspace: Workspace
    catalog: Catalog | None = None
    catalog_problem: str = ""
    nodes: tuple[Obj, ...] = ()
    tenants: Mapping[str, tuple[Tenant, ...]] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    claim_warnings: Mapping[str, str] = field(default_factory=dict)
    claims_gone: bool = False
    served_claim_kinds: frozenset[str] = frozenset({"Machine", "NodeClaim"})
    children: Mapping[str, Obj] = field(default_factory=dict)
    revisions: tuple[Obj, ...] = ()
    pods: tuple[Obj, ...] = ()
    pod_warnings: Mapping[str, str] = field(default_factory=dict)
    pull_secrets: Mapping[str, str] = field(default_factory=dict)
    pod_refusals: Mapping[str, str] = field(default_factory=dict)
    servers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    check_jobs: tuple[Obj, ...] = ()
    check_pods: tuple[Obj, ...] = ()
    tuning_config: TuningConfig | None = None
    tuning_progress: Mapping[str, Any] | None = None
    memory: Memory = field(default_factory=Memory)
