"""Writes that the API server refuses for good, by a quota, a policy or a right: told in the status, and tried again."""

from __future__ import annotations

from typing import Any

import pytest
from tests.driven.budget import Budget
from tests.unit.workspace.running import START, RunningWorld, one
from tests.unit.workspace.tuning.running_jobs import TuningWorld
from tests.unit.workspace.worlds import TEMPLATE, tuning_object

from kaito_hooks.runtime import Forbidden, Obj
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import Settings

WORDS = "exceeded quota: small, requested: count/all=1"
PER_MINUTE = Budget(reconciles=6, requests=24)
"""A try every 30 seconds, twice a look to learn and to tell it."""


class Refusal:
    """Refuses writes whose description (verb, kind, name) begins so, until it is lifted."""

    def __init__(self, world: RunningWorld, what: str) -> None:
        self.what, self.before = what, world.cluster.touch
        world.cluster.touch = self

    def __call__(self, what: str, after: bool) -> None:
        if self.what and not after and what.startswith(self.what):
            raise Forbidden(f"{what.split()[-1]} is forbidden: {WORDS}", status=403, reason="Forbidden")
        self.before(what, after)


@pytest.fixture
def world() -> RunningWorld:
    return RunningWorld()


def refused(world: RunningWorld, what: str, *, of: str) -> Refusal:
    """A Workspace that says why it is not ready: such writes are refused, which begins with the object's name."""
    refusal = Refusal(world, what)
    world.apply(one())
    world.allow(START + 10 * PER_MINUTE)
    world.run(600)
    status, message = world.told()
    assert status == "False"
    assert message.startswith(of)
    assert WORDS in message
    return refusal


def lift(world: RunningWorld, refusal: Refusal) -> None:
    refusal.what = ""
    world.allow(START)
    world.run(60)


def test_a_revision_that_cannot_be_recorded_is_told_and_tried_again(world: RunningWorld) -> None:
    refusal = refused(world, "create ControllerRevision", of="ControllerRevision/phi-")
    # It is served all the same.
    assert world.told("InferenceReady")[0] == "True"
    lift(world, refusal)
    assert world.told()[0] == "True"
    assert len(world.cluster.all(resources.CONTROLLER_REVISION)) == 1


def test_a_workspace_that_may_not_get_our_finalizer_buys_nothing_and_says_why(world: RunningWorld) -> None:
    refusal = refused(world, "patch Workspace", of="Workspace could not be written")
    assert world.purchases == []
    assert [reason for _, reason, _ in world.events if reason.startswith("Created")] == []
    lift(world, refusal)
    world.allow(START)
    world.run(300)
    assert world.told()[0] == "True"
    assert len(world.purchases) == 1


def test_a_change_that_cannot_be_noted_on_the_workspace_is_told_and_what_runs_goes_on(world: RunningWorld) -> None:
    """Annotations may have 256 KiB together, and the user's own may leave no room."""
    world.apply(one())
    world.allow(START)
    world.run(300)
    before = [world.cluster.all(kind) for kind in (resources.DEPLOYMENT, resources.MACHINE)]
    refusal = Refusal(world, "patch Workspace")
    adapters = [{"source": {"name": "tone", "image": "r.io/models/tone:1"}}]
    changed = one()
    changed["inference"] = {**changed["inference"], "adapters": adapters}
    world.apply(changed)
    world.allow(START + 10 * PER_MINUTE)
    world.run(600)
    status, message = world.told()
    assert status == "False"
    assert WORDS in message
    assert [world.cluster.all(kind) for kind in (resources.DEPLOYMENT, resources.MACHINE)] == before
    lift(world, refusal)
    [workload] = world.cluster.all(resources.DEPLOYMENT)
    assert "adapter-tone" in [step["name"] for step in workload["spec"]["template"]["spec"]["initContainers"]]


def test_a_finalizer_that_may_not_go_is_told_and_tried_again(world: RunningWorld) -> None:
    world.apply(one())
    world.allow(START)
    world.run(300)
    refusal = Refusal(world, "patch Workspace")
    world.delete()
    world.allow(START + 10 * PER_MINUTE)
    world.run(600)
    assert world.claims() == []
    assert WORDS in world.told()[1]
    refusal.what = ""
    world.allow(START)
    world.run(60)
    assert world.cluster.all(resources.WORKSPACE) == []


class WithoutPlugin(RunningWorld):
    """The device plugin goes to labelled nodes alone."""

    def bring_node(self, name: str, **changes: Any) -> Obj:
        return super().bring_node(name, **{"gpus": 0, **changes})


def test_a_node_that_cannot_be_labelled_and_has_no_gpus_for_it_is_told_and_tried_again() -> None:
    world = WithoutPlugin()
    refusal = refused(world, "patch Node", of="Node/node-ws")
    lift(world, refusal)
    assert "has no nvidia.com/gpu yet" in world.told()[1]
    [node] = world.cluster.all(resources.NODE)
    assert node["metadata"]["labels"]["accelerator"] == "nvidia"


def test_a_node_that_has_gpus_serves_without_the_label(world: RunningWorld) -> None:
    Refusal(world, "patch Node")
    world.apply(one())
    world.allow(START + 10 * PER_MINUTE)
    world.run(600)
    assert world.told()[0] == "True"


def test_a_claim_that_may_not_be_deleted_is_told_while_its_workspace_goes(world: RunningWorld) -> None:
    world.apply(one())
    world.allow(START)
    world.run(300)
    refusal = Refusal(world, "delete Machine")
    world.delete()
    world.allow(START + 10 * PER_MINUTE)
    world.run(600)
    [claim] = world.claims()
    assert f"Machine/{claim} could not be deleted" in world.told()[1]
    assert WORDS in world.told()[1]
    refusal.what = ""
    world.allow(START)
    world.run(200)
    assert world.claims() == []
    assert world.cluster.all(resources.WORKSPACE) == []


def test_a_claim_that_lost_its_labels_is_not_bought_a_second_time(world: RunningWorld) -> None:
    """Its name is a hash of the Workspace's identity: it is nobody else's, and its machine bills."""
    world.apply(one())
    world.allow(START)
    world.run(300)
    [claim] = world.cluster.all(resources.MACHINE)
    name, marks = claim["metadata"]["name"], claim["metadata"]["labels"]
    bare = {key: value for key, value in marks.items() if not key.startswith("kaito.sh/workspace")}
    world.cluster.put(resources.MACHINE, {**claim, "metadata": {**claim["metadata"], "labels": bare}})
    world.remove_node(f"node-{name}")
    world.allow(START + 20 * PER_MINUTE)
    world.run(1200)
    assert [bought for _, bought in world.purchases] == [name]
    status, message = world.told()
    assert status == "False"
    assert f"Machine/{name} has lost the labels" in message
    [claim] = world.cluster.all(resources.MACHINE)
    claim["metadata"]["labels"] = marks
    world.cluster.put(resources.MACHINE, claim)
    world.bring_node(f"node-{name}", labels=marks)
    world.allow(START)
    world.run(300)
    assert world.told()[0] == "True"
    assert [bought for _, bought in world.purchases] == [name]


def test_a_template_that_cannot_be_copied_is_told_and_tried_again() -> None:
    world = TuningWorld(settings=Settings(release_namespace="kaito"))
    template: Any = {"metadata": {"name": "qlora-params-template", "namespace": "kaito"}, "data": TEMPLATE}
    world.cluster.put(resources.CONFIG_MAP, template)
    refusal = Refusal(world, "create ConfigMap")
    world.apply(tuning_object(metadata={"name": "phi", "uid": "uid-phi"}))
    world.check_ends = {"exitCode": 1, "message": "it waits for its configuration"}
    world.allow(10 * START)
    world.run(60)
    status, message = world.told()
    assert status == "False"
    assert message.startswith("ConfigMap/qlora-params-template could not be written")
    assert WORDS in message
    refusal.what = ""
    world.run(60)
    assert WORDS not in world.told()[1]
