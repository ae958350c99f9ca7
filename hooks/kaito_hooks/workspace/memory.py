"""Where the memories of all Workspaces are kept between reconciles: in this process only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from kaito_hooks.workspace.decision.snapshot import Memory, Snapshot
from kaito_hooks.workspace.purchases.claims import slots_by_name
from kaito_hooks.workspace.status.pods import pull_errors
from kaito_hooks.workspace.supply.placement import WITH_PODS
from kaito_hooks.workspace.tuning.state import job_failures


class Memories:
    """Memories by Workspace uid. Thread-safe; one Workspace is never in two workers' hands at once."""

    def __init__(self) -> None:
        self._by_uid: dict[str, Memory] = {}
        self._lock = threading.Lock()

    def get(self, uid: str) -> Memory:
        """What is remembered of that Workspace; nothing, if it is new."""
        with self._lock:
            return self._by_uid.get(uid) or Memory()

    def change(self, uid: str, how: Callable[[Memory], Memory]) -> Memory:
        """Replace a memory by ``how`` of it."""
        with self._lock:
            self._by_uid[uid] = changed = how(self._by_uid.get(uid) or Memory())
            return changed

    def missing(self, claim: str) -> list[str]:
        """Uids of the Workspaces that lost the claim of that name and do not know why."""
        with self._lock:
            return [uid for uid, memory in self._by_uid.items() if claim in memory.purchases.unexplained_claims]

    def forget(self, uid: str) -> None:
        """The Workspace is gone."""
        with self._lock:
            self._by_uid.pop(uid, None)


def after_look(s: Snapshot) -> Memory:
    """What is remembered of the Workspace once this Snapshot has been looked at: its claims, refusals that last, and
    what fails in its Pods."""
    resource, timeouts = s.workspace.resource, s.settings.timeouts
    count = min(resource.count, s.settings.max_nodes_per_workspace) if resource is not None else 0
    purchases = s.memory.purchases.look(
        s.claims,
        slots=slots_by_name(s.workspace, count=count) if s.claims else {},
        now=s.now,
        minimum=timeouts.buy_backoff_min,
        maximum=timeouts.buy_backoff_max,
        warnings=s.claim_warnings,
    )
    refusals = {
        name: refusal for name, refusal in s.memory.refusals.items() if s.now < refusal.retry_at or _is_awaited(s, name)
    }
    pulls = pull_errors((*s.pods, *s.check_pods), s.memory.pull_errors)
    known = replace(s.memory, purchases=purchases, refusals=refusals, pull_errors=pulls)
    return replace(known, job_failures=job_failures(replace(s, memory=known)))


def _is_awaited(s: Snapshot, name: str) -> bool:
    """Whether what was refused is a workload or Job, and still not there: no node is bought before it is."""
    return name in (f"{kind}/{s.workspace.name}" for kind in WITH_PODS) and name not in s.children
