"""Writes that the API server has refused for good: left out of a plan until they are due again, and told meanwhile.

Of what is bought, and of children that are kept, ``supply`` and ``children`` tell with what it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kaito_hooks.workspace.decision.actions import (
    Action,
    Adopt,
    ApplyChild,
    CopyConfigMap,
    CreateChild,
    Delete,
    LabelNode,
    Note,
    Outcome,
    Release,
)
from kaito_hooks.workspace.decision.snapshot import Snapshot


def name_of(action: Action) -> str:
    """Under which its refusal is remembered; "" of an action whose refusal is none."""
    match action:
        case Adopt() | Release():
            return "Workspace"
        case CreateChild(child=obj) | ApplyChild(child=obj) | CopyConfigMap(config_map=obj):
            return f"{obj['kind']}/{obj['metadata']['name']}"
        case LabelNode(node=node):
            return f"Node/{node}"
        case Delete(kind=kind, name=name):
            return f"deletion of {kind}/{name}"
    return ""


@dataclass(frozen=True, slots=True)
class Due:
    """``actions`` that may be tried. ``causes``: refusals that keep the Workspace from going on; ``aside``: others.

    ``deeds``: what the actions did, without deletions that are not among them.
    """

    actions: tuple[Action, ...]
    deeds: tuple[Note, ...]
    causes: tuple[Outcome, ...]
    aside: tuple[Outcome, ...]


def split(s: Snapshot, actions: Sequence[Action], deeds: Sequence[Note], *, has_nodes: bool = False) -> Due:
    """What of a plan may be tried, and what is to be said of the rest.

    ``has_nodes``: whether all nodes are there with their GPUs, so that a label that one lacks keeps nobody waiting.
    """
    refused = {
        name: refusal.message
        for name in map(name_of, actions)
        if (refusal := s.memory.refusals.get(name)) is not None and s.now < refusal.retry_at
    }
    left_out = [action for action in actions if name_of(action) in refused]
    # A Workspace is served without its history.
    history = {name_of(a) for a in left_out if isinstance(a, CreateChild) and a.child["kind"] == "ControllerRevision"}
    labels = {name_of(action) for action in left_out if has_nodes and isinstance(action, LabelNode)}
    keeps_deletions = not any(isinstance(action, Delete) for action in left_out)
    # Nothing is bought or changed for what is not noted on the Workspace.
    goes_on = not any(isinstance(action, Adopt) for action in left_out)
    return Due(
        tuple(action for action in actions if goes_on and name_of(action) not in refused),
        tuple(deed for deed in deeds if goes_on and (keeps_deletions or not deed.reason.startswith("Deleted"))),
        tuple(Outcome("failed", message) for name, message in refused.items() if name not in history | labels),
        tuple(Outcome("failed", message) for name, message in refused.items() if name in history),
    )
