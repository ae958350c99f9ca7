"""AKS upgrades a machine under its claim: the Node is deleted and registers anew, claim and pool stay (A.13)."""

from __future__ import annotations

import pytest
from azure.mgmt.containerservice.models import AgentPool, AgentPoolManagedClusterAgentPoolProfileProperties
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import END, looks
from tests.unit.provisioner.memory_cloud import Pool
from tests.unit.provisioner.world import World

from kaito_hooks.api import labels
from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.azure import aks
from kaito_hooks.provisioner.cloud import State
from kaito_hooks.provisioner.errors import LaunchFailed
from kaito_hooks.runtime import Obj

CLAIM = "ws000000001"
HOUR = 3600.0
# A Node's deletion, why it goes, and the new one's registration and initialization.
REPLACEMENT = Budget(reconciles=16, requests=3)
SWEEP = Budget(reconciles=0, requests=1)


@pytest.fixture
def world() -> World:
    """One claim with its Node, initialized."""
    world = World(node_repair_timeout=600, gc_interval=120)
    world.ready_claim()
    return world


def pool_of(world: World) -> Pool:
    return world.cloud.pools[CLAIM]


def begin(world: World, state: State = State.UPGRADING) -> None:
    """The pool's state changes, and AKS deletes the Node."""
    world.allow(REPLACEMENT)
    pool_of(world).state = state
    world.cluster.delete(resources.NODE, node(world)["metadata"]["name"])


def register(world: World, *, ready: bool = True) -> None:
    """The new kubelet registers, with the pool's labels and nothing of ours."""
    world.node_ready = ready
    world.boot(pool_of(world))


def node(world: World) -> Obj:
    found = world.node_of()
    assert found is not None
    return found


@pytest.mark.parametrize("state", [State.UPGRADING, State.UPDATING])
def test_a_node_that_the_cloud_replaces_is_let_go_and_its_claim_stays(world: World, state: State) -> None:
    claim = world.there()
    begin(world, state)
    world.run(2)
    assert world.node_of() is None
    assert (world.there().uid, world.there().deleting, world.there().ready) == (claim.uid, False, True)
    assert world.billing() == [CLAIM]
    assert "NodeReplaced" in world.heard.reasons()


def test_the_new_node_becomes_the_claims_as_the_old_one_was(world: World) -> None:
    old = node(world)
    begin(world)
    world.run(2)
    register(world)
    world.run(5)
    new = node(world)
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["metadata"]["finalizers"] == [labels.TERMINATION_FINALIZER]
    assert new["metadata"]["ownerReferences"] == old["metadata"]["ownerReferences"]
    assert new["metadata"]["labels"] == old["metadata"]["labels"]
    assert new["spec"]["taints"] == old["spec"]["taints"]
    assert world.there().ready
    (counted,) = world.env.metrics.nodes_created.collect()
    assert counted.samples[0].value == 2


def test_a_new_node_is_initialized_only_when_it_is_fit(world: World) -> None:
    begin(world)
    world.run(2)
    register(world, ready=False)
    world.run(30)
    found = nodes.labels_of(node(world))
    assert (found.get(labels.REGISTERED), found.get(labels.INITIALIZED)) == ("true", None)
    world.set_ready("True")
    world.run(2)
    assert nodes.labels_of(node(world))[labels.INITIALIZED] == "true"


def test_a_long_upgrade_is_waited_for_and_costs_no_request_a_look(world: World) -> None:
    begin(world)
    world.run(2)
    sweeps = int(HOUR / world.settings.gc_interval)
    world.allow((sweeps + 1) * SWEEP)
    world.run(HOUR, sweep=True)
    assert not world.there().deleting
    world.allow(REPLACEMENT)
    pool_of(world).state = State.SUCCEEDED
    register(world)
    world.run(10)
    assert not world.there().deleting
    assert finalizers(world) == [labels.TERMINATION_FINALIZER]


def test_an_upgrade_that_leaves_no_node_gives_the_machine_back_in_time(world: World) -> None:
    begin(world)
    world.allow(REPLACEMENT + 31 * SWEEP)
    world.run(HOUR, sweep=True)
    pool_of(world).state = State.SUCCEEDED
    world.allow(END + 9 * SWEEP)
    world.run(600 + 3 * 120, sweep=True)
    world.run(120)
    assert world.claim() is None
    assert world.cloud.pools == {}


def test_a_surge_node_with_the_pools_labels_is_nobodys_node(world: World) -> None:
    pool = pool_of(world)
    pool.state = State.UPGRADING
    name = f"aks-{CLAIM}-12345678-vmss000001"
    surge = world.add_node(name, pool, provider_id=f"azure:///{CLAIM}/surge")
    world.allow(Budget(reconciles=2, requests=0) + SWEEP)
    world.run(30, sweep=True)
    assert world.cluster.find(resources.NODE, name) == surge
    assert world.there().node_name == node(world)["metadata"]["name"]


def test_a_node_that_somebody_deletes_takes_its_claim_with_it(world: World) -> None:
    begin(world, State.SUCCEEDED)
    world.allow(END)
    world.run(1)
    assert world.there().deleting


def test_the_state_of_another_claims_pool_excuses_no_deleted_node(world: World) -> None:
    pool = pool_of(world)
    pool.labels = {**pool.labels, labels.CLAIM_UID: "another"}
    begin(world)
    world.allow(END)
    world.run(2)
    assert world.claim() is None
    assert world.billing() == [CLAIM]


def test_a_cloud_that_does_not_answer_costs_no_claim(world: World) -> None:
    world.cloud.refuse = lambda verb: LaunchFailed("ServiceUnavailable", "The service is unavailable.")
    begin(world)
    world.allow(REPLACEMENT + looks(40))
    world.run(30)
    assert not world.there().deleting
    assert finalizers(world) == [labels.TERMINATION_FINALIZER]
    world.cloud.refuse = lambda verb: None
    world.run(10)
    assert not world.there().deleting
    assert world.node_of() is None


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("Upgrading", State.UPGRADING),
        ("UpgradingNodeImageVersion", State.UPGRADING),
        ("Updating", State.UPDATING),
        ("Stopping", State.OTHER),
    ],
)
def test_the_clouds_word_for_an_upgrade_is_understood(said: str, state: State) -> None:
    properties = AgentPoolManagedClusterAgentPoolProfileProperties({"provisioningState": said})
    assert aks.instance(AgentPool(properties=properties)).state is state


def finalizers(world: World) -> list[str]:
    return list(node(world)["metadata"].get("finalizers") or ())
