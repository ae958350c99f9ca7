"""Plans at an API server whose objects go between the look and the write: nothing of it is an error."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.runtime.clocks import TurnedClock
from tests.unit.workspace.worlds import claim_object, snapshot, uncounted, workspace_object

from kaito_hooks.runtime import AlreadyExists, Conflict, NotFound
from kaito_hooks.workspace.decision.actions import Action, Adopt, ApplyChild, BuyClaim, CreateChild, Note, Plan, Release
from kaito_hooks.workspace.execute import Executor
from kaito_hooks.workspace.memory import Memories

Obj = dict[str, Any]
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "phi", "namespace": "models"}}
HELD = {"finalizers": ["workspace.finalizer.kaito.sh"]}


class EmptyServer:
    """An API server where every object has just gone, and what is created is there already for a moment."""

    def __init__(self) -> None:
        self.created: list[str] = []
        self.events: list[str] = []

    def get(self, *_: Any, **__: Any) -> Obj:
        raise NotFound("it is gone", status=404)

    patch = update = delete = get

    def create(self, resource: Any, obj: Obj) -> Obj:
        self.created.append(obj["kind"])
        raise AlreadyExists("it is there", status=409)

    def event(self, obj: Obj, type: str, reason: str, message: str, *, alone: bool = False) -> None:
        self.events.append(reason)


def execute(server: EmptyServer, *actions: Action, **metadata: Any) -> bool:
    seams: Any = server
    executor = Executor(
        seams, recorder=seams, memories=Memories(), metrics=uncounted(), clock=TurnedClock(), refusal_pause=1.0
    )
    plan = Plan(actions=actions, status={"conditions": []}, deeds=(Note("Normal", "Created", "x"),))
    return executor.execute(snapshot(workspace_object(metadata=metadata)), plan)


@pytest.mark.parametrize("first", [Adopt({"a": "b"}), Release()], ids=["adopt", "release"])
def test_of_a_workspace_that_is_gone_nothing_more_is_done(first: Action) -> None:
    server = EmptyServer()
    metadata = HELD if isinstance(first, Release) else {}
    assert execute(server, first, BuyClaim(claim_object("ws1"), 0), CreateChild(SERVICE), **metadata) is False
    assert (server.created, server.events) == ([], [])


@pytest.mark.parametrize(
    "action", [BuyClaim(claim_object("ws1"), 0), CreateChild(SERVICE), ApplyChild(SERVICE, "uid")], ids=type
)
def test_what_went_between_two_requests_is_looked_at_again(action: Action) -> None:
    with pytest.raises(Conflict):
        execute(EmptyServer(), action)
