"""The environment of the process, read into types. A missing or bad variable is one sentence, never a traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaito_hooks.api.claim import ENCODINGS, NodeAPI, NodeClassRef
from kaito_hooks.provisioner.settings import Settings
from kaito_hooks.runtime import LeaderElection, parse_duration

DEFAULT_LEASE = "gpu-provisioner-leader-election"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEPLOYMENT_MODES = ("self-hosted", "managed")
_API_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")


class ConfigurationInvalid(Exception):
    """The environment is not usable; the text is for whoever deploys the provisioner."""


@dataclass(frozen=True, slots=True)
class AzureConfiguration:
    """Which cluster, and as whom.

    ``arm_endpoint``, ``token_scope``, ``api_version``, ``authority_host``: "" = the SDK's. ``agent_pool``: fields of
    every agent pool, as ARM names them.
    """

    subscription_id: str
    resource_group: str
    cluster_name: str
    tenant_id: str
    client_id: str
    federated_token_file: str
    location: str = ""
    managed: bool = False
    arm_endpoint: str = ""
    token_scope: str = ""
    api_version: str = ""
    authority_host: str = ""
    agent_pool: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that the process takes from its environment."""

    azure: AzureConfiguration
    settings: Settings
    node_api: NodeAPI
    leader_election: LeaderElection | None
    identity: str
    metrics_port: int
    health_port: int
    bind_address: str
    log_level: str
    workers: int

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Configuration:
        """Read the environment; ConfigurationInvalid names the variable and what it should be."""
        node_api = env.get("NODE_API") or "Machine"
        if node_api not in ENCODINGS:
            raise ConfigurationInvalid(f"NODE_API is {node_api!r}; it must be Machine or NodeClaim")
        return cls(
            azure=_azure(env),
            settings=_settings(env),
            node_api=ENCODINGS[node_api].kind,
            leader_election=_leader_election(env),
            identity=env.get("POD_NAME", ""),
            metrics_port=_port(env, "METRICS_PORT", 8080),
            health_port=_port(env, "HEALTH_PROBE_PORT", 8081),
            bind_address=env.get("BIND_ADDRESS", ""),
            log_level=env.get("LOG_LEVEL") or "info",
            workers=_number(env, "WORKERS", 16, 1, 256),
        )


def _azure(env: Mapping[str, str]) -> AzureConfiguration:
    mode = env.get("DEPLOYMENT_MODE") or "self-hosted"
    if mode not in _DEPLOYMENT_MODES:
        raise ConfigurationInvalid(f"DEPLOYMENT_MODE is {mode!r}; it must be self-hosted or managed")
    managed = mode == "managed"
    endpoint = (env.get("ARM_ENDPOINT") or "").rstrip("/")
    for name, url in (("ARM_ENDPOINT", endpoint), ("AZURE_AUTHORITY_HOST", env.get("AZURE_AUTHORITY_HOST") or "")):
        if url and not url.startswith("https://"):
            raise ConfigurationInvalid(
                f"{name} is {url!r}; it must begin with https://, tokens are not sent without TLS"
            )
    scope = env.get("ARM_TOKEN_SCOPE") or (f"{endpoint}/.default" if endpoint else "")
    return AzureConfiguration(
        subscription_id=_required(env, "ARM_SUBSCRIPTION_ID", "subscription ID not set"),
        resource_group=_required(env, "ARM_RESOURCE_GROUP", "resource group not set"),
        cluster_name=_required(env, "AZURE_CLUSTER_NAME", "cluster name not set"),
        tenant_id=_required(env, "AZURE_TENANT_ID", "tenant ID not set"),
        client_id=env.get("AZURE_CLIENT_ID", "") if managed else _required(env, "AZURE_CLIENT_ID", "client ID not set"),
        federated_token_file=env.get("AZURE_FEDERATED_TOKEN_FILE", "")
        if managed
        else _required(env, "AZURE_FEDERATED_TOKEN_FILE", "federated token file not set"),
        location=env.get("LOCATION", ""),
        managed=managed,
        arm_endpoint=endpoint,
        token_scope=scope,
        api_version=_api_version(env),
        authority_host=(env.get("AZURE_AUTHORITY_HOST") or "").rstrip("/"),
        agent_pool=_agent_pool(env),
    )


def _api_version(env: Mapping[str, str]) -> str:
    version = env.get("ARM_API_VERSION") or ""
    if version and not _API_VERSION.fullmatch(version):
        raise ConfigurationInvalid(
            f"ARM_API_VERSION is {version!r}; it must be a date as 2026-08-01, or one with -preview"
        )
    return version


def _agent_pool(env: Mapping[str, str]) -> Mapping[str, Any]:
    text = env.get("AGENT_POOL") or "{}"
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ConfigurationInvalid(f"AGENT_POOL is {text!r}, which is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigurationInvalid(f"AGENT_POOL is {text!r}; it must be a JSON object with fields of an AKS agent pool")
    return fields


def _settings(env: Mapping[str, str]) -> Settings:
    default = Settings()
    return Settings(
        registration_timeout=_duration(env, "REGISTRATION_TIMEOUT", default.registration_timeout),
        launch_timeout=_duration(env, "LAUNCH_TIMEOUT", default.launch_timeout),
        node_repair_timeout=_duration(env, "NODE_REPAIR_TIMEOUT", default.node_repair_timeout)
        if _feature(env, "NodeRepair")
        else 0.0,
        termination_grace_period=_duration(env, "TERMINATION_GRACE_PERIOD", default.termination_grace_period),
        gc_interval=_duration(env, "GC_INTERVAL", default.gc_interval, least=0.1),
        pool_poll_interval=_duration(env, "POOL_POLL_INTERVAL", default.pool_poll_interval, least=0.1),
        manage_by_label=_switch(env, "MANAGE_BY_LABEL"),
        delete_on_insufficient_capacity=_switch(env, "DELETE_ON_INSUFFICIENT_CAPACITY"),
        node_class=NodeClassRef(
            group=env.get("NODE_CLASS_GROUP") or default.node_class.group,
            kind=env.get("NODE_CLASS_KIND") or default.node_class.kind,
        ),
    )


def _feature(env: Mapping[str, str], name: str) -> bool:
    """FEATURE_GATES as Karpenter writes them: ``NodeRepair=true,Other=false``; absent = on."""
    gates = dict(gate.partition("=")[::2] for gate in (env.get("FEATURE_GATES") or "").split(",") if gate.strip())
    return gates.get(name, "true").strip().lower() != "false"


def _leader_election(env: Mapping[str, str]) -> LeaderElection | None:
    if _switch(env, "DISABLE_LEADER_ELECTION"):
        return None
    namespace = env.get("LEADER_ELECTION_NAMESPACE") or env.get("SYSTEM_NAMESPACE") or _own_namespace()
    try:
        return LeaderElection.read(env, namespace=namespace, name=env.get("LEADER_ELECTION_NAME") or DEFAULT_LEASE)
    except ValueError as error:
        raise ConfigurationInvalid(str(error)) from None


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        raise ConfigurationInvalid(
            "LEADER_ELECTION_NAMESPACE is not set and this is no Pod; set it, or DISABLE_LEADER_ELECTION=true"
        ) from None


def _required(env: Mapping[str, str], name: str, sentence: str) -> str:
    value = (env.get(name) or "").strip()
    if not value:
        raise ConfigurationInvalid(f"{sentence}: {name} is empty")
    return value


def _duration(env: Mapping[str, str], name: str, default: float, *, least: float = 0.0) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigurationInvalid(f"{name}: {error}") from None
    if seconds < least:
        raise ConfigurationInvalid(f"{name} is {text}; it must be at least {least:g} s")
    return seconds


def _switch(env: Mapping[str, str], name: str) -> bool:
    text = (env.get(name) or "false").strip().lower()
    if text not in ("true", "false", "1", "0"):
        raise ConfigurationInvalid(f"{name} is {env[name]!r}; it must be true or false")
    return text in ("true", "1")


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    return _number(env, name, default, 0, 65535)


def _number(env: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = env.get(name)
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ConfigurationInvalid(f"{name} is {text!r}; it must be a number from {least} to {most}")
    return int(text)
