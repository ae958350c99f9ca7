"""Who must leave a Node, in which order, and what may be done to them at this moment: pure, over the Node's Pods.

Four waves: others, other daemons, critical Pods, critical daemons; a wave begins when the one before has left, so that
what Pods need to end well (logs, network, storage drivers) ends after them. Before the deadline, if there is one, a Pod
is asked through the Eviction API and its PodDisruptionBudgets hold, unless it must not be disrupted; at the deadline
minus its grace period it is deleted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kaito_hooks.api import labels
from kaito_hooks.api.pods import has_ended
from kaito_hooks.runtime import Obj, parse_time

CRITICAL_CLASSES = ("system-cluster-critical", "system-node-critical")
STUCK_AFTER = timedelta(minutes=1)
DEFAULT_GRACE = 30
LONGEST_GRACE = 10 * 365 * 86400
"""Seconds: the API server takes more of a Pod than a calendar holds."""
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 10.0
_MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True, slots=True)
class Removal:
    """A Pod to delete, with so many seconds of grace."""

    pod: Obj
    grace_seconds: int


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """What to do now: ``evict`` and ``delete``; ``remaining`` are all Pods that the Node waits for.

    ``protected`` would have to go now, but must not be disrupted. ``again``: in how many seconds, 1 to 10, a Pod that
    is on its way may have left, or one falls due.
    """

    evict: tuple[Obj, ...]
    delete: tuple[Removal, ...]
    protected: tuple[Obj, ...]
    remaining: tuple[Obj, ...]
    again: float = LONGEST_WAIT

    @property
    def done(self) -> bool:
        """Whether nobody is left."""
        return not self.remaining


def plan(pods: Iterable[Obj], *, now: datetime, deadline: datetime | None) -> DrainPlan:
    """The drain's next moves."""
    remaining = [pod for pod in pods if must_leave(pod, now)]
    delete = tuple(
        Removal(pod, max(1, min(_grace(pod), int((deadline - now).total_seconds()))))
        for pod in remaining
        if deadline is not None and _overdue(pod, now, deadline)
    )
    doomed = {removal.pod["metadata"]["uid"] for removal in delete}
    first = min((wave(pod) for pod in remaining), default=0)
    turn = [
        pod
        for pod in remaining
        if wave(pod) == first and not pod["metadata"].get("deletionTimestamp") and pod["metadata"]["uid"] not in doomed
    ]
    return DrainPlan(
        evict=tuple(pod for pod in turn if not _protected(pod)),
        delete=delete,
        protected=tuple(pod for pod in turn if _protected(pod)),
        remaining=tuple(remaining),
        again=min((_look_again(pod, now, deadline) for pod in remaining), default=LONGEST_WAIT),
    )


def must_leave(pod: Obj, now: datetime) -> bool:
    """Whether the Node waits for this Pod.

    Not for one that has ended, belongs to the Node itself, wants to stay through a disruption, or has outlived its own
    deletion by a minute: its kubelet is gone.
    """
    return not has_ended(pod) and not stays(pod, now)


def stays(pod: Obj, now: datetime) -> bool:
    """Whether the Pod, and with it its volumes, stays on the Node to its end, though it has not ended itself."""
    if has_ended(pod):
        return False
    metadata = pod["metadata"]
    if _MIRROR in (metadata.get("annotations") or {}) or _owned_by(pod, "Node") or _tolerates_disruption(pod):
        return True
    deleted = metadata.get("deletionTimestamp")
    return bool(deleted) and parse_time(deleted) < now - STUCK_AFTER


def wave(pod: Obj) -> int:
    """0 others, 1 other daemons, 2 critical, 3 critical daemons."""
    critical = (pod.get("spec") or {}).get("priorityClassName") in CRITICAL_CLASSES
    return 2 * critical + _owned_by(pod, "DaemonSet")


def _protected(pod: Obj) -> bool:
    return (pod["metadata"].get("annotations") or {}).get(labels.DO_NOT_DISRUPT) == "true"


def _look_again(pod: Obj, now: datetime, deadline: datetime | None) -> float:
    """A Pod that is ending: after as long again as it has taken so far; any other: when it falls due."""
    metadata = pod["metadata"]
    deleted = metadata.get("deletionTimestamp")
    if deleted:
        grace = metadata.get("deletionGracePeriodSeconds")
        began = parse_time(deleted) - timedelta(
            seconds=_grace(pod) if grace is None else min(int(grace), LONGEST_GRACE)
        )
        seconds = (now - began).total_seconds()
    elif deadline is not None:
        seconds = (deadline - timedelta(seconds=_grace(pod)) - now).total_seconds()
    else:
        return LONGEST_WAIT
    return min(max(seconds, SHORTEST_WAIT), LONGEST_WAIT)


def _overdue(pod: Obj, now: datetime, deadline: datetime) -> bool:
    deleted = pod["metadata"].get("deletionTimestamp")
    if deleted:
        # Under way, but with more time than there is.
        return parse_time(deleted) > max(deadline, now + timedelta(seconds=2))
    return now >= deadline - timedelta(seconds=_grace(pod))


def _grace(pod: Obj) -> int:
    seconds = (pod.get("spec") or {}).get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE if seconds is None else min(int(seconds), LONGEST_GRACE)


def _owned_by(pod: Obj, kind: str) -> bool:
    return any(owner.get("kind") == kind for owner in pod["metadata"].get("ownerReferences") or ())


def _tolerates_disruption(pod: Obj) -> bool:
    for toleration in (pod.get("spec") or {}).get("tolerations") or ():
        key, operator = toleration.get("key"), toleration.get("operator") or "Equal"
        named = key == labels.DISRUPTED_TAINT and (operator == "Exists" or not toleration.get("value"))
        anything = not key and operator == "Exists"
        if (named or anything) and toleration.get("effect") in (None, "", "NoSchedule"):
            return True
    return False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A Pod that may not go: the last ``reason``, ``since`` when, and when to ask ``again`` (both monotonic)."""

    reason: str
    since: float
    again: float
    count: int


@dataclass(slots=True)
class Drains:
    """Which evictions were refused, by Pod UID, and when to ask again: 1 s doubling to 10 s; whose Nodes are empty; and
    whose machine's deletion the cloud has accepted.

    In memory, thread-safe; a restart costs an early try and one more look.
    """

    _of: dict[str, Refusal] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)
    _accepted: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self, pod_uid: str, now: float) -> bool:
        """Whether the Pod's eviction may be asked for at ``now`` (monotonic)."""
        with self._lock:
            known = self._of.get(pod_uid)
            return known is None or known.again <= now

    def refused(self, pod_uid: str, now: float, reason: str) -> None:
        """Note a refusal."""
        with self._lock:
            known = self._of.get(pod_uid)
            count, since = (known.count, known.since) if known is not None else (0, now)
            again = now + min(LONGEST_WAIT, SHORTEST_WAIT * 2.0**count)
            self._of[pod_uid] = Refusal(reason, since, again, min(count + 1, 8))

    def refusal(self, pod_uid: str) -> Refusal | None:
        """The Pod's last refusal, if it stays because of one."""
        with self._lock:
            return self._of.get(pod_uid)

    def over(self, claim_uid: str) -> None:
        """Note that the claim's Nodes were cordoned and empty."""
        with self._lock:
            self._over.add(claim_uid)

    def is_over(self, claim_uid: str) -> bool:
        """Whether nobody need be sought on the claim's Nodes any more."""
        with self._lock:
            return claim_uid in self._over

    def deletion_accepted(self, claim_uid: str) -> None:
        """Note that the cloud deletes the claim's machine."""
        with self._lock:
            self._accepted.add(claim_uid)

    def deletion_failed(self, claim_uid: str) -> bool:
        """The machine is there and broken: whether a deletion was accepted before. The next one counts anew."""
        with self._lock:
            accepted = claim_uid in self._accepted
            self._accepted.discard(claim_uid)
            return accepted

    def forget(self, claim_uid: str) -> None:
        """The claim is gone."""
        with self._lock:
            self._over.discard(claim_uid)
            self._accepted.discard(claim_uid)

    def left(self, pod_uids: Iterable[str]) -> None:
        """Forget Pods that are on their way or gone."""
        with self._lock:
            for uid in pod_uids:
                self._of.pop(uid, None)
