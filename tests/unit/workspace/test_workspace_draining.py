"""A node that is drained keeps its Workspace waiting, and the Workspace says for what."""

from __future__ import annotations

import pytest
from tests.unit.workspace.worlds import Obj, claim_object, conditions, node_object, snapshot, workspace_object

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.decision.actions import BuyClaim
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.purchases.claims import claim_name

CLAIM = claim_name(Workspace.read(workspace_object()), 0)
GOING = {"deletionTimestamp": "2026-01-02T12:00:00Z"}
OURS = {"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "models"}


@pytest.mark.parametrize("spec", [{}, {"unschedulable": True}], ids=["before its cordon", "cordoned"])
def test_a_node_that_is_being_deleted_is_told_so(spec: Obj) -> None:
    node = node_object("bought", labels=OURS, **GOING)
    node["spec"] = {**node.get("spec", {}), **spec}
    claim = claim_object(CLAIM, node="bought", conditions=[{"type": "Ready", "status": "True"}])
    decided = plan(snapshot(nodes=(node,), claims=[claim]))
    assert not any(isinstance(action, BuyClaim) for action in decided.actions)
    assert "its node bought is being deleted" in conditions(decided)["ResourceReady"][2]
