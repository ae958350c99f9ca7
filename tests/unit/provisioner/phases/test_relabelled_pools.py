"""`az aks nodepool update --labels` replaces a pool's labels: its claim still knows that the machine is there."""

from __future__ import annotations

from typing import get_args

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import DRAIN, END
from tests.unit.provisioner.world import World

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.cloud import State

CLAIM = "ws000000001"
UID = "kaito.sh/claim-uid"
TRY = Budget(reconciles=4, requests=3)
"""A look, a GET, and what is told of a pool that shows no owner."""


@pytest.fixture(params=get_args(NodeAPI))
def world(request: pytest.FixtureRequest) -> World:
    world = World(node_api=request.param)
    world.ready_claim()
    return world


def relabel(world: World, **labels: str) -> None:
    """AKS gives the pool's new labels to its Node, and takes the old ones off."""
    pool = world.cloud.pools[CLAIM]
    node = world.node_of()
    assert node is not None
    kept = {key: value for key, value in node["metadata"]["labels"].items() if key not in pool.labels}
    node["metadata"]["labels"] = {**kept, **labels}
    world.cluster.put(resources.NODE, node)
    pool.labels = labels


@pytest.mark.parametrize("kubelet", ["True", "Unknown"], ids=["node ready", "node silent"])
def test_a_claim_does_not_let_go_of_a_pool_whose_labels_were_replaced(world: World, kubelet: str) -> None:
    world.allow(END + 9 * TRY)
    node = world.node_of()
    assert node is not None
    relabel(world, team="a")
    world.set_ready(kubelet)
    world.give_back()
    world.run(300)
    claim = world.claim()
    assert claim is not None, "the finalizer is kept"
    assert world.node_of() is not None
    assert world.cloud.pools[CLAIM].state is State.SUCCEEDED, "a pool that shows no owner is not deleted"
    assert "FailedTermination" in world.heard.reasons()
    said = world.there().ending()
    assert claim.provider_id in said
    assert f"{UID}={claim.uid}" in said


def test_pods_of_a_relabelled_pool_are_not_deleted_without_grace(world: World) -> None:
    world.allow(DRAIN + END)
    node = world.node_of()
    assert node is not None
    world.add_pod("server", node["metadata"]["name"])
    world.cluster.protected_pods.add("server")
    relabel(world, team="a")
    world.give_back()
    world.run(60)
    assert world.cluster.find(resources.POD, "server", "default") is not None


def test_the_label_put_back_ends_the_claim_and_the_pool(world: World) -> None:
    world.allow(END + 3 * TRY)
    relabel(world, team="a")
    world.give_back()
    world.run(60)
    claim = world.there()
    relabel(world, team="a", **{UID: claim.uid})
    world.run(240)
    assert world.claim() is None
    assert world.cloud.pools == {}
    assert world.node_of() is None


def test_a_relabelled_pool_that_somebody_deletes_ends_the_claim(world: World) -> None:
    world.allow(END + 3 * TRY)
    relabel(world, team="a")
    world.give_back()
    world.run(60)
    del world.cloud.pools[CLAIM]
    world.run(240)
    assert world.claim() is None


@pytest.mark.parametrize(
    "labels",
    [
        {UID: "uid-of-another"},
        {
            "kaito.sh/machine-type": "gpu",
            "karpenter.sh/provisioner-name": "default",
            "kaito.sh/workspace": "other",
            "kaito.sh/workspacenamespace": "default",
        },
    ],
    ids=["another claim", "another workspace of upstream"],
)
def test_a_pool_that_proves_another_owner_is_let_go(world: World, labels: dict[str, str]) -> None:
    world.allow(END)
    relabel(world, **labels)
    world.give_back()
    world.run(60)
    assert world.claim() is None
    assert world.cloud.pools[CLAIM].state is State.SUCCEEDED


def test_a_relabelled_pool_is_not_reported_gone_when_its_node_is_silent() -> None:
    world = World(node_repair_timeout=0.0)
    world.ready_claim()
    relabel(world, team="a")
    world.set_ready("Unknown")
    for _ in range(3):
        world.sweep()
    assert not world.there().deleting
