"""config.yaml and a few environment variables, read into ``Settings``.

A key that is not known here is an error: a misspelt setting must not be ignored silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, time
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kaito_hooks.api.claim import NodeClassRef, Requirement
from kaito_hooks.runtime import LeaderElection, parse_duration, parse_quantity
from kaito_hooks.workspace.configuration.errors import SettingsError
from kaito_hooks.workspace.configuration.settings import (
    DAYS,
    NODE_APIS,
    TUNING_VARIANTS,
    UPGRADES,
    VARIANTS,
    Check,
    Images,
    NodeClaims,
    Process,
    Proxy,
    Registries,
    Serving,
    Settings,
    Steps,
    Timeouts,
    Tuning,
    Window,
    Workloads,
)

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

T = TypeVar("T")


def load(path: Path | None, environ: Mapping[str, str]) -> tuple[Settings, Process]:
    """Settings from config.yaml (None: all defaults) and the environment; SettingsError for anything wrong."""
    document: Any = {}
    if path is not None:
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise SettingsError(f"cannot read the configuration {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise SettingsError(f"the configuration {path} is no YAML: {' '.join(str(error).split())}") from error
    return read(document, environ), process(environ)


def read(document: Any, environ: Mapping[str, str]) -> Settings:
    """The settings in a parsed config.yaml; the environment gives cloud, preset registry and namespace."""
    top = _Section(document, "")
    default = Settings()
    node_api = top.one_of("nodeAPI", NODE_APIS, default.node_api)
    settings = Settings(
        node_api=node_api,
        node_claims=_node_claims(top.section("nodeClaim")),
        images=_images(top.section("images")),
        preset_registry=(
            top.text("presetRegistry", "") or environ.get("PRESET_REGISTRY_NAME", "") or default.preset_registry
        ).rstrip("/"),
        registries=_registries(top.section("registries")),
        proxy=_proxy(top.section("proxy")),
        hugging_face_endpoint=top.text("huggingFaceEndpoint", ""),
        serving=_serving(top.section("serving")),
        tuning=_tuning(top.section("tuning")),
        steps=_steps(top.section("steps")),
        network_policy=_enabled(top.section("networkPolicy")),
        workloads=_workloads(top.section("workloads")),
        timeouts=_timeouts(top.section("timeouts")),
        max_nodes_per_workspace=top.whole("maxNodesPerWorkspace", default.max_nodes_per_workspace),
        workers=top.whole("workers", default.workers),
        cloud=environ.get("CLOUD_PROVIDER", "") or default.cloud,
        release_namespace=environ.get("RELEASE_NAMESPACE", ""),
    )
    top.done()
    return settings


def process(environ: Mapping[str, str]) -> Process:
    """Ports and leader election from the environment."""
    default = Process()
    election = None
    if environ.get("DISABLE_LEADER_ELECTION", "").lower() not in ("1", "true", "yes"):
        namespace = (
            environ.get("LEADER_ELECTION_NAMESPACE") or environ.get("RELEASE_NAMESPACE") or _service_account_namespace()
        )
        if not namespace:
            raise SettingsError(
                "leader election needs a namespace: set LEADER_ELECTION_NAMESPACE, or DISABLE_LEADER_ELECTION=true"
            )
        name = environ.get("LEADER_ELECTION_NAME") or "kaito-workspace-leader-election"
        try:
            election = LeaderElection.read(environ, namespace=namespace, name=name)
        except ValueError as error:
            raise SettingsError(str(error)) from None
    return Process(
        log_level=environ.get("LOG_LEVEL") or default.log_level,
        metrics_port=_port(environ, "METRICS_PORT", default.metrics_port),
        health_port=_port(environ, "HEALTH_PROBE_PORT", default.health_port),
        bind_address=environ.get("BIND_ADDRESS") or default.bind_address,
        identity=environ.get("POD_NAME") or None,
        leader_election=election,
    )


class _Section:
    """One mapping of config.yaml that remembers which keys were asked for; ``done`` refuses the others."""

    def __init__(self, value: Any, path: str) -> None:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise SettingsError(f"configuration: {path or 'the document'} is {value!r}, not a mapping")
        self._value, self._path, self._known = value, path, set[str]()

    def name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def get(self, key: str, default: T, read: Callable[[Any], T], expected: str) -> T:
        self._known.add(key)
        value = self._value.get(key)
        if value is None:
            return default
        try:
            return read(value)
        except (TypeError, ValueError):
            raise SettingsError(f"configuration: {self.name(key)} is {value!r}, not {expected}") from None

    def section(self, key: str) -> _Section:
        self._known.add(key)
        return _Section(self._value.get(key), self.name(key))

    def text(self, key: str, default: str) -> str:
        return self.get(key, default, _as_text, "a text")

    def one_of(self, key: str, allowed: tuple[T, ...], default: T) -> T:
        return self.get(key, default, lambda v: allowed[allowed.index(v)], f"one of {', '.join(map(str, allowed))}")

    def whole(self, key: str, default: int) -> int:
        return self.get(key, default, _as_positive, "a whole number above 0")

    def boolean(self, key: str, default: bool) -> bool:
        return self.get(key, default, _as_bool, "true or false")

    def duration(self, key: str, default: float) -> float:
        return self.get(key, default, lambda v: parse_duration(_as_text(v)), "a duration such as 30s")

    def texts(self, key: str) -> tuple[str, ...]:
        return self.get(key, (), _as_texts, "a list of texts")

    def mapping(self, key: str) -> Mapping[str, Any]:
        return self.get(key, {}, _as_mapping, "a mapping")

    def mappings(self, key: str) -> tuple[Mapping[str, Any], ...]:
        return self.get(key, (), _as_mappings, "a list of mappings")

    def done(self) -> None:
        unknown = sorted(str(key) for key in self._value if key not in self._known)
        if unknown:
            raise SettingsError(
                f"configuration: {self.name(unknown[0])} is not known; known keys are {', '.join(sorted(self._known))}"
            )


def _images(section: _Section) -> Images:
    default = Images()
    images = Images(
        hooks=section.text("hooks", default.hooks),
        serving={**default.serving, **_texts_by_name(section, "serving", VARIANTS)},
        tuning={**default.tuning, **_texts_by_name(section, "tuning", TUNING_VARIANTS)},
        variant=section.one_of("variant", ("", *VARIANTS), ""),
        pull_policy=section.one_of("pullPolicy", ("IfNotPresent", "Always", "Never"), default.pull_policy),
        pull_secrets=section.texts("pullSecrets"),
    )
    section.done()
    return images


def _texts_by_name(section: _Section, key: str, names: tuple[str, ...]) -> dict[str, str]:
    values = section.mapping(key)
    for name, value in values.items():
        if name not in names or not isinstance(value, str) or not value:
            raise SettingsError(
                f"configuration: {section.name(key)}.{name} is {value!r}; it takes an image for each of "
                f"{', '.join(names)}"
            )
    return dict(values)


def _registries(section: _Section) -> Registries:
    registries = Registries(
        mirrors={_registry(str(k)): _as_text(v) for k, v in section.mapping("mirrors").items()},
        plain_http=tuple(map(_registry, section.texts("plainHTTP"))),
        ca_bundle=section.text("caBundle", ""),
    )
    section.done()
    return registries


def _registry(written: str) -> str:
    """A registry's name as images write it: hosts have no capitals."""
    return written.strip().rstrip("/").lower()


def _proxy(section: _Section) -> Proxy:
    proxy = Proxy(
        http=section.text("httpProxy", ""),
        https=section.text("httpsProxy", ""),
        no_proxy=section.texts("noProxy"),
    )
    section.done()
    return proxy


def _serving(section: _Section) -> Serving:
    serving = Serving(
        resources=section.mapping("resources"),
        extra_args=section.texts("extraArgs"),
        extra_env=section.mappings("extraEnv"),
    )
    section.done()
    return serving


def _tuning(section: _Section) -> Tuning:
    download = section.section("download")
    tuning = Tuning(
        resources=section.mapping("resources"),
        push_deadline=section.duration("pushDeadline", Tuning().push_deadline),
        allowed_private_cidrs=download.texts("allowedPrivateCIDRs"),
        check=_check(section.section("check")),
    )
    download.done()
    section.done()
    return tuning


def _check(section: _Section) -> Check:
    default = Check()
    check = Check(
        enabled=section.boolean("enabled", default.enabled),
        max_bytes=section.get("maxBytes", default.max_bytes, _as_bytes, "a size such as 2Gi"),
        timeout=section.duration("timeout", default.timeout),
        deadline=section.duration("deadline", default.deadline),
        resources=section.get("resources", default.resources, _as_mapping, "a mapping"),
    )
    section.done()
    return check


def _steps(section: _Section) -> Steps:
    steps = Steps(resources=section.get("resources", Steps().resources, _as_mapping, "a mapping"))
    section.done()
    return steps


def _node_claims(section: _Section) -> NodeClaims:
    default = NodeClaims()
    reference = section.section("nodeClassRef")
    claims = NodeClaims(
        node_class=NodeClassRef(
            group=reference.text("group", default.node_class.group),
            kind=reference.text("kind", default.node_class.kind),
            name=reference.text("name", default.node_class.name),
        ),
        extra_requirements=tuple(
            Requirement(str(r.get("key", "")), str(r.get("operator", "")), tuple(map(str, r.get("values") or ())))
            for r in section.mappings("extraRequirements")
        ),
        disk_request_key=section.text("diskRequestKey", default.disk_request_key),
    )
    reference.done()
    section.done()
    return claims


def _enabled(section: _Section) -> bool:
    enabled = section.boolean("enabled", True)
    section.done()
    return enabled


def _workloads(section: _Section) -> Workloads:
    default = Workloads()
    workloads = Workloads(
        tolerations=section.mappings("tolerations"),
        upgrade=section.one_of("upgrade", UPGRADES, default.upgrade),
        max_unavailable=section.whole("maxUnavailable", default.max_unavailable),
        window=_window(section.section("window")),
    )
    section.done()
    return workloads


def _window(section: _Section) -> Window | None:
    """None without a start: then the days and the duration mean nothing. SettingsError for one that never opens."""
    days = section.get("days", tuple[int, ...](), _as_days, f"a list of days out of {', '.join(DAYS)}")
    start = section.get("start", None, _as_time, "a time of the day (UTC) such as 22:00")
    expected = "a duration above 0 such as 4h"
    duration = section.get("duration", 0.0, _as_span, f"{expected}: the window would never open")
    section.done()
    if start is not None and not duration:
        raise SettingsError(f"configuration: {section.name('duration')} is missing; give {expected}")
    return Window(frozenset(days or range(len(DAYS))), start, duration) if start is not None else None


def _timeouts(section: _Section) -> Timeouts:
    default = Timeouts()
    timeouts = Timeouts(
        claim_without_condition=section.duration("claimWithoutCondition", default.claim_without_condition),
        claim_ready=section.duration("claimReady", default.claim_ready),
        node_not_ready=section.duration("nodeNotReady", default.node_not_ready),
        node_idle=section.duration("nodeIdle", default.node_idle),
        gpu_plugin=section.duration("gpuPlugin", default.gpu_plugin),
        template_ready=section.duration("templateReady", default.template_ready),
        buy_backoff_min=section.duration("buyBackoffMin", default.buy_backoff_min),
        buy_backoff_max=section.duration("buyBackoffMax", default.buy_backoff_max),
    )
    section.done()
    return timeouts


def _as_span(value: Any) -> float:
    if (seconds := parse_duration(_as_text(value))) <= 0:
        raise ValueError(value)
    return seconds


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _as_days(value: Any) -> tuple[int, ...]:
    return tuple(DAYS.index(day) for day in _as_texts(value))


def _as_time(value: Any) -> time | None:
    return datetime.strptime(text, "%H:%M").time() if (text := _as_text(value)) else None


def _as_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _as_positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    if value < 1:
        raise ValueError
    return value


def _as_bytes(value: Any) -> int:
    size = int(parse_quantity(_as_text(value)))
    if size < 1:
        raise ValueError
    return size


def _as_texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_as_text(item) for item in value)


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    return dict(value)


def _as_mappings(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_as_mapping(item) for item in value)


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise SettingsError(f"{name} is {text!r}, not a port number")
    return int(text)


def _service_account_namespace() -> str:
    try:
        return SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
