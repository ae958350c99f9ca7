"""Where the memories of all Workspaces are kept between reconciles: in this process only."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kaito_hooks.workspace.snapshot import Memory


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
