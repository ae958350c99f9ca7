"""The small world in which tunings are checked before a node is bought."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.unit.workspace.worlds import CHECK_STEPS, REPORT, SmallWorld, check_pod, tuning_object

from kaito_hooks.runtime import format_time
from kaito_hooks.workspace.configuration.settings import Settings

Obj = dict[str, Any]
SETTINGS = Settings(release_namespace="kaito")
PROBLEMS = ["row 3 has no prompt", "row 7 has no prompt"]
REFUSAL = {"exitCode": 2, "message": json.dumps({**REPORT, "reason": "DatasetInvalid", "problems": PROBLEMS})}
SENTENCE = "step check: DatasetInvalid: row 3 has no prompt; row 7 has no prompt"


class CheckedWorld(SmallWorld):
    """A small world in which tunings are checked; ``events``: reasons and messages of all Events."""

    def __init__(self, obj: Obj | None = None, *, settings: Settings = SETTINGS) -> None:
        super().__init__(obj or tuning_object(), settings=settings)
        self.events: list[tuple[str, str]] = []
        self.warnings: dict[str, str] = {}
        self.refused_pods: dict[str, str] = {}

    def snapshot(self) -> Any:
        return replace(super().snapshot(), pod_warnings=self.warnings, pod_refusals=self.refused_pods)

    def reconcile(self, *, crash_after: int | None = None) -> Any:
        decided = super().reconcile(crash_after=crash_after)
        if crash_after is None:
            self.events += [(n.reason, n.message) for n in (*decided.deeds, *decided.notes)]
        return decided

    def until(self, reached: Callable[[], object]) -> None:
        """Everybody acts until something is so."""
        for _ in range(30):
            if reached():
                return
            self.reconcile()
            self.provision()
            self.run_workloads()
        raise AssertionError("it never comes to that")

    def settle_refused(self) -> None:
        """Everybody acts until the check has refused, and the controller only looks whether that is still so."""
        self.until(lambda: self.check.get("result") == "Refused")
        self.until(lambda: self.reconcile().empty)

    def begin_check(self) -> Obj:
        """The check Job, as soon as it is there and has no Pod."""
        while not self.checks():
            self.reconcile()
        [job] = self.checks()
        job["metadata"]["creationTimestamp"] = format_time(self.now)
        return job

    def put_pod(self, step: str = CHECK_STEPS[0], state: Obj | None = None, **status: Any) -> Obj:
        """The check's one Pod, in that state from here on."""
        pod = check_pod(self.checks()[0], step, state or {"running": {}}, **status)
        pod["metadata"]["creationTimestamp"] = format_time(self.now)
        self.pods = [pod]
        return pod

    @property
    def status(self) -> Obj:
        assert self.workspace is not None
        return dict(self.workspace.get("status") or {})

    @property
    def check(self) -> Obj:
        return dict(self.status.get("tuning", {}).get("check") or {})

    def condition(self, kind: str) -> tuple[str, str, str]:
        found = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found["status"], found["reason"], found["message"]
