"""One reconcile: look, decide, act, say when to look again. Never waits."""

from __future__ import annotations

from kaito_hooks.runtime import ApiError, Key, LeadershipLost, Result
from kaito_hooks.workspace.execute import Executor
from kaito_hooks.workspace.observe import Observer
from kaito_hooks.workspace.plan import plan

AT_ONCE = 0.05


class Reconciler:
    """Brings one Workspace a step further."""

    def __init__(self, observer: Observer, executor: Executor) -> None:
        self._observer, self._executor = observer, executor

    def __call__(self, key: Key) -> Result:
        """Reconcile the Workspace of that key; a key without a Workspace may still have claims to give back.

        Whatever it raises comes back with the queue's back-off; what nobody foresaw the Workspace says, too.
        """
        try:
            return self._reconcile(key)
        except (ApiError, LeadershipLost):
            raise
        except Exception as error:
            if (workspace := self._observer.workspace(key)) is not None:
                self._executor.report(workspace, error)
            raise

    def _reconcile(self, key: Key) -> Result:
        if self._observer.is_stale(key):
            return Result()
        snapshot = self._observer.observe(key)
        if snapshot is None:
            self._executor.delete_orphans(key, self._observer.orphans(key))
            return Result()
        decided = plan(snapshot)
        refused = self._executor.execute(snapshot, decided)
        return Result(requeue_after=AT_ONCE if refused else decided.look_again)
