"""What happens to a Workspace: refused and lost nodes, changed wishes, children that others change, delete or own."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.workspace.worlds import (
    SmallWorld,
    claim_object,
    conditions,
    node_object,
    snapshot,
    spread_object,
    tuning_object,
    workspace_object,
)

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.decision.actions import ApplyChild, CreateChild, Delete
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.purchases.claims import claim_name

Obj = dict[str, Any]
OURS = {"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "models", "accelerator": "nvidia"}
SPREAD = spread_object()


def told(world: SmallWorld) -> dict[str, tuple[str, str]]:
    assert world.workspace is not None
    return {c["type"]: (c["status"], c["message"]) for c in world.workspace["status"]["conditions"]}


def served(obj: Obj, **changes: Any) -> SmallWorld:
    world = SmallWorld(obj, **changes)
    world.settle()
    assert told(world)["WorkspaceReady"][0] == "True"
    return world


def test_a_bought_node_that_no_claim_names_yet_is_waited_for() -> None:
    obj = workspace_object()
    name = claim_name(Workspace.read(obj), 0)
    coming = {"type": "MachineLaunched", "status": "False", "reason": "AgentPoolCreating", "message": "it is made"}
    early = snapshot(obj, claims=[claim_object(name, conditions=[coming])], nodes=(node_object("n1", labels=OURS),))
    decided = plan(early)
    assert conditions(decided)["ResourceReady"][0] == "False"
    assert (
        conditions(decided)["WorkspaceReady"][2] == f"node 0/1 ready; waiting for {name}: AgentPoolCreating: it is made"
    )
    created = [action.child["kind"] for action in decided.actions if isinstance(action, CreateChild)]
    assert created == ["ControllerRevision"]
    ready = claim_object(name, conditions=[{"type": "Ready", "status": "True"}], node="n1")
    held = plan(snapshot(obj, claims=[ready], nodes=(node_object("n1", labels=OURS),)))
    assert conditions(held)["ResourceReady"][0] == "True"


def test_of_two_nodes_the_one_that_is_refused_is_told_and_the_sentence_stands_still() -> None:
    obj = workspace_object(resource=workspace_object()["resource"] | {"count": 2})
    names = [claim_name(Workspace.read(obj), slot) for slot in range(2)]
    why = "quota exceeded for standardNCSv3Family in westus2: 6 more cores needed, next try at 12:14:00Z"
    refused = {"type": "MachineLaunched", "status": "False", "reason": "QuotaExceeded", "message": why}
    claims = [
        claim_object(names[0], conditions=[{"type": "Ready", "status": "True"}], node="n1"),
        claim_object(names[1], conditions=[refused]),
    ]
    world = snapshot(obj, claims=claims, nodes=(node_object("n1", labels=OURS),))
    decided = plan(world)
    assert conditions(decided)["WorkspaceReady"][2] == f"node 1/2 ready; {names[1]}: QuotaExceeded: {why}"
    assert conditions(decided)["MachineReady"] == (
        "False",
        "machineFailedCreation",
        f"{names[1]}: QuotaExceeded: {why}",
    )
    for seconds in (1, 2, 59, 300, 3600):
        later = {**obj, "status": decided.status}
        again = plan(
            snapshot(later, claims=claims, nodes=world.nodes, now=world.now + timedelta(seconds=seconds)),
        )
        assert again.status is None


def test_a_load_balancer_may_be_asked_for_and_given_up_later() -> None:
    world = served(workspace_object())
    assert world.workspace is not None
    for value, kind in (("True", "LoadBalancer"), ("False", "ClusterIP")):
        world.workspace["metadata"]["annotations"]["kaito.sh/enablelb"] = value
        decided = world.reconcile()
        [action] = decided.actions
        assert isinstance(action, ApplyChild)
        assert world.children["Service/phi"]["spec"]["type"] == kind
        # Nobody waits for that.
        assert told(world)["WorkspaceReady"][0] == "True"


CHILDREN = {
    "Deployment/phi": (workspace_object(), ("spec", "strategy"), {"type": "Recreate"}),
    "Service/phi": (workspace_object(), ("spec", "selector"), {"app": "other"}),
    "NetworkPolicy/phi": (workspace_object(), ("spec", "ingress"), []),
    "StatefulSet/phi": (SPREAD, ("spec", "template", "spec", "containers"), [{"name": "other"}]),
    "Service/phi-headless": (SPREAD, ("spec", "publishNotReadyAddresses"), False),
    "Service/phi of a tuning": (tuning_object(), ("spec", "ports"), []),
    "NetworkPolicy/phi of a tuning": (tuning_object(), ("spec", "podSelector"), {}),
}


@pytest.mark.parametrize(("child", "case"), CHILDREN.items(), ids=CHILDREN)
def test_a_child_that_somebody_changed_is_repaired(child: str, case: tuple[Obj, tuple[str, ...], Any]) -> None:
    obj, path, value = case
    world = served(obj, settings=Settings(release_namespace="kaito"))
    name = child.split()[0]
    before = copy.deepcopy(world.children[name]["spec"])
    place = world.children[name]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    decided = world.reconcile()
    assert [type(action) for action in decided.actions] == [ApplyChild]
    assert world.children[name]["spec"] == before
    world.settle()
    assert told(world)["WorkspaceReady"][0] == "True"


@pytest.mark.parametrize("child", CHILDREN)
def test_a_child_that_somebody_deleted_comes_again(child: str) -> None:
    world = served(CHILDREN[child][0], settings=Settings(release_namespace="kaito"))
    name = child.split()[0]
    del world.children[name]
    decided = world.reconcile()
    assert [type(action) for action in decided.actions] == [CreateChild]
    world.settle()
    assert name in world.children
    assert told(world)["WorkspaceReady"][0] == "True"


@pytest.mark.parametrize("child", [*CHILDREN, "Job/phi of a tuning"])
def test_an_object_of_somebody_else_in_the_place_of_a_child_is_told_and_left_alone(child: str) -> None:
    obj = tuning_object() if child.endswith("tuning") else CHILDREN[child][0]
    world = SmallWorld(obj, settings=Settings(release_namespace="kaito"))
    name = child.split()[0]
    kind, _, alone = name.partition("/")
    theirs: Obj = {"kind": kind, "metadata": {"name": alone, "namespace": "models", "uid": "theirs"}, "spec": {}}
    world.children[name] = copy.deepcopy(theirs)
    for _ in range(6):
        decided = world.reconcile()
        touched = [a for a in decided.actions if isinstance(a, (ApplyChild, CreateChild))]
        assert name not in [f"{a.child['kind']}/{a.child['metadata']['name']}" for a in touched]
        assert not [a for a in decided.actions if isinstance(a, Delete) and a.uid == "theirs"]
        world.provision()
    assert {k: world.children[name][k] for k in theirs} == theirs
    status, message = told(world)["WorkspaceReady"]
    assert status == "False"
    words = f"{name} in namespace models exists already and does not belong to this Workspace"
    assert message.startswith(words)
    assert "delete it or give the Workspace another name" in message


def test_a_catalog_that_cannot_be_read_is_told_and_what_runs_goes_on() -> None:
    sentence = "Catalog: spec.presets.phi-3-mini-4k-instruct.gpuCount is 'one', not a whole number of 0 or more"
    decided = plan(snapshot(catalog=None, catalog_problem=sentence))
    assert conditions(decided)["WorkspaceReady"] == ("False", "workspaceFailed", sentence)
    world = served(workspace_object())
    world.catalog = None
    assert world.reconcile().empty
    world.delete(rounds=4)
