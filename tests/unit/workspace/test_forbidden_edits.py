"""What happens around a Workspace while its specification has a change that is none to be made."""

from __future__ import annotations

import pytest
from tests.driven.budget import Budget
from tests.unit.workspace.running import START, RunningWorld, one
from tests.unit.workspace.tuning.running_jobs import TuningWorld
from tests.unit.workspace.worlds import TEMPLATE, tuning_object

from kaito_hooks.runtime import Obj
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import Settings

MINUTE = 60.0
MANY = Budget(reconciles=60, requests=60)


def of_another_type(obj: Obj) -> Obj:
    return {**obj, "resource": {**obj["resource"], "instanceType": "Standard_NC24s_v3"}}


def blink(world: RunningWorld, node: str) -> None:
    """A Node is deleted, and its kubelet registers it again."""
    world.remove_node(node)
    world.run(30)
    world.bring_node(node)
    world.run(30)


@pytest.fixture
def edited() -> RunningWorld:
    """A model that is served by the user's own node, and then gets a forbidden edit."""
    world = RunningWorld()
    world.bring_node("mine")
    world.apply(one())
    world.allow(START)
    world.run(1 * MINUTE)
    assert world.told()[0] == "True"
    world.allow(MANY)
    world.apply(of_another_type(one()))
    world.run(1 * MINUTE)
    assert "field is immutable" in world.told()[1]
    return world


def test_a_node_that_is_registered_again_meanwhile_stays_its_workspaces(edited: RunningWorld) -> None:
    world = edited
    [before] = world.cluster.all(resources.DEPLOYMENT)
    blink(world, "mine")
    world.apply(one(name="other"))
    world.run(10 * MINUTE)
    [bought] = world.claims()
    assert world.worker_nodes("other") == [f"node-{bought}"]
    world.apply(one())
    world.run(10 * MINUTE)
    assert [name for _, name in world.purchases] == [bought]
    assert world.pods_on("mine") == ["phi"]
    [after] = [found for found in world.cluster.all(resources.DEPLOYMENT) if found["metadata"]["name"] == "phi"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert world.told()[0] == world.told(of="other")[0] == "True"


def test_a_node_that_does_not_come_back_is_replaced_once_the_edit_is_taken_back(edited: RunningWorld) -> None:
    world = edited
    world.remove_node("mine")
    world.run(30 * MINUTE)
    assert world.purchases == []
    world.apply(one())
    world.run(10 * MINUTE)
    [bought] = world.claims()
    assert world.worker_nodes() == [f"node-{bought}"]
    assert world.told()[0] == "True"


def test_a_node_that_is_registered_again_while_a_job_trains_stays_its_workspaces() -> None:
    world = TuningWorld(settings=Settings(release_namespace="kaito"), job_seconds=20 * MINUTE)
    metadata = {"name": "qlora-params-template", "namespace": "kaito"}
    world.cluster.put(resources.CONFIG_MAP, {"metadata": metadata, "data": TEMPLATE})
    world.bring_node("mine")
    trained = tuning_object(metadata={"name": "phi", "uid": "uid-phi"})
    world.apply(trained)
    world.allow(3 * START)
    world.run(25 * MINUTE)
    assert world.pods_on("mine") == ["phi"]
    world.allow(MANY)
    world.apply(of_another_type(trained))
    world.run(1 * MINUTE)
    blink(world, "mine")
    assert world.worker_nodes() == ["mine"]
