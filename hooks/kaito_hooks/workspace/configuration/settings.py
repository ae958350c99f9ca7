"""What the chart configures, as types; ``file.py`` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from typing import Any, Literal

from kaito_hooks.api.claim import NodeClassRef, Requirement
from kaito_hooks.api.version import VERSION
from kaito_hooks.runtime import LeaderElection

NodeAPISetting = Literal["Machine", "NodeClaim", "none"]
NODE_APIS: tuple[NodeAPISetting, ...] = ("Machine", "NodeClaim", "none")
Upgrade = Literal["manual", "rolling"]
UPGRADES: tuple[Upgrade, ...] = ("manual", "rolling")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
VARIANTS = ("cpu", "cu126", "vllm")
TUNING_VARIANTS = ("cpu", "cu126", "check")
"""``check`` has no torch: it looks at data before a node is bought."""


@dataclass(frozen=True, slots=True)
class Images:
    """Container images; ``serving`` and ``tuning`` by variant. ``variant`` "" follows the instance type's GPU."""

    hooks: str = f"ghcr.io/kaito-python/kaito-hooks:{VERSION}"
    serving: Mapping[str, str] = field(
        default_factory=lambda: {v: f"ghcr.io/kaito-python/kaito-serving:{VERSION}-{v}" for v in VARIANTS}
    )
    tuning: Mapping[str, str] = field(
        default_factory=lambda: {v: f"ghcr.io/kaito-python/kaito-tuning:{VERSION}-{v}" for v in TUNING_VARIANTS}
    )
    variant: str = ""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Registries:
    """How our puller reaches registries: mirrors by registry name, hosts without TLS, more trusted CAs (PEM)."""

    mirrors: Mapping[str, str] = field(default_factory=dict)
    plain_http: tuple[str, ...] = ()
    ca_bundle: str = ""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The proxies of init containers for http and https, and the hosts, domains and CIDRs that none is asked for."""

    http: str = ""
    https: str = ""
    no_proxy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Serving:
    """The server container: its resources besides the GPUs, extra arguments and environment."""

    resources: Mapping[str, Any] = field(default_factory=dict)
    extra_args: tuple[str, ...] = ()
    extra_env: tuple[Mapping[str, Any], ...] = ()


def _check_resources() -> Mapping[str, Any]:
    return {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "2Gi"}}


@dataclass(frozen=True, slots=True)
class Check:
    """The Job that looks at configuration and data before a node is bought.

    ``max_bytes``: of the data, what is more is not read. ``timeout``: seconds until it is skipped because no node has
    taken its Pod. ``deadline``: seconds that one of its steps may run.
    """

    enabled: bool = True
    max_bytes: int = 2 * 1024**3
    timeout: float = 120.0
    resources: Mapping[str, Any] = field(default_factory=_check_resources)
    deadline: float = 21600.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """The tuning Job, and the check before it; ``push_deadline`` in seconds."""

    resources: Mapping[str, Any] = field(default_factory=dict)
    push_deadline: float = 86400.0
    allowed_private_cidrs: tuple[str, ...] = ()
    check: Check = field(default_factory=Check)


def _step_resources() -> Mapping[str, Any]:
    return {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps that fetch, check and push; one runs at a time, on one core, and streams what it handles."""

    resources: Mapping[str, Any] = field(default_factory=_step_resources)


@dataclass(frozen=True, slots=True)
class Window:
    """When something may begin: on ``days`` (Monday is 0) from ``start`` (UTC) on, for ``duration`` seconds."""

    days: frozenset[int]
    start: time
    duration: float


@dataclass(frozen=True, slots=True)
class Workloads:
    """The Pods of all Workspaces: what they tolerate besides the taints of GPU nodes; whether servers that an upgrade
    would make otherwise are rolled by themselves, how many at a time, and when.

    Without a ``window`` at any time.
    """

    tolerations: tuple[Mapping[str, Any], ...] = ()
    upgrade: Upgrade = "manual"
    max_unavailable: int = 1
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class NodeClaims:
    """What a NodeClaim says to fit the provisioner that is installed."""

    node_class: NodeClassRef = field(default_factory=NodeClassRef)
    extra_requirements: tuple[Requirement, ...] = ()
    disk_request_key: str = "storage"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds."""

    claim_without_condition: float = 60.0
    claim_ready: float = 900.0
    node_not_ready: float = 300.0
    node_idle: float = 600.0
    gpu_plugin: float = 600.0
    template_ready: float = 600.0
    buy_backoff_min: float = 30.0
    buy_backoff_max: float = 1800.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the plan depends on and no cluster object says."""

    node_api: NodeAPISetting = "Machine"
    node_claims: NodeClaims = field(default_factory=NodeClaims)
    images: Images = field(default_factory=Images)
    preset_registry: str = "mcr.microsoft.com/aks/kaito"
    registries: Registries = field(default_factory=Registries)
    proxy: Proxy = Proxy()
    hugging_face_endpoint: str = ""
    serving: Serving = field(default_factory=Serving)
    tuning: Tuning = field(default_factory=Tuning)
    steps: Steps = field(default_factory=Steps)
    network_policy: bool = True
    workloads: Workloads = Workloads()
    timeouts: Timeouts = Timeouts()
    max_nodes_per_workspace: int = 100
    workers: int = 4
    cloud: str = "azure"
    release_namespace: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """Ports, log level and leader election of this process."""

    log_level: str = "info"
    metrics_port: int = 8080
    health_port: int = 8081
    bind_address: str = ""
    identity: str | None = None
    leader_election: LeaderElection | None = None
