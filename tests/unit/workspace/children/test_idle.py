"""Nodes that were bought for a model that cannot run there: kept for a pause, given back, and bought again."""

from __future__ import annotations

from typing import Any

import pytest
from tests.driven.budget import Budget
from tests.unit.workspace.running import START, RunningWorld, one
from tests.unit.workspace.test_refused_writes import Refusal
from tests.unit.workspace.worlds import CATALOG_OBJECT

from kaito_hooks.runtime import Obj
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import Settings, Timeouts

MINUTE = 60.0
QUOTA = 'pods "phi-1" is forbidden: exceeded quota: small, requested: limits.cpu=2, used: limits.cpu=0, limited: 1'
MANY = Budget(reconciles=60, requests=60)


def served(**changes: Any) -> RunningWorld:
    """A model that answers."""
    world = RunningWorld(one(), **changes)
    world.allow(START)
    world.run(10 * MINUTE)
    assert world.told()[0] == "True"
    return world


def refused() -> RunningWorld:
    """A model all Pods of which the API server refuses since its node came."""
    world = RunningWorld()
    world.no_pods = QUOTA
    world.apply(one())
    world.allow(MANY)
    world.run(4 * MINUTE)
    assert len(world.staying_claims()) == 1
    assert "exceeded quota" in world.told()[1]
    return world


class TestRefusedPods:
    def test_their_node_is_given_back_after_the_pause_and_not_bought_for_nothing(self) -> None:
        world = refused()
        world.run(8 * MINUTE)
        assert len(world.staying_claims()) == 1
        world.run(3 * MINUTE)
        assert world.staying_claims() == []
        world.run(600 * MINUTE)
        assert len(world.purchases) == 1
        assert "exceeded quota" in world.told()[1]
        status, message = world.told("ResourceReady")
        assert status == "False"
        assert "no node is bought while Deployment/phi cannot create its Pods" in message

    def test_it_is_told_until_when_the_node_is_kept(self) -> None:
        world = refused()
        status, message = world.told("ResourceReady")
        assert status == "True"
        [claim] = world.claims()
        assert f"Machine {claim} is given back at 2026-" in message

    @pytest.mark.parametrize(
        ("raised_after", "purchases"), [(5 * MINUTE, 1), (60 * MINUTE, 2)], ids=["within the pause", "after the pause"]
    )
    def test_a_quota_that_is_raised_buys_a_node_again_if_none_is_there(
        self, raised_after: float, purchases: int
    ) -> None:
        world = refused()
        world.run(raised_after)
        world.no_pods = ""
        world.run(30 * MINUTE)
        assert len(world.purchases) == purchases
        assert world.told()[0] == "True"
        assert "idleSince" not in world.workspace()["status"]


def with_two_sources() -> Obj:
    """An edit that breaks a rule."""
    inference = one()["inference"]
    adapter = {"source": {"name": "a", "image": "r.io/x:1"}, "strength": "7"}
    return one(inference={**inference, "adapters": [adapter]})


def test_a_node_that_comes_after_an_edit_broke_a_rule_is_given_back_and_bought_again_when_it_is_mended() -> None:
    world = RunningWorld(one())
    world.allow(MANY)
    world.run(1 * MINUTE)
    world.apply(with_two_sources())
    world.run(9 * MINUTE)
    assert world.told()[0] == "False"
    assert world.deployments() == []
    assert len(world.staying_claims()) == 1
    assert "is given back at" in world.told("ResourceReady")[1]
    world.run(4 * MINUTE)
    assert world.claims() == []
    world.run(60 * MINUTE)
    assert len(world.purchases) == 1
    world.apply(one())
    world.run(10 * MINUTE)
    assert len(world.purchases) == 2
    assert world.told()[0] == "True"


def test_no_node_is_bought_again_for_a_model_that_may_not_be_made_once_a_broken_rule_is_mended() -> None:
    world = RunningWorld(one())
    world.allow(MANY)
    world.run(1 * MINUTE)
    world.apply(with_two_sources())
    world.run(14 * MINUTE)
    assert world.claims() == []
    refusal = Refusal(world, "create Deployment")
    world.apply(one())
    world.run(5 * MINUTE)
    assert len(world.purchases) == 1
    assert "no node is bought while Deployment/phi cannot be made" in world.told("ResourceReady")[1]
    refusal.what = ""
    world.run(10 * MINUTE)
    assert len(world.purchases) == 2
    assert world.told()[0] == "True"


def test_a_model_that_answers_keeps_its_node_whatever_an_edit_says() -> None:
    world = served()
    world.allow(MANY)
    world.apply(with_two_sources())
    world.run(60 * MINUTE)
    assert len(world.staying_claims()) == 1
    assert world.given_back_in_use == []


def test_no_node_waits_for_ever_for_a_catalog() -> None:
    world = RunningWorld(one())
    world.allow(MANY)
    world.run(1 * MINUTE)
    world.cluster.drop(resources.CATALOG, "kaito")
    world.run(20 * MINUTE)
    assert world.claims() == []
    assert "there is no Catalog" in world.told()[1]
    world.cluster.put(resources.CATALOG, CATALOG_OBJECT)
    world.run(10 * MINUTE)
    assert world.told()[0] == "True"


def test_a_model_that_was_scaled_to_zero_keeps_its_node_as_it_is_told() -> None:
    world = served(settings=Settings(timeouts=Timeouts(node_idle=60)))
    world.allow(MANY)
    [deployment] = world.cluster.all(resources.DEPLOYMENT)
    deployment["spec"]["replicas"] = 0
    world.cluster.put(resources.DEPLOYMENT, deployment)
    for pod in world.cluster.all(resources.POD):
        world.cluster.drop(resources.POD, pod["metadata"]["name"], "models")
    world.run(60 * MINUTE)
    assert "scaled to zero by hand; its nodes are kept" in world.told()[1]
    assert len(world.staying_claims()) == 1


def put_somebody_elses(world: RunningWorld) -> None:
    """A Deployment of the Workspace's name, with our label, so that the controller's cache has it."""
    metadata = {"name": "phi", "namespace": "models", "labels": {"kaito.sh/workspace": "phi"}}
    spec = {"replicas": 0, "template": {"spec": {"affinity": {}}}}
    world.cluster.put(resources.DEPLOYMENT, {"metadata": metadata, "spec": spec})


def test_no_node_is_bought_for_a_model_whose_place_is_taken() -> None:
    world = RunningWorld()
    put_somebody_elses(world)
    world.apply(one())
    world.allow(MANY)
    world.run(60 * MINUTE)
    assert world.purchases == []
    assert "Deployment/phi in namespace models exists already" in world.told()[1]
    assert "no node is bought while Deployment/phi of somebody else is there" in world.told("ResourceReady")[1]
    world.cluster.drop(resources.DEPLOYMENT, "phi", "models")
    world.run(10 * MINUTE)
    assert world.told()[0] == "True"


def test_the_node_of_a_model_whose_place_somebody_takes_is_given_back() -> None:
    world = served()
    world.allow(MANY)
    world.cluster.drop(resources.DEPLOYMENT, "phi", "models")
    for pod in world.cluster.all(resources.POD):
        world.cluster.drop(resources.POD, pod["metadata"]["name"], "models")
    put_somebody_elses(world)
    world.run(12 * MINUTE)
    assert world.claims() == []
