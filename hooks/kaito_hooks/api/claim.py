"""One node that somebody asked for: a Machine (karpenter.sh/v1alpha5) or a NodeClaim (karpenter.sh/v1).

The two kinds are two encodings of one Claim. ``encode`` writes what the Workspace controller asks for, ``Claim.read``
reads what any Karpenter-like provisioner made of it. Facts that only one kind has are columns of its ``Encoding``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from kaito_hooks.api import conditions, labels, resources
from kaito_hooks.api.resources import ApiResource

Obj = dict[str, Any]
NodeAPI = Literal["Machine", "NodeClaim"]
Step = Literal["launched", "registered", "initialized"]

STEPS: tuple[Step, ...] = ("launched", "registered", "initialized")
READY = "Ready"
AWAITING_RECONCILIATION = "AwaitingReconciliation"
NEVER = "Never"
_ENDS = ("Drained", "VolumesDetached", "InstanceTerminating")


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one of the two kinds spells a claim. Both are cluster-scoped, in the API group karpenter.sh."""

    kind: NodeAPI
    resource: ApiResource
    owner_label: str
    owner: str
    step_conditions: Mapping[Step, str]

    @property
    def plural(self) -> str:
        """As in the name of the CRD."""
        return self.resource.plural

    @property
    def api_version(self) -> str:
        """Group and version, as in ``apiVersion``."""
        return self.resource.api_version


MACHINE = Encoding(
    kind="Machine",
    resource=resources.MACHINE,
    owner_label=labels.PROVISIONER_NAME,
    owner=labels.PROVISIONER_DEFAULT,
    step_conditions={
        "launched": "MachineLaunched",
        "registered": "MachineRegistered",
        "initialized": "MachineInitialized",
    },
)
NODE_CLAIM = Encoding(
    kind="NodeClaim",
    resource=resources.NODE_CLAIM,
    owner_label=labels.NODE_POOL,
    owner=labels.NODE_POOL_KAITO,
    step_conditions={"launched": "Launched", "registered": "Registered", "initialized": "Initialized"},
)
ENCODINGS: Mapping[str, Encoding] = {encoding.kind: encoding for encoding in (MACHINE, NODE_CLAIM)}


@dataclass(frozen=True, slots=True)
class Taint:
    """A node taint; ``value`` may be empty."""

    key: str
    value: str
    effect: str

    def to_json(self) -> Obj:
        """As a taint in a claim's or a Node's spec."""
        return {"key": self.key, **({"value": self.value} if self.value else {}), "effect": self.effect}

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of spec.requirements."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def to_json(self) -> Obj:
        """As an element of spec.requirements."""
        return {"key": self.key, "operator": self.operator, **({"values": list(self.values)} if self.values else {})}


@dataclass(frozen=True, slots=True)
class NodeClassRef:
    """Whose claim a NodeClaim is: a provisioner compares group and kind."""

    group: str = "kaito.sh"
    kind: str = "KaitoNodeClass"
    name: str = "default"


OUR_CLASS = NodeClassRef()
SKU_GPU_TAINT = Taint(labels.SKU, labels.SKU_GPU, "NoSchedule")


@dataclass(frozen=True, slots=True)
class ClaimSpec:
    """What the Workspace controller asks for.

    ``labels`` are the Workspace's matchLabels and its two workspace labels; ``encode`` adds the owner label.
    ``requirements``: what the cloud must give besides the type, such as a zone.
    ``gpu``: whether machines of the type have GPUs. ``disk_gib`` is in GiB, 0 = the cloud's default. ``cloud`` (azure,
    aws, none), ``node_class``, ``extra_requirements`` and ``disk_request_key`` ("" = request no disk) concern
    NodeClaims only: they fit the claim to the provisioner that is installed.
    """

    name: str
    labels: Mapping[str, str]
    instance_type: str
    gpu: bool = True
    disk_gib: int = 0
    requirements: tuple[Requirement, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = (SKU_GPU_TAINT,)
    cloud: str = "azure"
    node_class: NodeClassRef = OUR_CLASS
    extra_requirements: tuple[Requirement, ...] = ()
    disk_request_key: str = "storage"


def encode(spec: ClaimSpec, node_api: NodeAPI) -> Obj:
    """The claim as an object to POST, of the kind that ``node_api`` names."""
    encoding = ENCODINGS[node_api]
    metadata: Obj = {"name": spec.name, "labels": {**spec.labels, encoding.owner_label: encoding.owner}}
    build = _machine_spec if encoding is MACHINE else _node_claim_spec
    annotations = dict(spec.annotations)
    if encoding is NODE_CLAIM:
        annotations[labels.DO_NOT_DISRUPT] = "true"
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": encoding.api_version, "kind": encoding.kind, "metadata": metadata, "spec": build(spec)}


def _machine_spec(spec: ClaimSpec) -> Obj:
    requirements = [
        Requirement(labels.INSTANCE_TYPE, "In", (spec.instance_type,)),
        Requirement(labels.PROVISIONER_NAME, "In", (labels.PROVISIONER_DEFAULT,)),
        Requirement(labels.MACHINE_TYPE, "In", ("gpu" if spec.gpu else "cpu",)),
        Requirement(labels.ARCHITECTURE, "In", ("amd64",)),
        Requirement(labels.OPERATING_SYSTEM, "In", ("linux",)),
    ]
    asked = {requirement.key for requirement in spec.requirements}
    requirements = [*(r for r in requirements if r.key not in asked), *spec.requirements]
    return {
        "machineTemplateRef": {"name": spec.name},
        "requirements": [requirement.to_json() for requirement in requirements],
        "resources": {"requests": {"storage": f"{spec.disk_gib}Gi" if spec.disk_gib else "0"}},
        "taints": [taint.to_json() for taint in spec.taints],
    }


def _node_claim_spec(spec: ClaimSpec) -> Obj:
    requirements = [
        Requirement(labels.NODE_POOL, "In", (labels.NODE_POOL_KAITO,)),
        Requirement(labels.INSTANCE_TYPE, "In", (spec.instance_type,)),
        Requirement(labels.OPERATING_SYSTEM, "In", ("linux",)),
    ]
    if spec.cloud == "azure":
        requirements.append(Requirement(labels.AZURE_SKU_NAME, "In", (spec.instance_type,)))
    elif spec.cloud == "aws" and spec.gpu:
        requirements.append(Requirement(labels.AWS_GPU_COUNT, "Gt", ("0",)))
    requirements.extend(spec.extra_requirements)
    requirements.extend(r for r in spec.requirements if r not in requirements)
    encoded: Obj = {
        "nodeClassRef": {"group": spec.node_class.group, "kind": spec.node_class.kind, "name": spec.node_class.name},
        "requirements": [requirement.to_json() for requirement in requirements],
        "taints": [taint.to_json() for taint in spec.taints],
        # Left out, the CRD's default of 720h would have a real Karpenter take the node away after 30 days.
        "expireAfter": NEVER,
    }
    if spec.disk_request_key and spec.disk_gib:
        encoded["resources"] = {"requests": {spec.disk_request_key: f"{spec.disk_gib}Gi"}}
    return encoded


@dataclass(frozen=True, slots=True)
class StepState:
    """One step's condition. ``status`` is "True", "False" or "Unknown"; a missing condition reads as Unknown."""

    status: str
    reason: str
    message: str

    @property
    def done(self) -> bool:
        """Whether the step is behind us."""
        return self.status == "True"


@dataclass(frozen=True, slots=True)
class Claim:
    """A Machine or a NodeClaim, read. ``object`` is the object itself and is never changed."""

    encoding: Encoding
    name: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    finalizers: tuple[str, ...]
    generation: int
    creation_timestamp: datetime | None
    deletion_timestamp: datetime | None
    requirements: tuple[Requirement, ...]
    requests: Mapping[str, str]
    taints: tuple[Taint, ...]
    startup_taints: tuple[Taint, ...]
    node_class: NodeClassRef | None
    termination_grace_period: str | None
    node_name: str
    provider_id: str
    ready: bool
    steps: Mapping[Step, StepState]
    conditions: tuple[Obj, ...]
    object: Obj

    @classmethod
    def read(cls, obj: Obj) -> Claim:
        """Read a Machine or NodeClaim; ValueError for any other kind. What is absent reads as empty."""
        encoding = ENCODINGS.get(obj.get("kind", ""))
        if encoding is None:
            raise ValueError(f"{obj.get('kind')!r} is neither a Machine nor a NodeClaim")
        metadata, spec, status = obj.get("metadata") or {}, obj.get("spec") or {}, obj.get("status") or {}
        found = tuple(status.get("conditions") or ())
        reference = spec.get("nodeClassRef")
        return cls(
            encoding=encoding,
            name=metadata.get("name", ""),
            uid=metadata.get("uid", ""),
            labels=metadata.get("labels") or {},
            annotations=metadata.get("annotations") or {},
            finalizers=tuple(metadata.get("finalizers") or ()),
            generation=metadata.get("generation", 0),
            creation_timestamp=_time(metadata.get("creationTimestamp")),
            deletion_timestamp=_time(metadata.get("deletionTimestamp")),
            requirements=tuple(
                Requirement(r.get("key", ""), r.get("operator", ""), tuple(r.get("values") or ()))
                for r in spec.get("requirements") or ()
            ),
            requests={k: str(v) for k, v in ((spec.get("resources") or {}).get("requests") or {}).items()},
            taints=read_taints(spec.get("taints")),
            startup_taints=read_taints(spec.get("startupTaints")),
            node_class=NodeClassRef(*(reference.get(k, "") for k in ("group", "kind", "name"))) if reference else None,
            termination_grace_period=spec.get("terminationGracePeriod"),
            node_name=status.get("nodeName", ""),
            provider_id=status.get("providerID", ""),
            ready=conditions.is_true(found, READY),
            steps={step: _step(found, encoding.step_conditions[step]) for step in STEPS},
            conditions=found,
            object=obj,
        )

    @property
    def kind(self) -> NodeAPI:
        """Machine or NodeClaim."""
        return self.encoding.kind

    @property
    def deleting(self) -> bool:
        """Whether somebody asked for its deletion."""
        return self.deletion_timestamp is not None

    def requirement(self, key: str) -> str | None:
        """The one value that an In requirement names for ``key``; None with no value or several."""
        values = {r.values for r in self.requirements if r.key == key and r.operator == "In"}
        only = values.pop() if len(values) == 1 else ()
        return only[0] if len(only) == 1 else None

    def ending(self) -> str:
        """What a claim that is being deleted waits for, in its provisioner's words; "" when nothing is said.

        A NodeClaim has conditions for the steps of its end, a Machine says it in Ready.
        """
        if not self.deleting:
            return ""
        for name in (*_ENDS, READY):
            condition = conditions.find(self.conditions, name) or {}
            if condition.get("message") and (name != READY or condition.get("reason") == _ENDS[-1]):
                return str(condition["message"])
        return ""

    def first_waiting(self) -> tuple[str, str] | None:
        """Reason and message of the first step that is not done and says why; None when nothing is said.

        Provisioners write ``AwaitingReconciliation`` into every later step: that tells nobody anything.
        """
        for step in STEPS:
            state = self.steps[step]
            if not state.done and state.message and state.reason != AWAITING_RECONCILIATION:
                return state.reason, state.message
        return None


def read_taints(taints: Iterable[Mapping[str, Any]] | None) -> tuple[Taint, ...]:
    """The taints of a claim's or a Node's spec."""
    return tuple(Taint(t.get("key", ""), t.get("value") or "", t.get("effect", "")) for t in taints or ())


def _step(found: Iterable[Obj], condition_type: str) -> StepState:
    condition = conditions.find(found, condition_type) or {}
    return StepState(condition.get("status", "Unknown"), condition.get("reason", ""), condition.get("message", ""))


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
