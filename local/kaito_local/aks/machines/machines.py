"""What an agent pool is made of: machines that join the cluster as Nodes.

`Machines` is the seam between the emulated cloud and what really runs: `BareNodes` (bare_nodes.py) makes Node
objects without anything behind them, `NodeMachines` (node_machines.py) boots real nodes, `NoMachines` nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One machine of a pool. ``taints`` are ``key=value:Effect``; GPUs appear ``gpu_delay_seconds`` after the start.

    ``ready`` False: never becomes Ready. ``not_ready_after_seconds``: turns NotReady that long after its start. Both
    are for machines that are Node objects only; real ones do as they do.
    """

    pool: str
    node_name: str
    provider_id: str
    vm_size: str
    labels: Mapping[str, str]
    taints: tuple[str, ...]
    gpu_count: int
    gpu_delay_seconds: float
    ready: bool = True
    not_ready_after_seconds: float | None = None


class Machines(Protocol):
    """Starts, changes and ends machines; called by several threads, but never twice at once for one pool.

    An exception of any verb means: try again.
    """

    def start(self, spec: MachineSpec) -> None:
        """Boots the machine and returns at once or within about 2 s; its Node appears on its own.

        A no-op for a machine that was started before, whatever became of it, unless it was removed since.
        """

    def remove(self, pool: str, node_name: str) -> None:
        """Cordons one machine's Node, ends the machine and deletes the Node, which a finalizer may hold. Idempotent."""

    def reimage(self, spec: MachineSpec) -> None:
        """Ends the machine and boots it with an empty disk; its Node object stays and is NotReady until it is back."""

    def relabel(self, node_name: str, labels: Mapping[str, str | None]) -> None:
        """Changes labels of a Node, None takes one off; a no-op for one that does not exist."""

    def stop(self, pool: str) -> None:
        """Ends every machine of the pool. Idempotent.

        When it returns, the machines are gone and their Node objects are deleted; a Node that somebody holds by a
        finalizer stays until they let go.
        """


class NoMachines:
    """Pools without machines: no Node ever appears."""

    def start(self, spec: MachineSpec) -> None:
        """Does nothing."""

    def remove(self, pool: str, node_name: str) -> None:
        """Does nothing."""

    def reimage(self, spec: MachineSpec) -> None:
        """Does nothing."""

    def relabel(self, node_name: str, labels: Mapping[str, str | None]) -> None:
        """Does nothing."""

    def stop(self, pool: str) -> None:
        """Does nothing."""
