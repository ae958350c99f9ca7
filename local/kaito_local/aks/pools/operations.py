"""The long-running operations on agent pools: begun by requests, led through their stages and ended by the clock."""

from __future__ import annotations

import dataclasses
import random
import threading
import uuid
from collections.abc import Callable, Sequence

from kaito_local.aks.clock import Agenda, Clock
from kaito_local.aks.errors import aks_error
from kaito_local.aks.pools.fleet import Fleet
from kaito_local.aks.pools.pool import Failure, Operation, Pool, Store
from kaito_local.aks.pools.stages import STAGES
from kaito_local.aks.settings import Seconds


class Operations:
    """Every operation that ever was, kept in the store; ``lock`` is the one that guards the pools.

    ``due(operation, at)`` is called when an operation's stages are done and its time is over. ``pool_of`` gives the
    pool of a name as it is.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        agenda: Agenda,
        fleet: Fleet,
        seed: int,
        lock: threading.RLock,
        due: Callable[[Operation, float], None],
        pool_of: Callable[[str], Pool | None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._agenda = agenda
        self._fleet = fleet
        self._seed = seed
        self._random = random.Random(seed)
        self._lock = lock
        self._due = due
        self._pool_of = pool_of
        self._known = {operation.id: operation for operation in store.operations()}

    def resume(self) -> None:
        """Goes on with what the last process left unfinished."""
        for operation in self._known.values():
            if operation.ended is None:
                self._go_on(operation)

    def get(self, identifier: str) -> Operation:
        """Raises Refusal 404."""
        with self._lock:
            operation = self._known.get(identifier)
        if operation is None:
            raise aks_error(404, "NotFound", f"The operation '{identifier}' is not found.")
        return operation

    def begin(
        self,
        kind: str,
        pool: Pool,
        took: Seconds,
        *,
        failure: Failure | None = None,
        removed_labels: Sequence[str] = (),
    ) -> Operation:
        """Enters a new operation, whose id the pool must get before the lock is let go."""
        now = self._clock.now()
        operation = Operation(
            id=str(uuid.UUID(int=self._random.getrandbits(128), version=4)) if self._seed else str(uuid.uuid4()),
            kind=kind,
            pool=pool.name,
            pool_uid=pool.uid,
            started=now,
            due=now + (self._random.uniform(*took) if isinstance(took, tuple) else took),
            failure=dict(failure.error) if failure else None,
            canceled=bool(failure and failure.canceled),
            removed_labels=removed_labels,
        )
        self._keep(operation)
        self._go_on(operation)
        return operation

    def end(self, operation: Operation, status: str, *, at: float, failure: Failure | None = None) -> None:
        """Writes down that it ended so; ``failure`` if that was not what it was to end with."""
        error = operation.failure if failure is None else failure.error
        self._keep(dataclasses.replace(operation, status=status, ended=at, failure=error))

    def _keep(self, operation: Operation) -> None:
        self._known[operation.id] = operation
        self._store.save_operation(operation)

    def _go_on(self, operation: Operation) -> None:
        """Puts the next stage, or the end, on the agenda; an operation that will fail has no stages."""
        left = STAGES.get(operation.kind, ())[operation.stage :]
        if left and operation.failure is None:
            at = operation.started + (operation.due - operation.started) * left[0].share
            self._agenda.at(at, lambda _: self._act(operation.id))
        else:
            self._agenda.at(operation.due, lambda due: self._time_is_over(operation.id, due))

    def _act(self, identifier: str) -> None:
        with self._lock:
            operation = self._known[identifier]
            pool = self._pool_of(operation.pool)
            if operation.ended is not None or pool is None or pool.operation != identifier:
                return
        stage = STAGES[operation.kind][operation.stage]
        stage.act(self._fleet, pool, operation, lambda: self._acted(identifier))

    def _acted(self, identifier: str) -> None:
        with self._lock:
            operation = self._known[identifier]
            if operation.ended is None:
                operation = dataclasses.replace(operation, stage=operation.stage + 1)
                self._keep(operation)
                self._go_on(operation)

    def _time_is_over(self, identifier: str, at: float) -> None:
        with self._lock:
            operation = self._known[identifier]
            if operation.ended is None:
                self._due(operation, at)
