"""What a plan asks for: actions as data, in the order in which they must happen, and the Plan that has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.snapshot import Memory


@dataclass(frozen=True, slots=True)
class Adopt:
    """Put our finalizer and these annotations on the Workspace."""

    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Release:
    """Take our finalizer off the Workspace: nothing of it bills any more."""


@dataclass(frozen=True, slots=True)
class BuyClaim:
    """POST this Machine or NodeClaim, made for that slot."""

    claim: Obj
    slot: int


@dataclass(frozen=True, slots=True)
class LabelNode:
    """Set ``accelerator=nvidia`` on a Node that has no such label."""

    node: str


@dataclass(frozen=True, slots=True)
class CreateChild:
    """POST a child that is not there."""

    child: Obj


@dataclass(frozen=True, slots=True)
class ApplyChild:
    """Bring a child of ours, identified by ``uid``, to what it should be."""

    child: Obj
    uid: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one object, if it still is the one with that uid; ``namespace`` is "" for cluster scope.

    ``foreground``: it stays until everything that it owns is gone, so its absence tells that its Pods are gone too.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    foreground: bool = False


@dataclass(frozen=True, slots=True)
class CopyConfigMap:
    """POST this ConfigMap, which belongs to nobody; one of that name is as good."""

    config_map: Obj


Action = Adopt | Release | BuyClaim | LabelNode | CreateChild | ApplyChild | Delete | CopyConfigMap


@dataclass(frozen=True, slots=True)
class Note:
    """An Event on the Workspace. ``alone``: never told together with others, so that it is found by its reason."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where one concern stands, in a sentence for the user."""

    state: Literal["ready", "waiting", "failed"]
    message: str = ""

    @property
    def ready(self) -> bool:
        """Whether nothing is left to do."""
        return self.state == "ready"


@dataclass(frozen=True, slots=True)
class Plan:
    """``status``: the whole new status, or None. ``look_again``: in how many seconds at the latest, or None.

    Events: ``deeds`` say what the actions did, ``notes`` what the status newly says. ``memory``: what is remembered
    from here on; the actions may add to it.
    """

    actions: tuple[Action, ...] = ()
    status: dict[str, Any] | None = None
    deeds: tuple[Note, ...] = ()
    notes: tuple[Note, ...] = ()
    look_again: float | None = None
    memory: Memory = field(default_factory=Memory)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.actions and self.status is None
