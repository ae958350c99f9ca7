"""What operations do to a pool's machines on their way, and when.

A node image upgrade, as https://learn.microsoft.com/azure/aks/upgrade-aks-node-pools-rolling describes it for a pool of
one machine (the surge is one machine unless a pool asks for more): a surge machine joins, the old Node is cordoned and
deleted, its machine is reimaged and joins again under the same name, the surge machine goes. Pods are not evicted
first, so a disruption budget does not hold an upgrade up here.

A pool that is stopped loses its machines and their Nodes (its scaleDownMode is Delete); started again it gets new ones
with new names. New labels are put on the Nodes that are there, old ones taken off, and nothing is reimaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kaito_local.aks.pools.fleet import Fleet
from kaito_local.aks.pools.pool import Operation, Pool

Done = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """``act`` is called when ``share`` of the operation's time has passed and the stage before it is done."""

    share: float
    act: Callable[[Fleet, Pool, Operation, Done], None]


def _add_surge(fleet: Fleet, pool: Pool, operation: Operation, done: Done) -> None:
    fleet.start(pool, [pool.surge], then=done)


def _remove_surge(fleet: Fleet, pool: Pool, operation: Operation, done: Done) -> None:
    fleet.remove(pool, [pool.surge], then=done)


def _start_members(fleet: Fleet, pool: Pool, operation: Operation, done: Done) -> None:
    fleet.start(pool, pool.members, then=done)


def _remove_members(fleet: Fleet, pool: Pool, operation: Operation, done: Done) -> None:
    fleet.remove(pool, pool.members, then=done)


def _relabel(fleet: Fleet, pool: Pool, operation: Operation, done: Done) -> None:
    fleet.relabel(pool, removed=operation.removed_labels, then=done)


STAGES: Mapping[str, tuple[Stage, ...]] = {
    "update": (Stage(0.0, _relabel),),
    "upgrade": (
        Stage(0.0, _add_surge),
        Stage(1 / 3, _remove_members),
        Stage(2 / 3, _start_members),
        Stage(1.0, _remove_surge),
    ),
    "stop": (Stage(0.0, _remove_members),),
    "start": (Stage(0.0, _start_members),),
}
"""By the kind of operation; others have none."""
