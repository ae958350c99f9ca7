"""Leader election on a Lease, and the fence that stops a former leader's writes.

The rules are client-go's: a lease is free when nobody holds it or when a candidate has watched it unchanged for its
duration, by the candidate's own clock (clocks of different machines are never compared); writes carry the
resourceVersion, so of two candidates one wins.

The fence closes ``lease_duration - renew_deadline`` seconds before anybody else can take over, and a write is given at
most the time until then: no write of a former leader is still on its way when the next one begins.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaito_hooks.runtime.client.client import Client
from kaito_hooks.runtime.client.resource import Obj, Resource
from kaito_hooks.runtime.clock import Clock, format_micro_time
from kaito_hooks.runtime.errors import AlreadyExists, ApiError, Conflict, LeadershipLost, NotFound
from kaito_hooks.runtime.quantities import parse_duration

logger = logging.getLogger(__name__)

LEASE = Resource(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease", namespaced=True)


@dataclass(frozen=True, slots=True)
class LeaderElection:
    """Which Lease decides, and how fast; seconds.

    A leader that could not renew for ``renew_deadline`` gives up; others may take over ``lease_duration`` after its
    last renewal; everybody tries every ``retry_period``.
    """

    namespace: str
    name: str
    lease_duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease_duration > self.renew_deadline > self.retry_period > 0:
            raise ValueError(
                "leader election needs lease_duration > renew_deadline > retry_period > 0, not "
                f"{self.lease_duration:g}, {self.renew_deadline:g}, {self.retry_period:g}"
            )

    @classmethod
    def read(cls, environ: Mapping[str, str], *, namespace: str, name: str) -> LeaderElection:
        """How fast, from LEADER_ELECTION_LEASE_DURATION, _RENEW_DEADLINE and _RETRY_PERIOD as Go writes durations.

        Raises ValueError with the variable's name.
        """
        seconds = {}
        for key in ("lease_duration", "renew_deadline", "retry_period"):
            variable = f"LEADER_ELECTION_{key.upper()}"
            if text := environ.get(variable):
                try:
                    seconds[key] = parse_duration(text)
                except ValueError as error:
                    raise ValueError(f"{variable}: {error}") from None
        return cls(namespace=namespace, name=name, **seconds)


class Elector:
    """One candidate for one Lease."""

    def __init__(
        self, client: Client, election: LeaderElection, *, identity: str, clock: Clock, rng: random.Random | None = None
    ) -> None:
        # A request that hangs must leave time for another one before the deadline.
        self._client = client.with_timeout(election.renew_deadline / 2)
        self._election = election
        self._identity = identity
        self._clock = clock
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._lease: Obj | None = None
        self._observed: tuple[Any, ...] | None = None
        self._observed_at = clock.monotonic()
        self._renewed: float | None = None  # monotonic time at which the last successful renewal was begun

    def fence(self) -> float:
        """Seconds for which a write may still be under way; LeadershipLost when this process may not begin one."""
        with self._lock:
            renewed = self._renewed
        now = self._clock.monotonic()
        if renewed is None or now >= renewed + self._election.renew_deadline:
            raise LeadershipLost(
                f"{self._identity} does not hold the lease {self._election.namespace}/{self._election.name}"
            )
        return renewed + self._election.lease_duration - now

    def acquire(self, stop: threading.Event) -> bool:
        """Waits for leadership; False when ``stop`` came first."""
        logger.info("waiting for the lease %s/%s as %s", self._election.namespace, self._election.name, self._identity)
        while not stop.is_set():
            if self._try("acquire"):
                logger.info("%s leads", self._identity)
                return True
            stop.wait(self._election.retry_period * self._rng.uniform(1.0, 1.2))
        return False

    def hold(self, stop: threading.Event) -> bool:
        """Renews until ``stop`` (True) or until leadership is lost (False, with the fence closed)."""
        while not stop.wait(self._election.retry_period):
            if self._try("renew"):
                continue
            with self._lock:
                renewed = self._renewed
            if renewed is None or self._clock.monotonic() >= renewed + self._election.renew_deadline:
                self._close()
                return False
        return True

    def release(self) -> None:
        """Closes the fence and frees the lease, so that the next candidate need not wait; best effort."""
        held = self._lease if self._renewed is not None else None
        self._close()
        if held is None:
            return
        now = format_micro_time(self._clock.now())
        spec = {**held["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now, "acquireTime": now}
        try:
            self._client.update(LEASE, {**held, "spec": spec})
        except ApiError as error:
            logger.info("the lease was not released, it will expire: %s", error)

    def _close(self) -> None:
        with self._lock:
            self._renewed = None

    def _try(self, what: str) -> bool:
        began = self._clock.monotonic()
        try:
            try:
                held = self._acquire_or_renew()
            except (Conflict, AlreadyExists, NotFound):
                # What is known of the lease is old, perhaps by a renewal of our own whose answer was lost.
                self._lease = None
                began = self._clock.monotonic()
                held = self._acquire_or_renew()
        except (Conflict, AlreadyExists, NotFound) as error:
            self._lease = None
            logger.info("could not %s the lease: %s", what, error)
            return False
        except ApiError as error:
            # The renewal may have happened although its answer did not come: look before the next one.
            self._lease = None
            logger.warning("could not %s the lease: %s", what, error)
            return False
        except Exception:
            logger.exception("could not %s the lease", what)
            return False
        if held:
            with self._lock:
                self._renewed = began
        return held

    def _acquire_or_renew(self) -> bool:
        election = self._election
        now = format_micro_time(self._clock.now())
        lease = self._lease if self._renewed is not None else None
        if lease is None:
            try:
                lease = self._client.get(LEASE, election.name, namespace=election.namespace)
            except NotFound:
                lease = {
                    "metadata": {"name": election.name, "namespace": election.namespace},
                    "spec": self._spec({}, now),
                }
                self._lease = self._client.create(LEASE, lease)
                return True
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        observed = (holder, spec.get("renewTime"), lease["metadata"].get("resourceVersion"))
        if observed != self._observed:
            self._observed, self._observed_at = observed, self._clock.monotonic()
        if holder and holder != self._identity:
            if self._renewed is not None:
                logger.error("%s has taken the lease over", holder)
                self._close()
                return False
            duration = float(spec.get("leaseDurationSeconds") or election.lease_duration)
            if self._clock.monotonic() < self._observed_at + duration:
                return False
        self._lease = self._client.update(LEASE, {**lease, "spec": self._spec(spec, now)})
        return True

    def _spec(self, old: Obj, now: str) -> Obj:
        mine = old.get("holderIdentity") == self._identity
        transitions = int(old.get("leaseTransitions") or 0)
        return {
            **old,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._election.lease_duration)),
            "acquireTime": old.get("acquireTime", now) if mine else now,
            "renewTime": now,
            "leaseTransitions": transitions if mine or not old else transitions + 1,
        }
