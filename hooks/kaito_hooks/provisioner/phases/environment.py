"""What a phase is given besides the claim: clock, cloud, client and the memory of this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from kaito_hooks.provisioner.backoff import Backoff
from kaito_hooks.provisioner.cloud import CloudProvider
from kaito_hooks.provisioner.metrics import ProvisionerMetrics
from kaito_hooks.provisioner.nodes import Nodes
from kaito_hooks.provisioner.phases.drain import Drains
from kaito_hooks.provisioner.settings import Settings
from kaito_hooks.runtime import Client, Clock, Obj


class Events(Protocol):
    """An EventRecorder: never raises, never blocks."""

    def event(self, obj: Obj, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Tell users about an object."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Everything that a phase may use."""

    cloud: CloudProvider
    client: Client
    nodes: Nodes
    clock: Clock
    events: Events
    metrics: ProvisionerMetrics
    settings: Settings
    backoff: Backoff
    drains: Drains
