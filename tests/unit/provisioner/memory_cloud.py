"""A cloud in memory with ARM's rules: unique names, conditional writes, creation and deletion that take their time.

It asks for what the provider over AKS asks for, request by request, through the same shared listing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from tests.driven.clock import SteppedClock

from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.azure.agent_pool import order
from kaito_hooks.provisioner.azure.listing import SharedListing
from kaito_hooks.provisioner.cloud import Instance, Order, State
from kaito_hooks.provisioner.errors import CloudError, InstanceChanged, LaunchFailed, PoolNameConflict

LATENCY = 0.01
"""Seconds that a request takes: the next look is always a little later than the listing is old."""


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
    fails_to_go: bool = False


@dataclass
class MemoryCloud:
    """``fail_creation``, ``fail_deletion``: errors with which the next pools, and the next deletions, end; ``refuse``
    raises before a verb has any effect.
    """

    clock: SteppedClock
    create_seconds: float = 180.0
    delete_seconds: float = 60.0
    pools: dict[str, Pool] = field(default_factory=dict)
    fail_creation: list[CloudError] = field(default_factory=list)
    fail_deletion: list[CloudError] = field(default_factory=list)
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

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new process asks: it knows no listing."""
        self._listing = SharedListing(self._fetch, self.clock)

    @property
    def node_label(self) -> str:
        return "agentpool"

    def tick(self) -> None:
        """Let what is due happen."""
        for pool in list(self.pools.values()):
            if self.clock.monotonic() < pool.done_at:
                continue
            if pool.state is State.CREATING:
                pool.state = State.FAILED if pool.error else State.SUCCEEDED
                pool.etag = self._tag()
                if not pool.error:
                    self.on_ready(pool)
            elif pool.state is State.DELETING and pool.fails_to_go:
                pool.state, pool.etag = State.FAILED, self._tag()
            elif pool.state is State.DELETING:
                del self.pools[pool.name]
                self.on_gone(pool)

    def next_moment(self) -> float:
        """When something will happen; infinity if nothing is under way."""
        under_way = (State.CREATING, State.DELETING)
        return min((pool.done_at for pool in self.pools.values() if pool.state in under_way), default=float("inf"))

    def add_foreign(self, name: str, labels: Mapping[str, str] | None = None) -> Pool:
        pool = Pool(name, dict(labels or {}), None, State.SUCCEEDED, self._tag(), None)
        self.pools[name] = pool
        return pool

    def order(self, claim: Claim, now: datetime) -> Order:
        return order(claim, now)

    def ensure(self, order: Order) -> Instance:
        found = self._get(order.name)
        if found is not None:
            return found
        self._listing.wrote(order.name, None)
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
        made = self._instance(self.pools[order.name])
        self._listing.wrote(order.name, made)
        return made

    def get(self, name: str, *, max_age: float = 0.0) -> Instance | None:
        if max_age > 0:
            known, found = self._listing.look(name, max_age=max_age)
            if known:
                return found
        return self._get(name)

    def list(self) -> Sequence[Instance]:
        asked = self.clock.monotonic()
        found = self._fetch()
        self._listing.took(asked, found)
        return found

    def delete(self, instance: Instance) -> None:
        if not instance.ours:
            raise PoolNameConflict("PoolNameConflict", "not ours")
        self._listing.wrote(instance.name, None)
        self._begin("delete", instance.name)
        pool = self.pools.get(instance.name)
        if pool is not None:
            if pool.etag != instance.etag:
                raise InstanceChanged("PreconditionFailed", "the ETag is another")
            self.touch(f"DELETE {instance.name}", False)
            pool.state = State.DELETING
            pool.done_at = self.clock.monotonic() + self.delete_seconds
            pool.etag = self._tag()
            pool.fails_to_go = bool(self.fail_deletion)
            pool.error = self.fail_deletion.pop(0) if self.fail_deletion else pool.error
            self.touch(f"DELETE {instance.name}", True)
        self._listing.wrote(instance.name, replace(instance, state=State.DELETING))

    def _get(self, name: str) -> Instance | None:
        self._begin("get", name)
        pool = self.pools.get(name)
        return self._instance(pool) if pool else None

    def _fetch(self) -> Sequence[Instance]:
        self._begin("list", "")
        return [self._instance(pool) for pool in self.pools.values() if pool.name not in self.hidden]

    def _begin(self, verb: str, name: str) -> None:
        self.requests.append((verb, name))
        self.clock.advance(LATENCY)
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
