"""The nodes of Workspaces through time: refused, blinking, lost and brought, and what that costs."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
from tests.driven.budget import Budget
from tests.unit.workspace.running import LOOK, START, RunningWorld, one
from tests.unit.workspace.worlds import CATALOG_OBJECT

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Forbidden
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import Settings, Timeouts
from kaito_hooks.workspace.purchases.claims import claim_name

NO_QUOTA = ("QuotaExceeded", "6 more cores of standardNCSv3Family are needed in westus2")
NOBODY_BUYS = Settings(node_api="none")


def slot_name(slot: int) -> str:
    return claim_name(Workspace.read(one()), slot)


def served(**changes: Any) -> RunningWorld:
    """One Workspace on a node of the user's own."""
    world = RunningWorld(one(), settings=Settings(**changes))
    world.bring_node("mine")
    world.allow(START)
    world.run(60)
    assert world.told() == ("True", "workspace is ready")
    assert (world.worker_nodes(), world.purchases) == (["mine"], [])
    return world


def test_a_workspace_becomes_ready_on_a_bought_node_and_then_costs_nothing() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    assert world.told()[0] == "True"
    assert world.worker_nodes() == [f"node-{slot_name(0)}"]
    assert [name for _, name in world.purchases] == [slot_name(0)]
    # The look that was due had the claim taken too long.
    world.allow(Budget(1, 0))
    world.run(3600)


def test_a_workspace_that_is_deleted_gives_back_its_claim_and_goes() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    world.allow(6 * LOOK + Budget(0, 6))
    world.delete()
    world.run(120)
    assert world.claims() == []
    with pytest.raises(AssertionError):
        world.workspace()


def test_a_slot_that_is_refused_is_bought_again_in_its_own_back_off_although_another_serves() -> None:
    world = RunningWorld(one(count=2), create_seconds=20)
    world.refusals[slot_name(1)] = NO_QUOTA
    world.allow(START + 20 * LOOK)
    world.run(60)
    for _ in range(60):
        world.run(10)
        status, message = world.told("ResourceReady")
        assert status == "False"
        assert "QuotaExceeded: 6 more cores" in message
    moments = [moment for moment, name in world.purchases if name == slot_name(1)]
    pauses = [after - before for before, after in itertools.pairwise(moments)]
    # Each claim takes its minute to go before its slot can be bought again.
    assert pauses == [pytest.approx(90, abs=2), pytest.approx(120, abs=2), pytest.approx(180, abs=2)]
    assert [name for _, name in world.purchases if name == slot_name(0)] == [slot_name(0)]
    del world.refusals[slot_name(1)]
    world.allow(START)
    world.run(600)
    assert world.told()[0] == "True"


@pytest.mark.parametrize("node_api", ["Machine", "none"])
def test_a_node_of_ones_own_that_is_away_for_a_moment_keeps_its_place_and_nothing_is_bought(node_api: str) -> None:
    world = served(node_api=node_api)
    world.allow(6 * LOOK)
    world.set_ready("mine", False)
    world.run(40)
    status, message = world.told("ResourceReady")
    assert status == "False"
    assert message.startswith("node 0/1 ready; node mine is not Ready since 2026-01-02T03:05:05Z")
    assert "2026-01-02T03:10:05Z" in message
    if node_api == "Machine":
        assert f"node 0/1 ready; {world.told('MachineReady')[1]}" == message
    assert world.worker_nodes() == ["mine"]
    world.set_ready("mine", True)
    world.run(20)
    assert (world.told()[0], world.purchases, world.worker_nodes()) == ("True", [], ["mine"])


def test_a_node_of_ones_own_that_stays_away_is_replaced_once_after_the_grace() -> None:
    world = served()
    world.set_ready("mine", False)
    world.allow(4 * LOOK)
    world.run(299)
    assert (world.purchases, world.worker_nodes()) == ([], ["mine"])
    world.allow(START)
    world.run(301)
    assert [name for _, name in world.purchases] == [slot_name(0)]
    assert (world.told()[0], world.worker_nodes()) == ("True", [f"node-{slot_name(0)}"])
    world.allow(2 * LOOK)
    world.set_ready("mine", True)
    world.run(600)
    assert (world.worker_nodes(), len(world.purchases)) == ([f"node-{slot_name(0)}"], 1)


def test_a_node_of_ones_own_that_stays_away_is_given_up_where_nothing_is_bought_and_taken_when_it_is_back() -> None:
    world = served(node_api="none")
    world.set_ready("mine", False)
    world.allow(6 * LOOK)
    world.run(301)
    assert world.worker_nodes() == []
    status, message = world.told()
    assert status == "False"
    assert "1 more Ready node with the labels apps=phi-3 needed" in message
    world.set_ready("mine", True)
    world.run(60)
    assert (world.worker_nodes(), world.told()[0], world.pods_on("mine")) == (["mine"], "True", ["phi"])


def test_the_grace_is_a_setting() -> None:
    world = served(timeouts=Timeouts(node_not_ready=30))
    world.set_ready("mine", False)
    world.allow(3 * LOOK)
    world.run(29)
    assert world.purchases == []
    world.allow(5 * LOOK)
    world.run(2)
    assert len(world.purchases) == 1


def test_a_node_of_ones_own_that_is_deleted_is_replaced_at_once() -> None:
    world = served()
    world.remove_node("mine")
    world.allow(6 * LOOK)
    world.run(1)
    assert len(world.purchases) == 1


def test_a_claim_that_is_deleted_under_a_running_workspace_is_bought_again_when_it_is_gone() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    world.allow(START)
    world.cluster.delete(resources.MACHINE, slot_name(0))
    world.set_ready(f"node-{slot_name(0)}", False)
    world.run(30)
    assert "is being deleted, its replacement is bought when it is gone" in world.told()[1]
    assert len(world.purchases) == 1
    world.run(300)
    assert (len(world.purchases), world.claims(), world.told()[0]) == (2, [slot_name(0)], "True")


def change_preset(world: RunningWorld, preset: dict[str, Any] | None) -> None:
    """The Catalog's preset of the Workspace is another from here on, or gone."""
    catalog = copy.deepcopy(CATALOG_OBJECT)
    presets = catalog["spec"]["presets"]
    before = presets.pop("phi-3-mini-4k-instruct")
    if preset is not None:
        presets["phi-3-mini-4k-instruct"] = before | preset
    world.cluster.put(resources.CATALOG, catalog)


def lose_its_node(world: RunningWorld) -> None:
    """Claim and node of the Workspace's first slot are gone at once."""
    world.cluster.drop(resources.MACHINE, slot_name(0))
    world.remove_node(f"node-{slot_name(0)}")


def test_a_workspace_that_new_rules_would_refuse_is_served_on_and_its_node_bought_again() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    world.allow(LOOK)
    change_preset(world, {"totalGPUMemoryGiB": 400})
    world.run(60)
    world.allow(START)
    adapter = {"source": {"name": "a", "image": "r.io/x/a:1"}, "strength": "0.5"}
    world.apply(one(inference={**one()["inference"], "adapters": [adapter]}))
    world.cluster.drop(resources.SERVICE, "phi", "models")
    lose_its_node(world)
    world.run(300)
    assert world.cluster.find(resources.SERVICE, "phi", "models") is not None
    deployment = world.cluster.find(resources.DEPLOYMENT, "phi", "models")
    assert deployment is not None
    steps = deployment["spec"]["template"]["spec"]["initContainers"]
    assert [step["name"] for step in steps] == ["weights", "adapter-a"]
    assert (len(world.purchases), world.claims(), world.told()[0]) == (2, [slot_name(0)], "True")


def test_without_its_preset_a_lost_node_is_not_bought_again_and_the_reason_is_told() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    world.allow(3 * LOOK)
    change_preset(world, None)
    lose_its_node(world)
    world.run(600)
    assert (len(world.purchases), world.claims()) == (1, [])
    assert world.told("ResourceReady")[1].startswith("Unsupported inference preset name")
    assert world.told()[1] == world.told("ResourceReady")[1]


def test_a_preferred_node_that_is_named_later_is_taken_and_the_claim_is_kept_whose_node_serves() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    world.bring_node("wish", labels={"node.kubernetes.io/instance-type": "Standard_NV6"})
    world.allow(8 * LOOK)
    world.apply(one(resource={**one()["resource"], "preferredNodes": ["wish"]}))
    world.run(60)
    assert world.worker_nodes() == ["wish"]
    assert (len(world.purchases), world.staying_claims(), world.told()[0]) == (1, [slot_name(0)], "True")
    assert world.pods_on(f"node-{slot_name(0)}") == ["phi"]
    found = world.cluster.find(resources.NODE, "wish")
    assert found is not None
    assert found["metadata"]["labels"]["accelerator"] == "nvidia"


def test_a_preferred_node_without_an_instance_type_gets_the_pod() -> None:
    world = RunningWorld(one(resource={**one()["resource"], "preferredNodes": ["wish"]}))
    world.bring_node("wish", labels={"node.kubernetes.io/instance-type": None})
    world.allow(START)
    world.run(60)
    assert (world.pods_on("wish"), world.purchases, world.told()[0]) == (["phi"], [], "True")


@pytest.mark.parametrize("named", ["at first", "later"])
def test_a_model_whose_node_dies_goes_to_the_preferred_node_that_came_after_it(named: str) -> None:
    preferring = one(resource={**one()["resource"], "preferredNodes": ["wish"]})
    world = RunningWorld(preferring if named == "at first" else one())
    world.allow(3 * START)
    world.run(300)
    world.bring_node("wish", labels={"node.kubernetes.io/instance-type": "Standard_NV6"})
    if named == "later":
        world.apply(preferring)
    world.run(60)
    assert (world.worker_nodes(), world.pods_on(f"node-{slot_name(0)}")) == (["wish"], ["phi"])
    # Which nodes are preferred is no setting of the platform, and no reason for a roll.
    assert world.told("WorkloadUpToDate")[0] == "True"
    world.set_ready(f"node-{slot_name(0)}", False)
    world.run(1200)
    assert (world.pods_on("wish"), world.claims(), len(world.purchases)) == (["phi"], [], 1)
    assert world.told() == ("True", "workspace is ready")
    assert world.told("WorkloadUpToDate")[0] == "True"


def test_a_claim_that_no_slot_needs_any_more_is_given_back() -> None:
    world = served()
    world.set_ready("mine", False)
    world.allow(START)
    world.run(360)
    assert world.claims() == [slot_name(0)]
    world.set_ready("mine", True)
    world.allow(8 * LOOK)
    world.run(120)
    assert (world.claims(), world.worker_nodes(), world.told()[0]) == ([], ["mine"], "True")
    # A claim that was given back has not failed: the next one is bought at once.
    world.allow(START)
    world.remove_node("mine")
    world.run(1)
    assert len(world.purchases) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_a_bought_node_whose_pod_has_gone_to_one_of_ones_own_is_given_back(count: int) -> None:
    """The scheduler may take either; a node on which nothing runs any more would bill for ever."""
    world = RunningWorld(one(count=count))
    world.allow(count * START)
    world.run(300)
    world.bring_node("mine")
    world.allow(4 * LOOK)
    world.run(60)
    assert world.worker_nodes() == sorted(f"node-{slot_name(slot)}" for slot in range(count))
    world.cluster.drop(resources.POD, "phi-0", "models")
    world.allow(8 * LOOK)
    world.run(900)
    assert world.pods_on("mine") == ["phi"]
    assert len(world.staying_claims()) == count - 1
    assert (world.told()[0], "mine" in world.worker_nodes()) == ("True", True)
    assert world.given_back_in_use == []


def test_a_node_of_ones_own_on_which_nothing_runs_displaces_no_bought_one() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    world.bring_node("mine")
    world.allow(4 * LOOK)
    world.run(3600)
    assert world.worker_nodes() == [f"node-{slot_name(0)}"]
    assert len(world.staying_claims()) == 1


def test_a_bought_node_that_is_away_for_a_moment_keeps_its_place() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    [node] = world.worker_nodes()
    world.allow(8 * LOOK)
    world.set_ready(node, False)
    world.run(100)
    status, message = world.told("ResourceReady")
    assert (status, world.worker_nodes()) == ("False", [node])
    assert f"{node} is not Ready since" in message
    world.set_ready(node, True)
    world.run(100)
    assert (world.told()[0], len(world.purchases), world.worker_nodes()) == ("True", 1, [node])


def test_what_is_told_while_a_bought_node_is_away_and_then_repaired_is_true() -> None:
    world = RunningWorld(one(), repair_seconds=600)
    world.allow(START)
    world.run(300)
    [node] = world.worker_nodes()
    world.allow(START)
    world.set_ready(node, False)
    told = []
    for _ in range(60):
        world.run(10)
        told.append((world.told("ResourceReady")[1], world.told("MachineReady")[1]))
    away = [about for about in told if "not Ready since" in about[0]]
    repaired = [about for about in told if f"waiting for {slot_name(0)}: its node {node} is not Ready" in about[0]]
    # The grace of 5 minutes, and the rest of the 10 after which the provisioner gives the node up.
    assert len(away) == pytest.approx(30, abs=1)
    assert len(repaired) == pytest.approx(29, abs=2)
    assert {resource.removeprefix("node 0/1 ready; ") for resource, _ in away} == {claims for _, claims in away}
    assert {resource.removeprefix("node 0/1 ready; ") for resource, _ in repaired} == {c for _, c in repaired}


def test_where_nothing_is_bought_yet_no_machine_is_said_to_be_created() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(1)
    assert world.told("MachineReady") == ("Unknown", "creating 1 machines")
    world.run(181)
    world.allow(START)
    world.delete_claim(slot_name(0))
    world.remove_node(f"node-{slot_name(0)}")
    world.run(10)
    assert world.told("MachineReady")[1] == (
        f"{slot_name(0)} is being deleted, its replacement is bought when it is gone"
    )


def test_where_nothing_may_be_bought_that_is_what_is_told() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    world.cluster.put(resources.CATALOG, {**CATALOG_OBJECT, "spec": {**CATALOG_OBJECT["spec"], "presets": {}}})
    world.allow(START)
    world.delete_claim(slot_name(0))
    world.remove_node(f"node-{slot_name(0)}")
    world.run(400)
    assert world.told("MachineReady")[1] == "no node is bought at the moment"
    assert world.told("ResourceReady")[1].startswith("Unsupported inference preset name")


def test_a_claim_whose_node_is_repaired_is_kept_until_its_provisioner_gives_it_up() -> None:
    world = RunningWorld(one())
    world.allow(START)
    world.run(300)
    world.set_ready(f"node-{slot_name(0)}", False)
    world.bring_node("mine")
    world.allow(START)
    world.run(500)
    assert (world.worker_nodes(), world.told()[0]) == (["mine"], "True")
    assert world.staying_claims() == [slot_name(0)]
    world.allow(3 * LOOK)
    world.run(200)
    assert (world.claims(), len(world.purchases)) == ([], 1)


def test_a_node_that_blinks_is_not_lost_to_a_workspace_that_waits() -> None:
    world = RunningWorld(one(), settings=NOBODY_BUYS)
    world.bring_node("n1")
    world.allow(START)
    world.run(30)
    world.allow(START)
    world.apply(one(name="waits"))
    world.run(30)
    assert world.deployments() == ["phi"]
    world.allow(8 * LOOK)
    world.set_ready("n1", False)
    world.run(120)
    world.set_ready("n1", True)
    world.run(120)
    assert (world.worker_nodes(), world.worker_nodes("waits")) == (["n1"], [])
    assert (world.told()[0], world.told(of="waits")[0]) == ("True", "False")
    assert world.pods_on("n1") == ["phi"]


@pytest.mark.parametrize("created", ["2026-01-01T00:00:00Z", "2026-01-02T23:00:00Z"], ids=["older", "younger"])
def test_a_workspace_that_lost_its_node_to_another_takes_its_workload_away(created: str) -> None:
    world = RunningWorld(one(), settings=NOBODY_BUYS)
    world.bring_node("n1")
    world.allow(START)
    world.run(30)
    world.set_ready("n1", False)
    world.allow(6 * LOOK)
    world.run(600)
    assert world.worker_nodes() == []
    world.allow(2 * START)
    world.apply(one(name="waits"), creationTimestamp=created)
    world.run(10)
    world.set_ready("n1", True)
    world.run(60)
    [holder, loser] = ["waits", "phi"] if created < "2026-01-02" else ["phi", "waits"]
    assert (world.worker_nodes(holder), world.worker_nodes(loser)) == (["n1"], [])
    assert (world.deployments(), world.pods_on("n1")) == ([holder], [holder])
    assert (world.told(of=holder)[0], world.told(of=loser)[0]) == ("True", "False")
    world.allow(START)
    world.bring_node("n2")
    world.run(60)
    assert (world.told(of=holder)[0], world.told(of=loser)[0]) == ("True", "True")


def test_a_workload_that_waits_for_its_node_is_left_alone_where_it_cannot_take_another_workspace_s() -> None:
    other = one(name="other", resource={**one()["resource"], "preferredNodes": ["wish"]})
    world = RunningWorld(one())
    world.allow(2 * START)
    world.run(300)
    world.bring_node("wish", labels={"node.kubernetes.io/instance-type": "Standard_NV6"})
    world.apply(other)
    world.run(60)
    assert world.worker_nodes("other") == ["wish"]
    made = world.cluster.find(resources.DEPLOYMENT, "phi", "models")
    world.allow(2 * START)
    lose_its_node(world)
    world.run(600)
    left = world.cluster.find(resources.DEPLOYMENT, "phi", "models")
    assert made is not None
    assert left is not None
    assert (left["metadata"]["uid"], world.told()[0]) == (made["metadata"]["uid"], "True")


def test_a_workload_whose_node_lost_its_label_goes_on_although_another_has_a_node() -> None:
    world = RunningWorld(one(), settings=NOBODY_BUYS)
    world.bring_node("n1")
    world.allow(START)
    world.run(30)
    world.apply(one(name="other"))
    world.bring_node("n2")
    world.allow(START)
    world.run(30)
    found = world.cluster.find(resources.NODE, "n1")
    assert found is not None
    del found["metadata"]["labels"]["apps"]
    world.cluster.put(resources.NODE, found)
    world.allow(6 * LOOK)
    world.run(60)
    assert (world.told()[0], world.worker_nodes()) == ("False", [])
    assert (world.pods_on("n1"), world.pods_on("n2")) == (["phi"], ["other"])


def test_of_two_workspaces_of_one_second_and_one_free_node_exactly_one_keeps_a_deployment() -> None:
    world = RunningWorld(one(), one(name="twin"), settings=NOBODY_BUYS)
    world.bring_node("n1")
    world.allow(2 * START)
    world.run(60)
    assert len(world.deployments()) == 1
    [holder] = world.deployments()
    assert world.pods_on("n1") == [holder]
    assert world.told(of=holder)[0] == "True"
    [other] = {"phi", "twin"} - {holder}
    assert world.worker_nodes(other) == []
    assert "1 more Ready node with the labels apps=phi-3 needed" in world.told(of=other)[1]
    world.allow(Budget(0, 0))
    world.run(3600)


def test_of_many_workspaces_with_one_label_only_whom_it_concerns_is_woken_by_a_node() -> None:
    names = [f"ws-{number}" for number in range(5)]
    world = RunningWorld(*(one(name=name) for name in names), settings=NOBODY_BUYS)
    for number in range(4):
        world.bring_node(f"n{number}")
    # They all see the same free nodes at the same moment: some try in vain.
    world.allow(3 * 5 * START)
    world.run(120)
    held = {name: world.worker_nodes(name) for name in names}
    [waits] = [name for name, found in held.items() if not found]
    assert sorted(node for found in held.values() for node in found) == [f"n{number}" for number in range(4)]
    world.allow(Budget(1, 0))
    used = world.cluster.find(resources.NODE, "n0")
    assert used is not None
    used["metadata"]["annotations"] = {"heartbeat": "1"}
    world.cluster.put(resources.NODE, used)
    world.run(60)
    world.allow(START)
    world.bring_node("n4")
    world.run(60)
    assert world.worker_nodes(waits) == ["n4"]
    assert world.told(of=waits)[0] == "True"


@pytest.mark.parametrize("kind", ["ControllerRevision", "Service", "Deployment"])
def test_an_object_that_a_namespace_refuses_is_tried_again_after_a_pause_and_not_at_once(kind: str) -> None:
    world = RunningWorld(one())
    note = world.cluster.touch

    def refuse(what: str, after: bool) -> None:
        note(what, after)
        if what.startswith(f"create {kind} ") and not after:
            raise Forbidden("exceeded quota", status=403, reason="Forbidden")

    world.cluster.touch = refuse
    world.bring_node("mine")
    world.allow(2 * START)
    world.run(60)
    world.allow(12 * LOOK)
    world.run(120)
    world.cluster.touch = note
    world.allow(START)
    world.run(120)
    assert world.told()[0] == "True"


def test_a_revision_that_no_cache_shows_is_no_reason_to_write_it_again_and_again() -> None:
    """Somebody took its label away."""
    world = served()
    [revision] = world.cluster.all(resources.CONTROLLER_REVISION)
    del revision["metadata"]["labels"]
    world.cluster.put(resources.CONTROLLER_REVISION, revision)
    world.cluster.writes.clear()
    world.allow(6 * LOOK)
    world.run(60)
    assert world.told()[0] == "True"
    # Its data cannot be changed, and what has its name and owner has its data.
    assert ("apply", "ControllerRevision", revision["metadata"]["name"]) not in world.cluster.writes
