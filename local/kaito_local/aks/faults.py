"""What is to go wrong, when and how often.

A fault waits for requests that match its method, pool and target, lets ``nth - 1`` of them pass, and applies to the
next ``times``. Ready-made ones (`ready_made`) carry the wire forms of faults.yaml.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from kaito_local.aks.settings import build
from kaito_local.errors import UsageError
from kaito_local.machine.pki import write_private

Target = Literal["arm", "token", "machine"]


@dataclass(frozen=True, slots=True)
class MachineFault:
    """How a pool's machine disappoints.

    ``late``: seconds until it boots. ``never``: it does not. ``count``: how many Nodes it makes. ``provider_id`` False:
    its Node has none. ``ready`` False: its Node is never Ready. ``not_ready_after``: seconds after which it is not any
    more. ``gpu`` False: its GPUs never show up.
    """

    late: float = 0.0
    never: bool = False
    count: int = 1
    provider_id: bool = True
    ready: bool = True
    not_ready_after: float | None = None
    gpu: bool = True


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    ``target``: the ARM API, the token endpoint, or the machine of a pool that succeeds. ``method``: GET, PUT, ..., LIST
    for a GET of all pools, or "*". ``pool``: a shell pattern. ``times`` None: for ever.

    For requests: ``delay`` real seconds before the answer; ``status`` with ``body`` (JSON) or ``text`` and ``headers``
    instead of the answer; ``cut`` closes the connection before or after the request has its effect; ``error`` (code,
    message, details) lets an accepted PUT, POST or DELETE fail later, ``canceled`` end as Canceled; ``stale`` answers a
    LIST as it was that many seconds ago; ``omit`` leaves pools (shell patterns) out of it; ``lifetime`` gives out
    tokens that live so many seconds.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    name: str = ""
    target: Target = "arm"
    method: str = "*"
    pool: str = "*"
    nth: int = 1
    times: int | None = 1
    delay: float = 0.0
    status: int = 0
    body: Mapping[str, Any] | None = None
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: Literal["", "before", "after"] = ""
    error: Mapping[str, Any] | None = None
    canceled: bool = False
    stale: float = 0.0
    omit: tuple[str, ...] = ()
    lifetime: float | None = None
    machine: MachineFault | None = None
    reason: str = ""

    @property
    def answers(self) -> bool:
        """Whether the client gets this instead of what it asked for."""
        return self.status != 0


@cache
def ready_made() -> Mapping[str, Mapping[str, Any]]:
    """The entries of faults.yaml: fields of `Fault` by name."""
    text = resources.files("kaito_local.aks").joinpath("faults.yaml").read_text()
    entries: dict[str, Mapping[str, Any]] = yaml.safe_load(text)
    return entries


def fault(name: str = "", /, **fields: Any) -> Fault:
    """The ready-made fault ``name`` (or a blank one) with ``fields`` on top. Raises UsageError.

    Ready-made faults apply to PUT unless another method is given.
    """
    if name and name not in ready_made():
        raise UsageError(f"there is no ready-made fault {name!r}; there are {', '.join(sorted(ready_made()))}")
    base: dict[str, Any] = {"name": name, "method": "PUT", **ready_made()[name]} if name else {}
    made: Fault = build(Fault, {**base, **fields}, where="fault")
    return made


class FaultBook:
    """The faults that wait for their turn; thread-safe, and kept in ``file`` across restarts."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        if file.exists():
            self._faults = [build(Fault, entry, where=str(file)) for entry in json.loads(file.read_text())]

    def add(self, new: Fault) -> Fault:
        """Enters a fault, after those that wait already."""
        with self._lock:
            self._faults.append(new)
            self._save()
        return new

    def remove(self, identifier: str | None = None) -> None:
        """Forgets one fault, or all of them."""
        with self._lock:
            self._faults = [f for f in self._faults if identifier is not None and f.id != identifier]
            self._save()

    def waiting(self) -> list[Fault]:
        """What is still to go wrong; ``nth`` and ``times`` are what is left of them."""
        with self._lock:
            return list(self._faults)

    def take(self, target: Target, *, method: str = "*", pool: str = "") -> Fault | None:
        """The first fault whose turn this request is; all that match it count it."""
        taken: Fault | None = None
        with self._lock:
            left = []
            for entry in self._faults:
                current = entry
                if _matches(entry, target, method, pool):
                    if entry.nth > 1:
                        current = dataclasses.replace(entry, nth=entry.nth - 1)
                    elif taken is None:
                        taken = entry
                        if entry.times is not None:
                            current = dataclasses.replace(entry, times=entry.times - 1)
                if current.times is None or current.times > 0:
                    left.append(current)
            if left != self._faults:
                self._faults = left
                self._save()
        return taken

    def _save(self) -> None:
        entries = [dataclasses.asdict(entry) for entry in self._faults]
        write_private(self._file, json.dumps(entries).encode(), mode=0o644)


def _matches(entry: Fault, target: Target, method: str, pool: str) -> bool:
    if entry.target != target or not fnmatch.fnmatchcase(pool.lower(), entry.pool.lower()):
        return False
    return entry.method in ("*", method)
