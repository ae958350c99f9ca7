"""What an emulated cloud is: who may use it, how long things take, what it has. Read from YAML by `load`.

Unknown keys and values of the wrong type are refused with a sentence.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from kaito_local.errors import UsageError

Seconds = float | tuple[float, float]
"""A duration, or the two ends of a range from which one is drawn."""


@dataclass(frozen=True, slots=True)
class Durations:
    """How long operations take, in seconds of the cloud's clock. The defaults are what AKS takes.

    ``node_lead``: how long before the pool is Succeeded its machines boot, as AKS waits for their Nodes; a creation
    that takes less boots them when it begins. ``upgrade`` is the time of a whole node image upgrade.
    """

    create_cpu: Seconds = 180.0
    create_gpu: Seconds = (300.0, 660.0)
    update: Seconds = 60.0
    delete: Seconds = (60.0, 180.0)
    abort: Seconds = 5.0
    upgrade: Seconds = (480.0, 720.0)
    start: Seconds = (180.0, 300.0)
    stop: Seconds = (60.0, 180.0)
    node_lead: float = 30.0
    node_ready: float = 5.0
    gpu_delay: float = 30.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who may have a token.

    ``subject`` and ``audience`` are checked when the assertion is to be a service account's token. ``of_machines``: the
    machines have this identity, whoever asks for it.
    """

    tenant: str = "00000000-0000-0000-0000-000000000002"
    client: str = "00000000-0000-0000-0000-000000000003"
    subject: str = ""
    audience: str = "api://AzureADTokenExchange"
    token_lifetime: float = 3600.0
    of_machines: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What the subscription may have, what the region has left and what a cluster can hold.

    ``pools``: agent pools per cluster, whatever their state; ``quota``: vCPUs by family, "regional" for all of them;
    ``capacity``: machines by size; ``restricted``: sizes that the subscription may not use. ``asynchronous``: quota and
    restriction make the operation fail later instead of the request.
    """

    pools: int = 100
    quota: Mapping[str, int] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    restricted: tuple[str, ...] = ()
    asynchronous: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """An emulated cloud.

    ``directory`` keeps keys, state and logs. Ports of 0 are chosen at the first start and kept. ``hosts``: further
    names of the certificate. ``node_group``: the node resource group, if whoever made the cluster named it.
    ``subnet``: that of the cluster's system pool, in a network that users brought; "" = a managed one.
    ``pod_subnet``: that of its Pods, if they have one of their own.
    ``clock_speed``: see `Clock`. ``page_size``: pools per page of a list. ``locks``: what an
    operation in progress keeps others from. ``delete_while_creating``: whether a deletion preempts a creation or is
    refused. ``machines``: nothing, Node objects, or real nodes as described by ``nodes``
    (see `machines/node_source.py`).
    """

    directory: Path
    address: str = "127.0.0.1"
    port: int = 0
    control_address: str = "127.0.0.1"
    control_port: int = 0
    hosts: tuple[str, ...] = ()
    subscription: str = "00000000-0000-0000-0000-000000000001"
    resource_group: str = "kaito"
    cluster: str = "kaito"
    node_group: str = ""
    location: str = "eastus"
    zone: str = "eastus-1"
    subnet: str = ""
    pod_subnet: str = ""
    kubernetes_version: str = "1.34.4"
    identity: Identity = field(default_factory=Identity)
    durations: Durations = field(default_factory=Durations)
    limits: Limits = field(default_factory=Limits)
    clock_speed: float = 1.0
    seed: int = 0
    page_size: int = 100
    locks: Literal["none", "pool", "cluster"] = "pool"
    delete_while_creating: Literal["preempt", "refuse"] = "preempt"
    machines: Literal["none", "bare", "nodes"] = "none"
    kubeconfig: Path | None = None
    nodes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def node_resource_group(self) -> str:
        """The group that holds the machines; AKS cuts a name of its own making after 80 characters."""
        return self.node_group or f"MC_{self.resource_group}_{self.cluster}_{self.location}"[:80]

    @property
    def cluster_label(self) -> str:
        """The value of the Node label ``kubernetes.azure.com/cluster``.

        As AgentBaker writes it, which prepares the machines: the node resource group as far as a label can hold it.
        """
        label = self.node_resource_group.replace("(", "-").replace(")", "-")[:63]
        return f"{label[:62]}z" if label.endswith(("-", "_", ".")) else label

    @property
    def cluster_path(self) -> str:
        """The cluster's resource id."""
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.ContainerService/managedClusters/{self.cluster}"
        )


@dataclass(frozen=True, slots=True)
class Size:
    """A size of virtual machines; ``family`` is what its quota is counted by."""

    name: str
    family: str
    vcpus: int
    gpus: int


@cache
def sizes() -> Mapping[str, Size]:
    """Every size on offer, by its name in lower case."""
    text = resources.files("kaito_local.aks").joinpath("sizes.yaml").read_text()
    return {
        name.lower(): Size(name=name, family=family, vcpus=vcpus, gpus=gpus)
        for family, members in yaml.safe_load(text).items()
        for name, (vcpus, gpus) in members.items()
    }


def load(file: Path) -> Settings:
    """The settings in a YAML file whose keys are the fields of `Settings`. Raises UsageError."""
    try:
        document = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the emulator's configuration {file}: {error}") from error
    settings: Settings = build(Settings, document, where=str(file))
    return settings


def build(kind: type[Any], value: Any, *, where: str) -> Any:
    """A dataclass of this module out of plain YAML or JSON. Raises UsageError that names the key."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a mapping, not {value!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise UsageError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(hints))}")
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(value))
    if missing:
        raise UsageError(f"{where} lacks the key {missing[0]!r}")
    return kind(**{key: _convert(hints[key], part, where=f"{where}: {key}") for key, part in value.items()})


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where=where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        sequence = isinstance(value, list | tuple)
        for member in arguments:
            if member is not type(None) and sequence == (typing.get_origin(member) is tuple):
                return _convert(member, value, where=where)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], part, where=where) for part in value)
        if len(value) == len(arguments):
            return tuple(_convert(member, part, where=where) for member, part in zip(arguments, value, strict=True))
    if origin is Literal and value in arguments:
        return value
    if hint is Any or (origin is not None and origin is not Literal and isinstance(value, Mapping)):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    wanted = " or ".join(map(repr, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UsageError(f"{where} must be {wanted}, not {value!r}")
