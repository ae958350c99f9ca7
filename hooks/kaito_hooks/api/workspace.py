"""A ``Workspace`` (kaito.sh/v1alpha1) read into types.

Reading never fails: objects stored under an older schema must stay reconcilable and deletable. Whether the values make
sense is for the rules in ``kaito_hooks.workspace.rules.validate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_INSTANCE_TYPE = "Standard_NC12s_v3"
DEFAULT_STRENGTH = "1.0"


@dataclass(frozen=True, slots=True)
class PresetSpec:
    """The model that a Workspace asks for by name."""

    name: str
    access_mode: str
    image: str
    image_pull_secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where an adapter or a data set comes from."""

    name: str
    urls: tuple[str, ...]
    volume_source: Mapping[str, Any] | None
    image: str
    image_pull_secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DataDestination:
    """Where a tuned adapter goes."""

    volume_source: Mapping[str, Any] | None
    image: str
    image_push_secret: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter; ``strength`` is the text that the user wrote, "1.0" if none."""

    source: DataSource
    strength: str


@dataclass(frozen=True, slots=True)
class ResourceSpec:
    """The nodes that a Workspace needs.

    ``match_labels`` holds matchLabels and single-value ``In`` expressions alike; ``selector_problem`` says what of the
    label selector could not be turned into labels.
    """

    count: int
    instance_type: str
    match_labels: Mapping[str, str]
    selector_problem: str
    preferred_nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InferenceSpec:
    """Serve a preset, or a Pod template of the user's own."""

    preset: PresetSpec | None
    template: Mapping[str, Any] | None
    adapters: tuple[Adapter, ...]


@dataclass(frozen=True, slots=True)
class TuningSpec:
    """Fine-tune a preset; ``method`` is in lower case."""

    preset: PresetSpec | None
    method: str
    config: str
    input: DataSource | None
    output: DataDestination | None
    serve_result: bool


@dataclass(frozen=True, slots=True)
class Workspace:
    """A Workspace and, in ``raw``, the object that it was read from; the raw object is shared, never changed."""

    raw: Mapping[str, Any]
    namespace: str
    name: str
    uid: str
    generation: int
    creation_timestamp: str
    deleting: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    finalizers: tuple[str, ...]
    resource: ResourceSpec | None
    inference: InferenceSpec | None
    tuning: TuningSpec | None
    worker_nodes: tuple[str, ...]
    conditions: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, obj: Mapping[str, Any]) -> Workspace:
        """The Workspace in a Kubernetes object."""
        metadata = obj.get("metadata") or {}
        status = obj.get("status") or {}
        return cls(
            raw=obj,
            namespace=metadata.get("namespace", ""),
            name=metadata.get("name", ""),
            uid=metadata.get("uid", ""),
            generation=int(metadata.get("generation") or 0),
            creation_timestamp=metadata.get("creationTimestamp") or "",
            deleting=bool(metadata.get("deletionTimestamp")),
            labels=metadata.get("labels") or {},
            annotations=metadata.get("annotations") or {},
            finalizers=tuple(metadata.get("finalizers") or ()),
            resource=_resource(obj.get("resource")),
            inference=_inference(obj.get("inference")),
            tuning=_tuning(obj.get("tuning")),
            worker_nodes=tuple(status.get("workerNodes") or ()),
            conditions=tuple(status.get("conditions") or ()),
        )

    @property
    def preset(self) -> PresetSpec | None:
        """The preset that is served or tuned, if it is one."""
        part = self.inference or self.tuning
        return part.preset if part else None

    def condition(self, condition_type: str) -> Mapping[str, Any] | None:
        """The condition of that type in the status, or None."""
        return next((c for c in self.conditions if c.get("type") == condition_type), None)


def match_labels(selector: Mapping[str, Any] | None) -> tuple[dict[str, str], str]:
    """The labels that a LabelSelector demands, and "" or what of it is no plain label."""
    labels = {str(k): str(v) for k, v in ((selector or {}).get("matchLabels") or {}).items()}
    for expression in (selector or {}).get("matchExpressions") or ():
        key, operator = str(expression.get("key", "")), expression.get("operator")
        values = [str(value) for value in expression.get("values") or ()]
        if operator != "In" or len(values) != 1:
            return labels, f"{key} {operator} {values} is no matchLabels entry and no In with a single value"
        if labels.get(key, values[0]) != values[0]:
            return labels, f"{key} is asked to be both {labels[key]} and {values[0]}"
        labels[key] = values[0]
    return labels, ""


def _resource(spec: Mapping[str, Any] | None) -> ResourceSpec | None:
    if spec is None:
        return None
    labels, problem = match_labels(spec.get("labelSelector"))
    count = spec.get("count")
    return ResourceSpec(
        count=1 if count is None else int(count),
        instance_type=spec.get("instanceType") or DEFAULT_INSTANCE_TYPE,
        match_labels=labels,
        selector_problem=problem,
        preferred_nodes=_texts(spec.get("preferredNodes")),
    )


def _preset(spec: Mapping[str, Any] | None) -> PresetSpec | None:
    if not spec:
        return None
    options = spec.get("presetOptions") or {}
    return PresetSpec(
        name=spec.get("name") or "",
        access_mode=spec.get("accessMode") or "public",
        image=options.get("image") or "",
        image_pull_secrets=_texts(options.get("imagePullSecrets")),
    )


def _source(spec: Mapping[str, Any] | None) -> DataSource | None:
    if spec is None:
        return None
    return DataSource(
        name=spec.get("name") or "",
        urls=_texts(spec.get("urls")),
        volume_source=spec.get("volumeSource"),
        image=spec.get("image") or "",
        image_pull_secrets=_texts(spec.get("imagePullSecrets")),
    )


def _inference(spec: Mapping[str, Any] | None) -> InferenceSpec | None:
    if spec is None:
        return None
    return InferenceSpec(
        preset=_preset(spec.get("preset")),
        template=spec.get("template"),
        adapters=tuple(
            Adapter(
                source=_source(adapter.get("source")) or DataSource("", (), None, "", ()),
                strength=DEFAULT_STRENGTH if adapter.get("strength") is None else str(adapter["strength"]),
            )
            for adapter in spec.get("adapters") or ()
        ),
    )


def _tuning(spec: Mapping[str, Any] | None) -> TuningSpec | None:
    if spec is None:
        return None
    output = spec.get("output")
    return TuningSpec(
        preset=_preset(spec.get("preset")),
        method=(spec.get("method") or "").lower(),
        config=spec.get("config") or "",
        input=_source(spec.get("input")),
        output=None
        if output is None
        else DataDestination(
            volume_source=output.get("volumeSource"),
            image=output.get("image") or "",
            image_push_secret=output.get("imagePushSecret") or "",
        ),
        serve_result=spec.get("serveResult") is not False,
    )


def _texts(values: Sequence[Any] | None) -> tuple[str, ...]:
    return tuple(str(value) for value in values or ())
