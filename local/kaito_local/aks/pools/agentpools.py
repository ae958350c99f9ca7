"""The agent pools of one cluster: what a request does to them, and what time does.

Independent of HTTP. All state is in the `Store`, so that a new process goes on where a killed one was. Operations end
by the clock, whether or not anybody asks.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

from kaito_local.aks.clock import Agenda, Clock
from kaito_local.aks.errors import aks_error
from kaito_local.aks.faults import FaultBook
from kaito_local.aks.machines.machines import Machines
from kaito_local.aks.pools.fleet import Fleet
from kaito_local.aks.pools.limits import check_machines, check_pools
from kaito_local.aks.pools.locks import check_conditions, check_idle
from kaito_local.aks.pools.operations import Operations
from kaito_local.aks.pools.pool import (
    BUSY,
    CANCELED,
    CREATING,
    DELETING,
    FAILED,
    RUNNING,
    STARTING,
    STOPPED,
    STOPPING,
    SUCCEEDED,
    UPDATING,
    UPGRADING,
    Failure,
    Operation,
    Pool,
    Store,
)
from kaito_local.aks.pools.records import Ledger
from kaito_local.aks.pools.validation import check_body, check_name
from kaito_local.aks.settings import Seconds, Settings, sizes

_HISTORY = 1024
_WITH_MACHINES = (CREATING, UPDATING, UPGRADING, STARTING, SUCCEEDED)


class AgentPools:
    """Thread-safe. ``limits`` may be replaced at any time."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        agenda: Agenda,
        store: Store,
        ledger: Ledger,
        faults: FaultBook,
        machines: Machines,
    ) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.locks = settings.locks
        self._clock = clock
        self._agenda = agenda
        self._store = store
        self._ledger = ledger
        self._lock = threading.RLock()
        self._pools = {pool.name: pool for pool in store.pools()}
        self._history: deque[tuple[float, tuple[Pool, ...]]] = deque(maxlen=_HISTORY)
        self.fleet = Fleet(machines, settings=settings, agenda=agenda, faults=faults, wanted=self._wanted)
        self._operations = Operations(
            store=store,
            clock=clock,
            agenda=agenda,
            fleet=self.fleet,
            seed=settings.seed,
            lock=self._lock,
            due=self._finish,
            pool_of=self._pools.get,
        )

    def resume(self) -> None:
        """Goes on with what the last process left unfinished."""
        with self._lock:
            self._remember()
            self._operations.resume()
            for pool in list(self._pools.values()):
                operation = self._operations.get(pool.operation)
                if pool.state == DELETING and operation.failure is None and not pool.machines_stopped:
                    self._end_machines(pool)
                elif pool.state == CREATING and operation.failure is None and not pool.machines_started:
                    self._plan_boot(pool, operation)
                elif pool.state == SUCCEEDED and not pool.machines_started:
                    self._boot(pool.name, pool.uid, at=self._clock.now())

    def get(self, name: str) -> Pool:
        """Raises Refusal 404 NotFound, in the words that tell a missing pool from a missing cluster."""
        with self._lock:
            pool = self._pools.get(name.lower())
        if pool is None:
            raise aks_error(
                404, "NotFound", f"Agent Pool not found. Agent pool '{name}' does not exist in the cluster."
            )
        return pool

    def listing(self, *, stale: float = 0.0) -> list[Pool]:
        """Every pool, oldest first; as they were ``stale`` seconds ago if that is not 0."""
        with self._lock:
            if not stale:
                return list(self._pools.values())
            then = self._clock.now() - stale
            return next((list(pools) for at, pools in reversed(self._history) if at <= then), [])

    def operation(self, identifier: str) -> Operation:
        """Raises Refusal 404."""
        return self._operations.get(identifier)

    def put(
        self, name: str, body: Any, *, if_match: str = "", if_none_match: str = "", failure: Failure | None = None
    ) -> tuple[bool, Pool, Operation]:
        """Whether the pool is a new one, the pool, and the operation that works on it. Raises Refusal."""
        check_name(name)
        with self._lock:
            old = self._pools.get(name)
            check_conditions(old, if_match=if_match, if_none_match=if_none_match)
            properties = check_body(body, self.settings)
            self._check_idle(name)
            if old is not None and old.size.lower() != str(properties["vmSize"]).lower():
                message = "Changing property 'properties.vmSize' is not allowed."
                raise aks_error(400, "PropertyChangeNotAllowed", message)
            size = sizes()[str(properties["vmSize"]).lower()]
            if old is None:
                check_pools(len(self._pools), self.limits)
            failure = failure or check_machines(
                size,
                int(properties.get("count", 1)),
                others=self._others(name),
                limits=self.limits,
                settings=self.settings,
            )
            now = self._clock.now()
            power = (properties.get("powerState") or {}).get("code")
            properties = {key: value for key, value in properties.items() if key != "powerState"}
            removed: Sequence[str] = ()
            if old is None:
                kind, event = "create", "Created"
                took = self.settings.durations.create_gpu if size.gpus else self.settings.durations.create_cpu
                pool = Pool(name=name, properties=properties, state=CREATING, created=now)
            elif power in (None, old.power):
                kind, event, took = "update", "Updated", self.settings.durations.update
                pool = old.changed(properties={**old.properties, **properties}, state=UPDATING, error=None)
                removed = sorted(set(old.labels) - set(pool.labels))
            else:
                kind, event, took, pool = self._switch(old, power)
                if failure is not None:
                    pool = dataclasses.replace(old, state=pool.state, etag=pool.etag)
            operation = self._operations.begin(kind, pool, took, failure=failure, removed_labels=removed)
            pool = dataclasses.replace(pool, operation=operation.id)
            self._keep(pool)
            self._ledger.record(event, pool, at=now)
            if kind == "create" and failure is None:
                self._plan_boot(pool, operation)
        return old is None, pool, operation

    def change(self, name: str, **properties: Any) -> tuple[Pool, Operation]:
        """A PUT of the pool with ``properties`` on top of its own, as users' tools make them. Raises Refusal."""
        with self._lock:
            _, pool, operation = self.put(name, {"properties": {**self.get(name).properties, **properties}})
        return pool, operation

    def upgrade(self, name: str, *, failure: Failure | None = None) -> tuple[Pool, Operation]:
        """Gives the pool's machines the newest node image, as `stages.py` says. Raises Refusal."""
        with self._lock:
            pool = self.get(name)
            self._check_idle(pool.name)
            pool = pool.changed(state=UPGRADING, error=None)
            if failure is None:
                pool = dataclasses.replace(pool, image=pool.image + 1, surges=pool.surges + 1)
            # Machines that are off take the new image when they start.
            kind = "upgrade" if pool.power == RUNNING else "update"
            operation = self._operations.begin(kind, pool, self.settings.durations.upgrade, failure=failure)
            pool = dataclasses.replace(pool, operation=operation.id)
            self._keep(pool)
            self._ledger.record("Upgrading", pool, at=self._clock.now())
        return pool, operation

    def reimage(self, name: str) -> Pool:
        """Reimages the pool's machines under their Nodes, as node auto-repair does; its state does not tell.

        Raises Refusal.
        """
        with self._lock:
            pool = self.get(name)
            if not pool.machines_started or pool.power != RUNNING:
                raise aks_error(400, "OperationNotAllowed", f"Agent pool '{name}' has no machine that runs.")
        self.fleet.reimage(pool, then=lambda: self._ledger.record("Reimaged", pool, at=self._clock.now()))
        return pool

    def delete(self, name: str, *, if_match: str = "", failure: Failure | None = None) -> tuple[Pool, Operation] | None:
        """The operation that deletes the pool; None if there is no such pool. Raises Refusal.

        With ``failure`` the pool and its machines stay.
        """
        with self._lock:
            pool = self._pools.get(name.lower())
            if pool is None:
                return None
            check_conditions(pool, if_match=if_match)
            if pool.state == DELETING:
                return pool, self._operations.get(pool.operation)
            self._check_idle(pool.name, deletion=self.settings.delete_while_creating)
            now = self._clock.now()
            self._interrupt(pool, at=now)
            pool = pool.changed(state=DELETING)
            operation = self._operations.begin("delete", pool, self.settings.durations.delete, failure=failure)
            pool = dataclasses.replace(pool, operation=operation.id)
            self._keep(pool)
            self._ledger.record("Deleting", pool, at=now)
            if failure is None:
                self._end_machines(pool)
        return pool, operation

    def abort(self, name: str) -> tuple[Pool, Operation]:
        """Cancels the operation that works on the pool. Raises Refusal when there is none."""
        with self._lock:
            pool = self.get(name)
            if pool.state not in BUSY or pool.state == DELETING:
                raise aks_error(400, "OperationNotAllowed", f"There is no operation on agent pool '{name}' to abort.")
            failure = Failure({"code": "OperationCanceled", "message": "The operation was aborted."}, canceled=True)
            self._interrupt(pool, at=self._clock.now())
            operation = self._operations.begin("abort", pool, self.settings.durations.abort, failure=failure)
            pool = pool.changed(operation=operation.id)
            self._keep(pool)
        return pool, operation

    def settle(self, *, seconds: float = 30.0) -> None:
        """Waits until everything that is due has happened, machines included."""
        while True:
            self._agenda.settle(seconds=seconds)
            self.fleet.settle(seconds=seconds)
            if self._agenda.idle():
                return

    def _switch(self, pool: Pool, power: str) -> tuple[str, str, Seconds, Pool]:
        """Kind, event and time of the operation that stops or starts the pool, and the pool. Raises Refusal."""
        if pool.state != SUCCEEDED:
            message = f"Agent pool '{pool.name}' is {pool.state}; only one that is Succeeded can be stopped or started."
            raise aks_error(400, "OperationNotAllowed", message)
        if power == STOPPED:
            stopping = pool.changed(power=STOPPED, state=STOPPING)
            return "stop", "Stopping", self.settings.durations.stop, stopping
        first = pool.first + pool.count + pool.surges
        starting = pool.changed(power=RUNNING, state=STARTING, first=first, surges=0)
        return "start", "Starting", self.settings.durations.start, starting

    def _finish(self, operation: Operation, due: float) -> None:
        with self._lock:
            pool = self._pools.get(operation.pool)
            if operation.kind == "delete" and operation.failure is None:
                if pool is not None and pool.machines_stopped:
                    self._gone(pool, operation, at=due)
                return
            failed = operation.failure is not None
            state = SUCCEEDED if not failed else CANCELED if operation.canceled else FAILED
            # An abort does what it was asked to do by leaving its pool Canceled.
            status = SUCCEEDED if operation.kind == "abort" else state
            self._operations.end(operation, status, at=due)
            if pool is None or pool.operation != operation.id:
                return
            error = operation.failure if operation.kind != "abort" else None
            pool = pool.changed(state=state, error=error or None)
            self._keep(pool)
            event = STOPPED if operation.kind == "stop" and not failed else state
            self._ledger.record(event, pool, at=due, **({"error": error} if error else {}))
            if operation.kind == "update" and state == SUCCEEDED and not pool.machines_started:
                # The creation had failed; this is what put it right.
                self._boot(pool.name, pool.uid, at=due)

    def _interrupt(self, pool: Pool, *, at: float) -> None:
        operation = self._operations.get(pool.operation)
        if operation.ended is None:
            message = "The operation was preempted by a more recent one."
            failure = Failure({"code": "AKSOperationPreempted", "message": message})
            self._operations.end(operation, CANCELED, at=at, failure=failure)

    def _plan_boot(self, pool: Pool, operation: Operation) -> None:
        at = max(operation.started, operation.due - self.settings.durations.node_lead)
        self._agenda.at(at, lambda _: self._boot(pool.name, pool.uid, at=operation.due))

    def _boot(self, name: str, uid: str, *, at: float) -> None:
        """Boots that very pool's machines; ``at``: when it is, or will be, Succeeded."""
        with self._lock:
            pool = self._pools.get(name)
        if pool is not None and pool.uid == uid and self._wanted(pool):
            self.fleet.boot(pool, at=at, then=lambda: self._booted(pool))

    def _booted(self, pool: Pool) -> None:
        with self._lock:
            current = self._pools.get(pool.name)
            if current is not None and current.uid == pool.uid:
                self._keep(dataclasses.replace(current, machines_started=True))
                self._ledger.record("MachinesStarted", current, at=self._clock.now())

    def _end_machines(self, pool: Pool) -> None:
        self.fleet.end(pool, then=lambda: self._ended(pool))

    def _ended(self, pool: Pool) -> None:
        with self._lock:
            current = self._pools.get(pool.name)
            if current is None or current.uid != pool.uid:
                return
            current = dataclasses.replace(current, machines_stopped=True)
            self._keep(current)
            operation = self._operations.get(current.operation)
            if operation.due <= self._clock.now():
                self._gone(current, operation, at=self._clock.now())

    def _gone(self, pool: Pool, operation: Operation, *, at: float) -> None:
        if operation.ended is not None:
            return
        self._operations.end(operation, SUCCEEDED, at=at)
        del self._pools[pool.name]
        self._store.forget_pool(pool.name)
        self._remember()
        self._ledger.record("Gone", pool, at=at)

    def _wanted(self, pool: Pool) -> bool:
        with self._lock:
            current = self._pools.get(pool.name)
        if current is None or current.uid != pool.uid:
            return False
        return current.power == RUNNING and current.state in _WITH_MACHINES

    def _check_idle(self, name: str, *, deletion: Literal["", "preempt", "refuse"] = "") -> None:
        others = self._others(name)
        check_idle(self._pools.get(name), others=others, locks=self.locks, deletion=deletion)

    def _others(self, name: str) -> list[Pool]:
        return [pool for pool in self._pools.values() if pool.name != name]

    def _keep(self, pool: Pool) -> None:
        self._pools[pool.name] = pool
        self._store.save_pool(pool)
        self._remember()

    def _remember(self) -> None:
        self._history.append((self._clock.now(), tuple(self._pools.values())))
