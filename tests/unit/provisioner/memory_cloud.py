"""A cloud in memory with ARM's rules: unique names, conditional writes, creation and deletion that take their time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tests.unit.provisioner.stepped_clock import SteppedClock

from kaito_hooks.provisioner.cloud import Instance, Order, State
from kaito_hooks.provisioner.errors import CloudError, InstanceChanged, LaunchFailed, PoolNameConflict


@dataclass
class Pool:
    name: str
    labels: Mapping[str, str]
    order: Order | None
    state: State
    etag: str
    created: datetime | None
    done_at: float = 0.0
    error: CloudError | None = None


@dataclass
class MemoryCloud:
    """``fail_creation``: errors with which the next pools end; ``refuse`` raises before a verb has any effect."""

    clock: SteppedClock
    create_seconds: float = 180.0
    delete_seconds: float = 60.0
    pools: dict[str, Pool] = field(default_factory=dict)
    fail_creation: list[CloudError] = field(default_factory=list)
    refuse: Callable[[str], CloudError | None] = lambda verb: None
    touch: Callable[[str, bool], None] = lambda what, after: None
    on_ready: Callable[[Pool], None] = lambda pool: None
    on_gone: Callable[[Pool], None] = lambda pool: None
    hidden: set[str] = field(default_factory=set)
    """Names that a stale listing leaves out."""
    created: list[str] = field(default_factory=list)
    """Claim UIDs, one per PUT that made a pool."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def node_label(self) -> str:
        return "agentpool"

    def tick(self) -> None:
        """Let what is due happen."""
        for pool in list(self.pools.values()):
            if pool.state is State.CREATING and self.clock.monotonic() >= pool.done_at:
                pool.state = State.FAILED if pool.error else State.SUCCEEDED
                pool.etag = self._tag()
                if not pool.error:
                    self.on_ready(pool)
            elif pool.state is State.DELETING and self.clock.monotonic() >= pool.done_at:
                del self.pools[pool.name]
                self.on_gone(pool)

    def add_foreign(self, name: str, labels: Mapping[str, str] | None = None) -> Pool:
        pool = Pool(name, dict(labels or {}), None, State.SUCCEEDED, self._tag(), None)
        self.pools[name] = pool
        return pool

    def ensure(self, order: Order) -> Instance:
        found = self.get(order.name)
        if found is not None:
            return found
        self._begin("create", order.name)
        self.touch(f"PUT {order.name}", False)
        self.pools[order.name] = Pool(
            name=order.name,
            labels=order.labels,
            order=order,
            state=State.CREATING,
            etag=self._tag(),
            created=order.created.replace(microsecond=0),
            done_at=self.clock.monotonic() + self.create_seconds,
            error=self.fail_creation.pop(0) if self.fail_creation else None,
        )
        self.created.append(order.claim_uid)
        self.touch(f"PUT {order.name}", True)
        return self._instance(self.pools[order.name])

    def get(self, name: str, *, max_age: float = 0.0) -> Instance | None:
        if max_age > 0 and name in self.hidden:
            return None
        self._begin("list" if max_age > 0 else "get", name)
        pool = self.pools.get(name)
        return self._instance(pool) if pool else None

    def list(self) -> Sequence[Instance]:
        self._begin("list", "")
        return [self._instance(pool) for pool in self.pools.values() if pool.name not in self.hidden]

    def delete(self, instance: Instance) -> None:
        if not instance.ours:
            raise PoolNameConflict("PoolNameConflict", "not ours")
        self._begin("delete", instance.name)
        pool = self.pools.get(instance.name)
        if pool is None:
            return
        if pool.etag != instance.etag:
            raise InstanceChanged("PreconditionFailed", "the ETag is another")
        self.touch(f"DELETE {instance.name}", False)
        pool.state = State.DELETING
        pool.done_at = self.clock.monotonic() + self.delete_seconds
        pool.etag = self._tag()
        self.touch(f"DELETE {instance.name}", True)

    def _begin(self, verb: str, name: str) -> None:
        self.requests.append((verb, name))
        error = self.refuse(verb)
        if error is not None:
            raise error

    def _instance(self, pool: Pool) -> Instance:
        error = pool.error or LaunchFailed("", "unknown")
        return Instance(
            pool.name, pool.state, pool.labels, pool.etag, pool.created, error if pool.state.broken else None
        )

    def _tag(self) -> str:
        return f"etag-{next(self._numbers)}"
