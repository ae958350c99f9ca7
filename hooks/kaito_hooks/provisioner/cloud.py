"""The seam to a cloud: verbs over Instances, none of which waits for the cloud to finish anything.

An Instance is one machine under a claim's name (on AKS: an agent pool of one node). Its state, not our memory, says how
far it is, so a restart loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim, Taint
from kaito_hooks.provisioner import ownership
from kaito_hooks.provisioner.errors import CloudError


class State(Enum):
    """What the cloud says of an instance. Whatever the cloud may add later is OTHER: wait."""

    CREATING = "Creating"
    UPDATING = "Updating"
    UPGRADING = "Upgrading"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELED = "Canceled"
    DELETING = "Deleting"
    OTHER = "Other"

    @property
    def broken(self) -> bool:
        """Whether it will never become a machine by itself."""
        return self in (State.FAILED, State.CANCELED)

    @property
    def replaces_nodes(self) -> bool:
        """Whether the cloud may delete the machine's Node by itself, to register it anew under its name."""
        return self in (State.UPDATING, State.UPGRADING)


@dataclass(frozen=True, slots=True)
class Order:
    """The machine that a claim asks for.

    ``region`` "" = wherever the cluster is; ``zones``: any of them, none named = wherever the cloud likes, in the
    values of the Node's zone label; ``spot``: it may be taken away at any time. ``disk_gib`` None = the cloud's
    default; ``created`` is when it was ordered; ``warning`` "" = the claim is followed in everything.
    """

    name: str
    claim_uid: str
    instance_type: str
    region: str
    zones: tuple[str, ...]
    spot: bool
    image_family: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    disk_gib: int | None
    created: datetime
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """What the cloud has under ``name``. ``labels`` are those it gives its Node; ``etag`` "" = the cloud gave none."""

    name: str
    state: State
    labels: Mapping[str, str]
    etag: str = ""
    created: datetime | None = None
    error: CloudError | None = field(default=None, compare=False)

    @property
    def ours(self) -> bool:
        """Whether a provisioner made it, for whatever claim."""
        return ownership.is_ours(self.labels)

    @property
    def claim_uid(self) -> str:
        """The UID of the claim that it was made for; "" for upstream's."""
        return self.labels.get(labels.CLAIM_UID, "")

    def belongs_to(self, claim: Claim) -> bool:
        """Whether it was made for this very claim."""
        return self.name == claim.name and ownership.belongs_to(self.labels, claim)

    def may_belong_to(self, claim: Claim) -> bool:
        """Whether it is, or may be, this claim's machine: labels that somebody replaced prove no other owner.

        A claim without a providerID never had a machine, so an unlabelled instance of its name is somebody else's.
        """
        return self.belongs_to(claim) or (self.name == claim.name and bool(claim.provider_id) and not self.ours)


class CloudProvider(Protocol):
    """Every verb raises the CloudErrors of errors.py, is safe in any thread and returns within its request timeout."""

    @property
    def node_label(self) -> str:
        """The label of a Node whose value is its instance's name."""

    def order(self, claim: Claim, now: datetime) -> Order:
        """What a claim asks of this cloud; InvalidRequest says what is wrong with it. Nothing is sent."""

    def ensure(self, order: Order) -> Instance:
        """Order the machine unless something of that name exists; what exists then, ours or not, is returned.

        Called any number of times, by any number of processes, it makes at most one machine.
        """

    def get(self, name: str, *, max_age: float = 0.0) -> Instance | None:
        """What exists under that name; None only if the cloud said that nothing does.

        With ``max_age`` (seconds) the answer may come from a listing that all callers share, so None is a hint that a
        call without ``max_age`` must confirm before anything is given up.
        """

    def list(self) -> Sequence[Instance]:
        """Everything there is, ours or not, complete; never a part of it: then an error."""

    def delete(self, instance: Instance) -> None:
        """Start to delete exactly what ``get`` returned; InstanceChanged if it is not that any more.

        Returns when the cloud has accepted; only a later ``get`` tells that it is gone. PoolNameConflict, and nothing
        sent, for an instance that is not ours.
        """
