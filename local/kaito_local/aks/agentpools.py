"""The agent pools of one cluster: what a request does to them, and what time does.

Independent of HTTP. All state is in the `Store`, so that a new process goes on where a killed one was. Operations end
by the clock, whether or not anybody asks.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaito_local.aks.clock import Agenda, Clock
from kaito_local.aks.errors import Refusal, aks_error
from kaito_local.aks.faults import FaultBook
from kaito_local.aks.fleet import Fleet
from kaito_local.aks.machines import Machines
from kaito_local.aks.pool import CANCELED, CREATING, DELETING, FAILED, SUCCEEDED, UPDATING, Operation, Pool, Store
from kaito_local.aks.records import Ledger
from kaito_local.aks.settings import Limits, Seconds, Settings, Size, sizes
from kaito_local.aks.validation import check_body, check_name

_BUSY = (CREATING, UPDATING, DELETING)
_HISTORY = 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """How an accepted creation ends: with ``error`` (code, message, details; may be empty), as Failed or Canceled."""

    error: Mapping[str, Any]
    canceled: bool = False


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
        self._random = random.Random(settings.seed)
        self._lock = threading.RLock()
        self._pools = {pool.name: pool for pool in store.pools()}
        self._operations = {operation.id: operation for operation in store.operations()}
        self._history: deque[tuple[float, tuple[Pool, ...]]] = deque(maxlen=_HISTORY)
        self.fleet = Fleet(machines, settings=settings, agenda=agenda, faults=faults, wanted=self._wanted)

    def resume(self) -> None:
        """Goes on with what the last process left unfinished."""
        with self._lock:
            self._remember()
            for operation in self._operations.values():
                if operation.ended is None:
                    self._agenda.at(operation.due, self._finisher(operation.id))
            for pool in list(self._pools.values()):
                if pool.state == DELETING and not pool.machines_stopped:
                    self._end_machines(pool)
                elif pool.state == SUCCEEDED and not pool.machines_started:
                    self._boot(pool, at=self._clock.now())

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
        with self._lock:
            operation = self._operations.get(identifier)
        if operation is None:
            raise aks_error(404, "NotFound", f"The operation '{identifier}' is not found.")
        return operation

    def put(
        self, name: str, body: Any, *, if_match: str = "", if_none_match: str = "", failure: Failure | None = None
    ) -> tuple[bool, Pool, Operation]:
        """Whether the pool is a new one, the pool, and the operation that works on it. Raises Refusal."""
        check_name(name)
        with self._lock:
            old = self._pools.get(name)
            _check_conditions(old, if_match=if_match, if_none_match=if_none_match)
            properties = check_body(body, self.settings)
            self._check_locks(name, old)
            if old is not None and old.size.lower() != str(properties["vmSize"]).lower():
                message = "Changing property 'properties.vmSize' is not allowed."
                raise aks_error(400, "PropertyChangeNotAllowed", message)
            size = sizes()[str(properties["vmSize"]).lower()]
            failure = failure or self._check_limits(name, size, int(properties.get("count", 1)))
            now = self._clock.now()
            if old is None:
                took = self.settings.durations.create_gpu if size.gpus else self.settings.durations.create_cpu
                pool = Pool(name=name, properties=dict(properties), state=CREATING, created=now)
                event = "Created"
            else:
                took = self.settings.durations.update
                pool = old.changed(properties={**old.properties, **properties}, state=UPDATING, error=None)
                event = "Updated"
            operation = self._begin("update" if old else "create", pool, took, failure=failure)
            pool = dataclasses.replace(pool, operation=operation.id)
            self._keep(pool)
            self._ledger.record(event, pool, at=now)
        return old is None, pool, operation

    def delete(self, name: str, *, if_match: str = "") -> tuple[Pool, Operation] | None:
        """The operation that deletes the pool; None if there is no such pool. Raises Refusal."""
        with self._lock:
            pool = self._pools.get(name.lower())
            if pool is None:
                return None
            _check_conditions(pool, if_match=if_match)
            if pool.state == DELETING:
                return pool, self._operations[pool.operation]
            self._check_locks(pool.name, pool, deleting=True)
            now = self._clock.now()
            self._interrupt(pool, at=now)
            pool = pool.changed(state=DELETING)
            operation = self._begin("delete", pool, self.settings.durations.delete)
            pool = dataclasses.replace(pool, operation=operation.id)
            self._keep(pool)
            self._ledger.record("Deleting", pool, at=now)
            self._end_machines(pool)
        return pool, operation

    def abort(self, name: str) -> tuple[Pool, Operation]:
        """Cancels the operation that works on the pool. Raises Refusal when there is none."""
        with self._lock:
            pool = self.get(name)
            if pool.state not in (CREATING, UPDATING):
                raise aks_error(400, "OperationNotAllowed", f"There is no operation on agent pool '{name}' to abort.")
            failure = Failure({"code": "OperationCanceled", "message": "The operation was aborted."}, canceled=True)
            self._interrupt(pool, at=self._clock.now())
            operation = self._begin("abort", pool, self.settings.durations.abort, failure=failure)
            pool = pool.changed(operation=operation.id)
            self._keep(pool)
        return pool, operation

    def settle(self, *, seconds: float = 30.0) -> None:
        """Waits until everything that is due has happened, machines included."""
        for _ in range(3):
            self._agenda.settle(seconds=seconds)
            self.fleet.settle(seconds=seconds)

    def _begin(self, kind: str, pool: Pool, took: Seconds, *, failure: Failure | None = None) -> Operation:
        now = self._clock.now()
        operation = Operation(
            id=str(uuid.UUID(int=self._random.getrandbits(128), version=4))
            if self.settings.seed
            else str(uuid.uuid4()),
            kind=kind,
            pool=pool.name,
            pool_uid=pool.uid,
            started=now,
            due=now + (self._random.uniform(*took) if isinstance(took, tuple) else took),
            failure=dict(failure.error) if failure else None,
            canceled=bool(failure and failure.canceled),
        )
        self._keep_operation(operation)
        self._agenda.at(operation.due, self._finisher(operation.id))
        return operation

    def _finisher(self, identifier: str) -> Any:
        return lambda due: self._finish(identifier, due)

    def _finish(self, identifier: str, due: float) -> None:
        with self._lock:
            operation = self._operations[identifier]
            pool = self._pools.get(operation.pool)
            if operation.ended is not None:
                return
            if operation.kind == "delete":
                if pool is not None and pool.machines_stopped:
                    self._gone(pool, operation, at=due)
                return
            failed = operation.failure is not None
            state = SUCCEEDED if not failed else CANCELED if operation.canceled else FAILED
            # An abort does what it was asked to do by leaving its pool Canceled.
            status = SUCCEEDED if operation.kind == "abort" else state
            self._keep_operation(dataclasses.replace(operation, status=status, ended=due))
            if pool is None or pool.operation != identifier:
                return
            error = operation.failure if operation.kind != "abort" else None
            pool = pool.changed(state=state, error=error or None)
            self._keep(pool)
            self._ledger.record(state, pool, at=due, **({"error": error} if error else {}))
            if state == SUCCEEDED and not pool.machines_started:
                self._boot(pool, at=due)

    def _interrupt(self, pool: Pool, *, at: float) -> None:
        operation = self._operations.get(pool.operation)
        if operation is not None and operation.ended is None:
            error = {"code": "AKSOperationPreempted", "message": "The operation was preempted by a more recent one."}
            self._keep_operation(dataclasses.replace(operation, status=CANCELED, ended=at, failure=error))

    def _boot(self, pool: Pool, *, at: float) -> None:
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
            operation = self._operations[current.operation]
            if operation.due <= self._clock.now():
                self._gone(current, operation, at=self._clock.now())

    def _gone(self, pool: Pool, operation: Operation, *, at: float) -> None:
        if operation.ended is not None:
            return
        self._keep_operation(dataclasses.replace(operation, status=SUCCEEDED, ended=at))
        del self._pools[pool.name]
        self._store.forget_pool(pool.name)
        self._remember()
        self._ledger.record("Gone", pool, at=at)

    def _wanted(self, pool: Pool) -> bool:
        with self._lock:
            current = self._pools.get(pool.name)
            return current is not None and current.uid == pool.uid and current.state in (SUCCEEDED, UPDATING)

    def _check_locks(self, name: str, pool: Pool | None, *, deleting: bool = False) -> None:
        if pool is not None and pool.state in _BUSY:
            preempts = deleting and pool.state == CREATING and self.settings.delete_while_creating == "preempt"
            if pool.state == DELETING or (self.locks != "none" and not preempts):
                raise _busy(_in_progress(pool))
            if deleting and pool.state == CREATING and not preempts:
                raise _busy(_in_progress(pool))
        if self.locks != "cluster":
            return
        for other in self._pools.values():
            if other.name != name and other.state in _BUSY:
                raise _busy(f"Another operation ({other.name} - {other.state}) is in progress")

    def _check_limits(self, name: str, size: Size, count: int) -> Failure | None:
        """Raises Refusal, or says with what the operation will fail, or None."""
        limits = self.limits
        others = [pool for pool in self._pools.values() if pool.name != name and pool.state not in (FAILED, CANCELED)]
        if size.name.lower() in (restricted.lower() for restricted in limits.restricted):
            return _restricted(size, self.settings.location, asynchronous=limits.asynchronous)
        for family in (size.family, "regional"):
            limit = limits.quota.get(family)
            if limit is None:
                continue
            used = sum(_vcpus(pool) for pool in others if family in ("regional", sizes()[pool.size.lower()].family))
            if used + size.vcpus * count > limit:
                return _quota(size, count, family=family, limit=limit, used=used, settings=self.settings, limits=limits)
        left = next((n for key, n in limits.capacity.items() if key.lower() == size.name.lower()), None)
        taken = sum(int(p.properties.get("count", 1)) for p in others if p.size.lower() == size.name.lower())
        if left is not None and taken + count > left:
            message = "Allocation failed. We do not have sufficient capacity for the requested VM size in this region."
            return Failure({"code": "AllocationFailed", "message": message, "details": []})
        return None

    def _keep(self, pool: Pool) -> None:
        self._pools[pool.name] = pool
        self._store.save_pool(pool)
        self._remember()

    def _keep_operation(self, operation: Operation) -> None:
        self._operations[operation.id] = operation
        self._store.save_operation(operation)

    def _remember(self) -> None:
        self._history.append((self._clock.now(), tuple(self._pools.values())))


def _check_conditions(pool: Pool | None, *, if_match: str = "", if_none_match: str = "") -> None:
    if if_none_match.strip() == "*" and pool is not None:
        raise aks_error(412, "PreconditionFailed", f"The agent pool '{pool.name}' exists already.")
    wanted = if_match.strip().removeprefix("W/").strip('"')
    if if_match and (pool is None or wanted not in ("*", pool.etag)):
        raise aks_error(412, "PreconditionFailed", "The If-Match condition is not met: the agent pool was changed.")


def _in_progress(pool: Pool) -> str:
    if pool.state == CREATING:
        return "Operation is not allowed because there's an in progress create node pool operation"
    return f"Another agentpool operation ({pool.name} - {pool.state}) is in progress"


def _busy(text: str) -> Refusal:
    message = f"{text}, please wait for it to finish before starting a new operation."
    return aks_error(409, "OperationNotAllowed", message)


def _vcpus(pool: Pool) -> int:
    return sizes()[pool.size.lower()].vcpus * int(pool.properties.get("count", 1))


def _restricted(size: Size, location: str, *, asynchronous: bool) -> Failure:
    if asynchronous:
        message = (
            f"The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {size.name}' "
            f"is currently not available in location '{location}'."
        )
        return Failure({"code": "SkuNotAvailable", "message": message, "details": []})
    message = f"The VM size of {size.name} is not allowed in your subscription in location '{location}'."
    raise aks_error(400, "BadRequest", message)


def _quota(
    size: Size, count: int, *, family: str, limit: int, used: int, settings: Settings, limits: Limits
) -> Failure:
    wanted = size.vcpus * count
    name = "Total Regional Cores quota" if family == "regional" else f"{family} Cores quota"
    details = (
        f"Additional details - Location: {settings.location}, Current Limit: {limit}, Current Usage: {used}, "
        f"Additional Required: {wanted}, "
        f"(Minimum) New Limit Required: {used + wanted}."
    )
    if limits.asynchronous:
        message = f"Operation could not be completed as it results in exceeding approved {name}. {details}"
        return Failure({"code": "QuotaExceeded", "message": message, "details": []})
    message = (
        f"Insufficient vcpu quota requested {wanted}, remaining {max(0, limit - used)} for {name}. {details} "
        "Submit a request for Quota increase in the Azure portal."
    )
    raise aks_error(400, "ErrCode_InsufficientVCPUQuota", message)
