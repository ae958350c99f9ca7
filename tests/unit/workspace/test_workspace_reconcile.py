"""What a reconcile does with an error: known ones are the queue's affair, others the Workspace says, too."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.runtime.clocks import TurnedClock
from tests.unit.workspace.worlds import uncounted, workspace_object

from kaito_hooks.api.conditions import find
from kaito_hooks.runtime import Conflict, Key, LeadershipLost, NotFound
from kaito_hooks.workspace.execute import Executor
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.reconcile import Reconciler

Obj = dict[str, Any]
KEY = Key("models", "phi")


class Stored:
    """One Workspace at an API server, whose observation raises ``error``; both sides of a reconcile."""

    def __init__(self, obj: Obj | None, error: Exception, *, refusal: Exception | None = None) -> None:
        self.obj, self._error, self._refusal = obj, error, refusal
        self.writes = 0
        self.events: list[tuple[str, str]] = []

    def workspace(self, key: Key) -> Obj | None:
        return self.obj

    def is_stale(self, key: Key) -> bool:
        return False

    def observe(self, key: Key) -> Any:
        raise self._error

    def update(self, resource: Any, obj: Obj, *, subresource: str) -> Obj:
        assert subresource == "status"
        if self._refusal is not None:
            raise self._refusal
        self.writes += 1
        self.obj = obj
        return obj

    def event(self, obj: Obj, type: str, reason: str, message: str, *, alone: bool = False) -> None:
        self.events.append((type, reason))


def reconciler(stored: Stored) -> Reconciler:
    seams: Any = stored
    executor = Executor(
        seams, recorder=seams, memories=Memories(), metrics=uncounted(), clock=TurnedClock(), refusal_pause=1.0
    )
    return Reconciler(seams, executor)


@pytest.mark.parametrize("changes", [{}, {"inference": "x", "resource": 7}], ids=["a good one", "one of nonsense"])
def test_an_error_that_nobody_foresaw_is_a_condition_with_its_class(changes: Obj) -> None:
    stored = Stored(workspace_object(status={"workerNodes": ["n1"]}, **changes), KeyError("of another tenant"))
    reconcile = reconciler(stored)
    for _ in range(3):
        with pytest.raises(KeyError):
            reconcile(KEY)
    assert stored.obj is not None
    for summary in ("WorkspaceReady", "WorkspaceSucceeded"):
        found = find(stored.obj["status"]["conditions"], summary) or {}
        assert (found["status"], found["reason"]) == ("False", "InternalError")
        assert "KeyError" in found["message"]
        assert "of another tenant" not in found["message"]
    assert stored.obj["status"]["workerNodes"] == ["n1"]
    assert (stored.writes, stored.events) == (1, [("Warning", "InternalError")])


@pytest.mark.parametrize("refusal", [Conflict("newer", status=409), NotFound("gone", status=404), LeadershipLost()])
def test_the_error_is_raised_although_nobody_can_be_told(refusal: Exception) -> None:
    stored = Stored(workspace_object(), KeyError("x"), refusal=refusal)
    with pytest.raises(KeyError):
        reconciler(stored)(KEY)
    assert stored.events == []


def test_the_error_is_raised_although_the_workspace_is_gone() -> None:
    with pytest.raises(KeyError):
        reconciler(Stored(None, KeyError("x")))(KEY)


@pytest.mark.parametrize("error", [Conflict("newer", status=409), NotFound("gone", status=404), LeadershipLost()])
def test_an_answer_of_the_api_server_is_no_fault_of_the_controller(error: Exception) -> None:
    stored = Stored(workspace_object(), error)
    with pytest.raises(type(error)):
        reconciler(stored)(KEY)
    assert stored.writes == 0
