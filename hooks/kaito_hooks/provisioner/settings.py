"""The durations and switches that the phases follow."""

from __future__ import annotations

from dataclasses import dataclass

from kaito_hooks.api.claim import OUR_CLASS, NodeClassRef

MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """All durations are in seconds; 0 switches ``registration_timeout``, ``launch_timeout``, ``node_repair_timeout``
    and ``termination_grace_period`` off.

    ``registration_timeout`` bounds how long a machine may bill without a Node, ``launch_timeout`` how long a claim may
    be without a machine, ``termination_grace_period`` how long Pods may hold the machine of a deleted claim that says
    nothing of it. ``gc_interval`` is the time between sweeps, ``pool_poll_interval`` the age of the shared
    listing that waiting claims read.
    """

    registration_timeout: float = 15 * MINUTE
    launch_timeout: float = 0.0
    node_repair_timeout: float = 10 * MINUTE
    termination_grace_period: float = 60 * MINUTE
    gc_interval: float = 2 * MINUTE
    pool_poll_interval: float = 5.0
    manage_by_label: bool = False
    delete_on_insufficient_capacity: bool = False
    node_class: NodeClassRef = OUR_CLASS
