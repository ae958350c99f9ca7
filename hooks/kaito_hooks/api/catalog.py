"""The cluster's ``Catalog``: what each preset needs and what each instance type offers, read into types.

Memory is GiB, durations are seconds. For a preset, GPU count and total memory are the minima of one copy of the model,
which lies on one node or, if it is ``distributed``, on all nodes of a Workspace, and ``per_gpu_memory_gib`` the minimum
of each GPU (0 = not checked); for an instance type they describe one node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NAME = "kaito"
"""The one Catalog of a cluster."""

Engine = Literal["transformers", "vllm"]
ENGINES: tuple[Engine, ...] = ("transformers", "vllm")
VolumeKind = Literal["persistentVolumeClaim", "nfs", "hostPath", "csi"]
_VOLUME_KINDS: tuple[VolumeKind, ...] = ("persistentVolumeClaim", "nfs", "hostPath", "csi")
_TOO_OLD_FOR_VLLM = frozenset({"K80", "M60", "P40", "P100", "V100"})
"""GPU models of compute capability below 7.5, for which vLLM has no kernels: https://developer.nvidia.com/cuda-gpus"""

_TYPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
DEFAULT_READINESS_TIMEOUT = 1800.0
DEFAULT_WEIGHTS_PATH = "/workspace/tfs/weights"


@dataclass(frozen=True, slots=True)
class ImageWeights:
    """Weights in the folder ``path`` of the image ``<preset registry>/kaito-<preset>:<tag>``."""

    tag: str
    path: str


@dataclass(frozen=True, slots=True)
class HubWeights:
    """Weights in a Hugging Face repository at a pinned revision; ``token_secret`` names a Secret with key ``token``."""

    repo: str
    revision: str
    token_secret: str


@dataclass(frozen=True, slots=True)
class VolumeWeights:
    """Weights in the root of a volume: the ``kind`` of its source, and the source's ``fields`` as in a Pod."""

    kind: VolumeKind
    fields: Mapping[str, Any]


Weights = ImageWeights | HubWeights | VolumeWeights


@dataclass(frozen=True, slots=True)
class Preset:
    """One model: where its weights are and what it needs."""

    name: str
    family: str = ""
    architecture: str = ""
    gpu_count: int = 1
    total_gpu_memory_gib: int = 0
    per_gpu_memory_gib: int = 0
    disk_gib: int = 50
    context_length: int = 0
    dtype: str = "auto"
    distributed: bool = False
    engines: tuple[Engine, ...] = ENGINES
    access_mode: Literal["public", "private"] = "public"
    readiness_timeout: float = DEFAULT_READINESS_TIMEOUT
    weights: Weights | None = None
    tuning: Mapping[str, int] = field(default_factory=dict)
    """GPU memory in GiB that each tuning method needs; a method that is absent is not offered."""


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One machine size, spelt as the cloud spells it.

    ``price_per_hour``: in the Catalog's currency; None = unknown. ``retired``: the date on which its cloud stops to
    sell it, to come or past; "" = none is announced.
    """

    name: str
    gpu_count: int = 0
    total_gpu_memory_gib: int = 0
    gpu_model: str = ""
    gpu_vendor: str = "nvidia"
    architecture: str = "amd64"
    price_per_hour: float | None = None
    retired: str = ""

    @property
    def nvidia_gpus(self) -> int:
        """GPUs that a node offers as nvidia.com/gpu, the only ones that presets run on."""
        return self.gpu_count if self.gpu_vendor == "nvidia" else 0

    @property
    def per_gpu_memory_gib(self) -> int:
        """Memory of one GPU, rounded down; 0 without GPUs."""
        return self.total_gpu_memory_gib // self.gpu_count if self.gpu_count else 0

    def runs(self, engine: Engine) -> bool:
        """Whether the engine has kernels for this model of GPU; one that is not known is taken to be new enough."""
        return engine != "vllm" or self.gpu_model not in _TOO_OLD_FOR_VLLM


@dataclass(frozen=True, slots=True)
class Catalog:
    """The mapping of presets to GPUs that admission and the controller share.

    ``default_engine``: what serves a Workspace that does not choose.
    """

    cloud: str
    unchecked_instance_type_prefixes: tuple[str, ...]
    presets: Mapping[str, Preset]
    instance_types: Mapping[str, InstanceType]
    default_engine: Engine = "transformers"

    @classmethod
    def read(cls, obj: Mapping[str, Any]) -> Catalog:
        """The Catalog in a Kubernetes object; absent fields take their defaults.

        Raises ValueError, naming the field, for a value that its schema would refuse.
        """
        spec = _mapping(obj.get("spec"), "spec")
        return cls(
            cloud=str(spec.get("cloud") or "none"),
            unchecked_instance_type_prefixes=_strings(
                spec.get("uncheckedInstanceTypePrefixes"), "spec.uncheckedInstanceTypePrefixes"
            ),
            presets={
                name: _preset(name, _mapping(entry, f"spec.presets.{name}"))
                for name, entry in sorted(_mapping(spec.get("presets"), "spec.presets").items())
            },
            instance_types={
                name: _instance_type(name, _mapping(entry, f"spec.instanceTypes.{name}"))
                for name, entry in sorted(_mapping(spec.get("instanceTypes"), "spec.instanceTypes").items())
            },
            default_engine=_default_engine(spec.get("defaultEngine")),
        )

    @property
    def on_sale(self) -> Mapping[str, InstanceType]:
        """Instance types that may be advised: without those that their cloud retires."""
        return {name: found for name, found in self.instance_types.items() if not found.retired}

    def find_instance_type(self, name: str) -> InstanceType | None:
        """The listed type of that name; case does not matter."""
        exact = self.instance_types.get(name)
        if exact is not None:
            return exact
        wanted = name.lower()
        return next((found for listed, found in self.instance_types.items() if listed.lower() == wanted), None)

    def is_unchecked(self, name: str) -> bool:
        """Whether an instance type that is not listed is nevertheless accepted, without a check of its size."""
        known = any(name.lower().startswith(prefix.lower()) for prefix in self.unchecked_instance_type_prefixes)
        return known and _TYPE_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a preset does not fit: what is offered and what is needed, in GiB or GPUs."""

    kind: Literal["gpuCount", "perGPUMemory", "totalGPUMemory"]
    provides: int
    requires: int


def fits(preset: Preset, instance_type: InstanceType, *, count: int) -> Shortage | None:
    """None if ``count`` nodes of that type can serve the preset, else the first of the three checks that fails.

    Nodes add up for a preset that is distributed over them; of any other each node holds the whole model.
    """
    nodes = count if preset.distributed else 1
    gpus = nodes * instance_type.nvidia_gpus
    if gpus < preset.gpu_count:
        return Shortage("gpuCount", gpus, preset.gpu_count)
    if instance_type.per_gpu_memory_gib < preset.per_gpu_memory_gib:
        return Shortage("perGPUMemory", instance_type.per_gpu_memory_gib, preset.per_gpu_memory_gib)
    memory = nodes * instance_type.total_gpu_memory_gib
    if memory < preset.total_gpu_memory_gib:
        return Shortage("totalGPUMemory", memory, preset.total_gpu_memory_gib)
    return None


def fits_tuning(gpu_memory_gib: int, instance_type: InstanceType) -> Shortage | None:
    """None if one GPU of that type can hold a tuning method that needs so much, else what it lacks."""
    if instance_type.nvidia_gpus == 0:
        return Shortage("gpuCount", 0, 1)
    if instance_type.per_gpu_memory_gib < gpu_memory_gib:
        return Shortage("perGPUMemory", instance_type.per_gpu_memory_gib, gpu_memory_gib)
    return None


def _preset(name: str, entry: Mapping[str, Any]) -> Preset:
    where = f"spec.presets.{name}"
    return Preset(
        name=name,
        family=str(entry.get("family") or ""),
        architecture=str(entry.get("architecture") or ""),
        gpu_count=_whole(entry, "gpuCount", where, default=1),
        total_gpu_memory_gib=_whole(entry, "totalGPUMemoryGiB", where),
        per_gpu_memory_gib=_whole(entry, "perGPUMemoryGiB", where),
        disk_gib=_whole(entry, "diskGiB", where, default=50),
        context_length=_whole(entry, "contextLength", where),
        dtype=str(entry.get("dtype") or "auto"),
        distributed=bool(entry.get("distributed", False)),
        engines=_engines(entry.get("engines"), f"{where}.engines", distributed=bool(entry.get("distributed", False))),
        access_mode="private" if entry.get("accessMode") == "private" else "public",
        readiness_timeout=_seconds(entry.get("readinessTimeout"), f"{where}.readinessTimeout"),
        weights=_weights(_mapping(entry.get("weights"), f"{where}.weights"), f"{where}.weights"),
        tuning={
            method: _whole(_mapping(needs, f"{where}.tuning.{method}"), "gpuMemoryGiB", f"{where}.tuning.{method}")
            for method, needs in sorted(_mapping(entry.get("tuning"), f"{where}.tuning").items())
        },
    )


def _weights(entry: Mapping[str, Any], where: str) -> Weights | None:
    if (image := entry.get("image")) is not None:
        image = _mapping(image, f"{where}.image")
        return ImageWeights(tag=str(image.get("tag") or ""), path=str(image.get("path") or DEFAULT_WEIGHTS_PATH))
    if hub := _mapping(entry.get("huggingFace"), f"{where}.huggingFace"):
        return HubWeights(
            repo=str(hub.get("repo") or ""),
            revision=str(hub.get("revision") or ""),
            token_secret=str(hub.get("tokenSecret") or ""),
        )
    if volume := _mapping(entry.get("volume"), f"{where}.volume"):
        return _volume(volume, f"{where}.volume")
    return None


def _volume(volume: Mapping[str, Any], where: str) -> VolumeWeights:
    found = [kind for kind in _VOLUME_KINDS if volume.get(kind) is not None]
    if len(found) != 1 or len(volume) != 1:
        raise ValueError(f"Catalog: {where} is {volume!r}, not exactly one of {', '.join(_VOLUME_KINDS)}")
    return VolumeWeights(found[0], _mapping(volume[found[0]], f"{where}.{found[0]}"))


def _instance_type(name: str, entry: Mapping[str, Any]) -> InstanceType:
    where = f"spec.instanceTypes.{name}"
    return InstanceType(
        name=name,
        gpu_count=_whole(entry, "gpuCount", where),
        total_gpu_memory_gib=_whole(entry, "totalGPUMemoryGiB", where),
        gpu_model=str(entry.get("gpuModel") or ""),
        gpu_vendor=str(entry.get("gpuVendor") or "nvidia"),
        architecture=str(entry.get("architecture") or "amd64"),
        price_per_hour=_price(entry.get("pricePerHour"), f"{where}.pricePerHour"),
        retired=str(entry.get("retired") or ""),
    )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"Catalog: {where} is {value!r}, not a mapping")
    return value


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"Catalog: {where} is {value!r}, not a list of strings")
    return tuple(value)


def _default_engine(value: Any) -> Engine:
    found = next((engine for engine in ENGINES if value in (None, engine)), None)
    if found is None:
        raise ValueError(f"Catalog: spec.defaultEngine is {value!r}, not {' or '.join(ENGINES)}")
    return found


def _engines(value: Any, where: str, *, distributed: bool) -> tuple[Engine, ...]:
    """Without the field all engines; a preset that spans nodes is served by vllm alone."""
    if value is None:
        return ("vllm",) if distributed else ENGINES
    if not isinstance(value, list) or not value or not all(item in ENGINES for item in value):
        raise ValueError(f"Catalog: {where} is {value!r}, not a list of {' and '.join(ENGINES)}")
    if distributed and value != ["vllm"]:
        raise ValueError(f"Catalog: {where} is {value!r}, but a distributed preset is served by vllm alone")
    return tuple(value)


def _whole(entry: Mapping[str, Any], key: str, where: str, *, default: int = 0) -> int:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"Catalog: {where}.{key} is {value!r}, not a whole number of 0 or more")
    return value


def _price(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"Catalog: {where} is {value!r}, not a number of 0 or more")
    return float(value)


def _seconds(value: Any, where: str) -> float:
    """A Kubernetes duration such as ``30m``, in seconds."""
    if value is None:
        return DEFAULT_READINESS_TIMEOUT
    text = str(value)
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"Catalog: {where} is {value!r}, not a duration such as 30m")
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
