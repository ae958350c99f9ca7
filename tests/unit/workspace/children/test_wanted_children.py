"""Children of ours that are wanted no longer go, a workload before its successor comes; replicas are whose scales."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.runtime.clocks import TurnedClock
from tests.unit.workspace.worlds import (
    CATALOG,
    SmallWorld,
    snapshot,
    spread_object,
    tuning_object,
    unchecked,
    uncounted,
    workspace_object,
)

from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.decision.actions import ApplyChild, CreateChild, Delete, Plan
from kaito_hooks.workspace.execute import Executor
from kaito_hooks.workspace.memory import Memories

Obj = dict[str, Any]
ADAPTER = {"source": {"name": "a", "image": "r.io/x/a:1"}, "strength": "0.5"}
PHI = CATALOG.presets["phi-3-mini-4k-instruct"]


def served(obj: Obj, **more: Any) -> SmallWorld:
    world = SmallWorld(obj, **more)
    world.settle()
    assert told(world, "WorkspaceReady")[0] == "True"
    return world


def told(world: SmallWorld, condition: str) -> tuple[str, str, str]:
    assert world.workspace is not None
    found = next(c for c in world.workspace["status"]["conditions"] if c["type"] == condition)
    return found["status"], found["reason"], found["message"]


def change(world: SmallWorld, part: str, **fields: Any) -> None:
    assert world.workspace is not None
    world.workspace[part] = {**world.workspace[part], **fields}


def names(world: SmallWorld) -> set[str]:
    return {name for name in world.children if not name.startswith("ControllerRevision")}


def test_a_policy_that_is_switched_off_goes_and_nothing_else() -> None:
    world = served(workspace_object())
    before = copy.deepcopy(world.children["Deployment/phi"])
    world.settings = replace(world.settings, network_policy=False)
    decided = world.reconcile()
    assert [(a.kind, a.name) for a in decided.actions if isinstance(a, Delete)] == [("NetworkPolicy", "phi")]
    assert [note.message for note in decided.deeds] == ["deleted NetworkPolicy/phi, which is wanted no longer"]
    assert world.reconcile().empty
    assert names(world) == {"Deployment/phi", "Service/phi"}
    assert world.children["Deployment/phi"] == before
    assert told(world, "WorkspaceReady")[0] == "True"


def test_a_policy_that_is_switched_off_goes_while_a_job_runs() -> None:
    world = SmallWorld(unchecked(tuning_object()), settings=Settings(release_namespace="kaito"))
    for _ in range(4):
        world.reconcile()
        world.provision()
    assert {"Job/phi", "NetworkPolicy/phi"} <= names(world)
    world.settings = replace(world.settings, network_policy=False)
    world.reconcile()
    assert names(world) == {"Job/phi", "Service/phi"}


def test_the_job_of_a_tuned_model_stays_beside_its_server() -> None:
    world = served(unchecked(tuning_object()))
    assert {"Job/phi", "Deployment/phi"} <= names(world)
    assert [d for d in world.deleted if d.kind != "ControllerRevision"] == []


@pytest.mark.parametrize(("old", "new"), [("Deployment", "StatefulSet"), ("StatefulSet", "Deployment")])
def test_a_preset_that_changes_its_kind_has_one_workload_at_a_time(old: str, new: str) -> None:
    world = served(workspace_object(), catalog=_catalog(distributed=old == "StatefulSet"))
    world.catalog = _catalog(distributed=new == "StatefulSet")
    world.settle()
    # Frozen, until something of the Workspace's own changes.
    assert f"{old}/phi" in names(world)
    assert told(world, "WorkloadUpToDate")[:2] == ("False", "PlatformChanged")
    change(world, "inference", adapters=[ADAPTER])
    live = world.children[f"{old}/phi"]
    live["metadata"]["deletionTimestamp"] = "2026-01-02T13:00:00Z"
    for _ in range(2):
        decided = world.reconcile()
        assert [a.child["kind"] for a in decided.actions if isinstance(a, CreateChild)].count(new) == 0
        assert not [a for a in decided.actions if isinstance(a, Delete) and a.kind == old]
        said = f"{old}/phi is being removed before {new}/phi comes"
        assert told(world, "InferenceReady") == ("False", "WorkspaceInferenceStatusPending", said)
    del live["metadata"]["deletionTimestamp"]
    [deletion] = [a for a in world.reconcile().actions if isinstance(a, Delete) and a.kind == old]
    assert deletion.foreground
    world.settle()
    headless = {"Service/phi-headless"} if new == "StatefulSet" else set()
    assert names(world) == {f"{new}/phi", "Service/phi", "NetworkPolicy/phi"} | headless
    assert told(world, "WorkspaceReady")[0] == "True"


def _catalog(*, distributed: bool) -> Any:
    preset = replace(PHI, distributed=distributed)
    return replace(CATALOG, presets={**CATALOG.presets, preset.name: preset})


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"kaito.sh/workspace": "phi"}},
        {"ownerReferences": [{"uid": "another", "controller": True}], "labels": {"kaito.sh/workspace": "phi"}},
        {"ownerReferences": [{"uid": "OURS", "controller": False}], "labels": {"kaito.sh/workspace": "phi"}},
        {"ownerReferences": [{"uid": "OURS", "controller": True}], "labels": {"kaito.sh/workspace": "other"}},
        {"ownerReferences": [{"uid": "OURS", "controller": True}]},
    ],
    ids=["nobody's", "another's", "not our controller", "another label", "no label"],
)
def test_what_is_not_ours_by_owner_and_label_is_left(metadata: Obj) -> None:
    world = served(workspace_object())
    assert world.workspace is not None
    uid = world.workspace["metadata"]["uid"]
    owners = [{**o, "uid": uid if o["uid"] == "OURS" else o["uid"]} for o in metadata.get("ownerReferences", ())]
    theirs = {"name": "phi", "namespace": "models", "uid": "x", "generation": 1, **metadata, "ownerReferences": owners}
    world.children["StatefulSet/phi"] = {"kind": "StatefulSet", "metadata": theirs, "spec": {}}
    assert world.reconcile().actions == ()
    assert "StatefulSet/phi" in world.children


def test_zero_replicas_are_told_and_left_and_the_node_stays() -> None:
    world = served(workspace_object())
    world.children["Deployment/phi"]["spec"]["replicas"] = 0
    decided = world.reconcile()
    assert decided.actions == ()
    said = "Deployment/phi is scaled to zero by hand; its nodes are kept"
    assert told(world, "InferenceReady") == ("False", "WorkspaceInferenceStatusPending", said)
    assert told(world, "WorkspaceReady") == ("False", "workspacePending", said)
    assert [note.type for note in decided.notes] == ["Normal"]
    world.settle()
    assert (world.children["Deployment/phi"]["spec"]["replicas"], len(world.claims), world.deleted) == (0, 1, [])
    world.children["Deployment/phi"]["spec"]["replicas"] = 1
    world.settle()
    assert told(world, "WorkspaceReady")[0] == "True"


def test_replicas_of_an_autoscaler_outlive_a_change_of_the_workspace() -> None:
    world = served(workspace_object())
    world.children["Deployment/phi"]["spec"]["replicas"] = 3
    assert [a for a in world.reconcile().actions if isinstance(a, ApplyChild)] == []
    world.settle()
    assert told(world, "WorkspaceReady")[0] == "True"
    change(world, "inference", adapters=[ADAPTER])
    world.settle()
    assert world.children["Deployment/phi"]["spec"]["replicas"] == 3
    assert len(world.children["Deployment/phi"]["spec"]["template"]["spec"]["initContainers"]) == 2


def test_the_ranks_of_a_model_that_spans_nodes_are_the_plan_s() -> None:
    world = served(spread_object())
    world.children["StatefulSet/phi"]["spec"]["replicas"] = 1
    world.settle()
    assert world.children["StatefulSet/phi"]["spec"]["replicas"] == 2


class Scaled:
    """An API server with one Deployment, which somebody scaled after the plan was made."""

    def __init__(self, live: Obj) -> None:
        self.live, self.applied = live, list[Obj]()

    def get(self, *_: Any, **__: Any) -> Obj:
        return self.live

    def apply(self, resource: Any, obj: Obj, **_: Any) -> Obj:
        self.applied.append(obj)
        return obj


def test_what_was_scaled_since_the_plan_is_not_scaled_back() -> None:
    world = served(workspace_object())
    planned = copy.deepcopy(world.children["Deployment/phi"])
    live = copy.deepcopy(planned)
    live["spec"]["replicas"] = 5
    live["metadata"]["resourceVersion"] = "77"
    server: Any = Scaled(live)
    executor = Executor(
        server, recorder=server, memories=Memories(), metrics=uncounted(), clock=TurnedClock(), refusal_pause=1.0
    )
    executor.execute(snapshot(), Plan(actions=(ApplyChild(planned, planned["metadata"]["uid"]),)))
    [applied] = server.applied
    # And the version says that nobody scales it between the look and the write.
    assert (applied["spec"]["replicas"], applied["metadata"]["resourceVersion"]) == (5, "77")
