"""A claim from creation to end, both kinds, on a cluster and a cloud in memory."""

from __future__ import annotations

from typing import get_args

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import END, FAILURE, LAUNCH, ORDER, looks
from tests.unit.provisioner.memory_cloud import Pool
from tests.unit.provisioner.world import World

from kaito_hooks.api.claim import NodeAPI, NodeClassRef, Taint
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.cloud import Instance
from kaito_hooks.provisioner.errors import CloudError, InsufficientCapacity, LaunchFailed, QuotaExceeded, Throttled

BOTH = get_args(NodeAPI)
FOREIGN_CLASS = NodeClassRef("karpenter.azure.com", "AKSNodeClass", "gpu")


@pytest.fixture(params=BOTH)
def world(request: pytest.FixtureRequest) -> World:
    return World(node_api=request.param)


def test_a_claim_becomes_a_ready_node(world: World) -> None:
    world.allow(LAUNCH)
    world.ask(disk_gib=50)
    world.run(200)
    claim = world.there()
    node = world.node_of()
    assert node is not None
    assert claim.ready
    assert claim.node_name == node["metadata"]["name"]
    assert claim.provider_id == node["spec"]["providerID"]
    assert claim.object["status"]["capacity"] == {"cpu": "6"}
    labels = node["metadata"]["labels"]
    assert (
        labels.items()
        >= {
            "apps": "phi-3",
            "kaito.sh/workspace": "phi",
            "node.kubernetes.io/instance-type": "Standard_NC6s_v3",
            "karpenter.sh/registered": "true",
            "karpenter.sh/initialized": "true",
        }.items()
    )
    assert node["metadata"]["finalizers"] == ["karpenter.sh/termination"]
    assert node["metadata"]["ownerReferences"][0]["uid"] == claim.uid
    assert {"key": "sku", "value": "gpu", "effect": "NoSchedule"} in node["spec"]["taints"]
    assert world.cloud.created == [claim.uid]
    assert world.heard.reasons() == ["Launched", "Registered", "Initialized"]


def test_the_finalizer_is_there_before_anything_is_bought(world: World) -> None:
    world.ask()
    seen: list[bool] = []
    world.cloud.touch = lambda what, after: seen.append("karpenter.sh/termination" in world.there().finalizers)
    world.reconcile("ws000000001")
    assert seen == [True, True]


def test_a_deleted_claim_gives_machine_and_node_back(world: World) -> None:
    world.allow(END)
    world.ready_claim()
    world.give_back()
    world.run(70)
    assert world.claim() is None
    assert world.node_of() is None
    assert world.cloud.pools == {}
    assert world.released_with_pool == []


def test_the_end_of_a_claim_that_an_old_cache_still_shows_is_neither_asked_for_nor_counted_again(world: World) -> None:
    world.allow(END)
    world.ready_claim()
    world.give_back()
    world.run(70)
    assert world.claim() is None
    asked = len(world.cloud.requests)
    world.reconcile("ws000000001", sync=False)
    assert ("get", "ws000000001") not in world.cloud.requests[asked:]
    assert world.env.metrics.claims_terminated.labels(world.node_api)._value.get() == 1


def test_whoever_has_waited_for_a_minute_is_content_with_a_listing_twice_as_old(world: World) -> None:
    world.allow(LAUNCH + END + Budget(reconciles=24, requests=12))
    world.cloud.delete_seconds = 180
    ages: list[float] = []
    look = world.cloud.get

    def get(name: str, *, max_age: float = 0.0) -> Instance | None:
        ages.append(max_age)
        return look(name, max_age=max_age)

    world.cloud.get = get  # type: ignore[method-assign]
    for begin in (world.ask, world.give_back):
        begin()
        ages.clear()
        world.run(50)
        assert {age for age in ages if age} == {5.0}
        world.run(20)
        ages.clear()
        world.run(100)
        assert {age for age in ages if age} == {10.0}
        world.run(100)


def test_a_claim_that_is_deleted_while_its_pool_is_made_waits_for_the_pools_end(world: World) -> None:
    world.allow(ORDER + looks(10) + END)
    world.ask()
    world.run(10)
    world.give_back()
    world.run(30)
    assert world.claim() is not None
    world.run(60)
    assert world.claim() is None
    assert world.cloud.pools == {}


def test_a_settled_claim_is_not_written_again(world: World) -> None:
    world.allow(Budget(reconciles=0, requests=0))
    world.ready_claim()
    before = list(world.cluster.writes)
    world.run(600)
    assert world.cluster.writes == before


def test_steps_that_wait_are_false_for_a_machine_and_unknown_for_a_node_claim(world: World) -> None:
    world.allow(ORDER + looks(10))
    world.ask()
    world.run(10)
    pending = "False" if world.node_api == "Machine" else "Unknown"
    assert world.step_of("launched") == (pending, "AgentPoolCreating")
    assert world.step_of("registered") == (pending, "AwaitingReconciliation")
    ready = next(c for c in world.there().conditions if c["type"] == "Ready")
    expected = ("False", "AgentPoolCreating") if pending == "False" else ("Unknown", "ReconcilingDependents")
    assert (ready["status"], ready["reason"]) == expected


def test_while_the_node_has_not_joined_the_claim_says_so(world: World) -> None:
    world.allow(LAUNCH)
    world.cloud.on_ready = lambda pool: None
    world.ask()
    world.run(200)
    assert world.step_of("launched")[1] == "WaitingForNode"


def test_a_look_that_fails_is_no_news_of_a_pool_that_is_being_made_but_an_outage_is(world: World) -> None:
    world.allow(LAUNCH + Budget(reconciles=8, requests=6))
    world.ask()
    world.run(90)
    said = world.there().first_waiting()
    assert said == ("AgentPoolCreating", "agent pool ws000000001 is being created")
    failed: list[float] = []

    def refuse(verb: str) -> CloudError | None:
        failed.append(world.clock.monotonic())
        return LaunchFailed("ServiceUnavailable", "try later", transient=True)

    world.cloud.refuse = refuse
    while not failed:
        world.run(1)
    assert world.there().first_waiting() == said
    world.run(5)
    assert world.there().first_waiting() == said
    world.run(15)
    assert world.there().first_waiting() == ("LaunchFailed", "ServiceUnavailable: try later")
    world.cloud.refuse = lambda verb: None
    world.run(15)
    assert world.there().first_waiting() == said
    world.run(100)
    assert world.there().ready
    assert world.cloud.created == [world.there().uid]


def test_a_node_that_is_not_ready_keeps_the_claim_from_ready(world: World) -> None:
    world.allow(LAUNCH + Budget(reconciles=4, requests=0))
    world.node_ready = False
    world.ask()
    world.run(200)
    assert world.step_of("registered")[0] == "True"
    assert world.step_of("initialized")[1] == "NodeNotReady"
    world.set_ready("True")
    world.run(2)
    assert world.there().ready


def test_ready_is_sticky_when_the_node_fails_later(world: World) -> None:
    world.allow(Budget(reconciles=2, requests=0))
    world.ready_claim()
    world.set_ready("False")
    world.run(30)
    assert world.there().ready


def test_startup_taints_hold_initialization_and_are_put_on_once(world: World) -> None:
    world.allow(LAUNCH + Budget(reconciles=4, requests=0))
    claim = world.ask()
    claim["spec"]["startupTaints"] = [{"key": "driver", "effect": "NoSchedule"}]
    world.cluster.put(resources.CLAIMS[world.node_api], claim)
    world.run(200)
    assert world.step_of("initialized")[1] == "StartupTaintsExist"
    node = world.node_of()
    assert node is not None
    node["spec"]["taints"] = [t for t in node["spec"]["taints"] if t["key"] != "driver"]
    world.cluster.put(resources.NODE, node)
    world.run(5)
    assert world.there().ready


def test_a_requested_resource_holds_initialization_until_the_node_offers_it_but_storage_does_not(world: World) -> None:
    world.allow(LAUNCH + Budget(reconciles=4, requests=0))
    claim = world.ask(disk_gib=50, kind=world.node_api)
    claim["spec"]["resources"] = {"requests": {"storage": "50Gi", "nvidia.com/gpu": "1", "memory": "0"}}
    world.cluster.put(resources.CLAIMS[world.node_api], claim)
    world.run(200)
    assert world.step_of("initialized")[1] == "ResourceNotRegistered"
    node = world.node_of()
    assert node is not None
    node["status"]["allocatable"]["nvidia.com/gpu"] = "1"
    world.cluster.put(resources.NODE, node)
    world.run(5)
    assert world.there().ready
    assert world.there().object["status"]["allocatable"]["nvidia.com/gpu"] == "1"


def test_two_nodes_of_one_machine_are_reported_as_wrong(world: World) -> None:
    world.allow(LAUNCH)

    def boot_twice(pool: Pool) -> None:
        world.add_node("node-1", pool, provider_id="azure:///same")
        world.add_node("node-2", pool, provider_id="azure:///same")

    world.cloud.on_ready = boot_twice
    world.ask()
    world.run(200)
    assert world.step_of("registered") == ("False", "MultipleNodesFound")


def test_a_user_pool_of_the_claims_name_is_reported_and_left_alone(world: World) -> None:
    world.allow(6 * ORDER + END)
    foreign = world.cloud.add_foreign("ws000000001")
    world.ask()
    world.run(300)
    assert world.step_of("launched")[1] == "PoolNameConflict"
    world.give_back()
    world.run(100)
    assert world.claim() is None
    assert world.cloud.pools == {"ws000000001": foreign}


def test_the_cause_of_a_failed_pool_is_shown_while_it_is_deleted_and_ordered_again(world: World) -> None:
    world.allow(LAUNCH + FAILURE + looks(60) + LAUNCH)
    world.cloud.fail_creation = [QuotaExceeded("QuotaExceeded", "not enough cores")]
    world.ask()
    world.run(200)
    assert world.step_of("launched")[1] == "QuotaExceeded"
    assert world.billing() == []
    world.run(400)
    assert world.step_of("launched")[1] == "QuotaExceeded"
    world.run(600)
    assert world.there().ready
    assert len(world.cloud.created) == 2


def test_a_failed_pool_is_deleted_only_after_its_cause_is_written(world: World) -> None:
    world.allow(LAUNCH + FAILURE)
    world.cloud.fail_creation = [QuotaExceeded("QuotaExceeded", "not enough cores")]
    reasons: list[str] = []

    def note(what: str, after: bool) -> None:
        if what.startswith("DELETE"):
            reasons.append(world.step_of("launched")[1])

    world.cloud.touch = note
    world.ask()
    world.run(200)
    assert set(reasons) == {"QuotaExceeded"}


def test_quota_is_asked_for_at_most_seven_times_an_hour(world: World) -> None:
    world.allow(7 * ORDER)
    world.cloud.refuse = lambda verb: QuotaExceeded("QuotaExceeded", "x") if verb == "create" else None
    world.ask()
    world.run(3600)
    assert 5 <= sum(verb == "create" for verb, _ in world.cloud.requests) <= 7


def test_capacity_is_asked_for_ever_more_rarely(world: World) -> None:
    world.allow(9 * ORDER)
    world.cloud.refuse = lambda verb: InsufficientCapacity("AllocationFailed", "x") if verb == "create" else None
    world.ask()
    world.run(3 * 3600)
    # 3, 6, 12, 24, 30, 30, ... minutes
    assert 7 <= sum(verb == "create" for verb, _ in world.cloud.requests) <= 9


def test_with_karpenters_way_a_claim_without_capacity_is_deleted() -> None:
    world = World(delete_on_insufficient_capacity=True)
    world.allow(ORDER + END)
    world.cloud.refuse = lambda verb: InsufficientCapacity("AllocationFailed", "no room") if verb == "create" else None
    world.ask()
    world.run(30)
    assert world.claim() is None
    assert "InsufficientCapacityError" in world.heard.reasons()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "WS1"}, "agentpool name(WS1) is invalid, must match regex pattern: ^[a-z][a-z0-9]{0,11}$"),
        ({"name": "ws0000000001x"}, "agentpool name(ws0000000001x) is invalid"),
        ({"instance_type": ""}, "has no requirement for instance type"),
        ({"disk_gib": 29}, "a disk of 29 GiB is requested, the smallest is 30 GiB"),
        ({"disk_gib": -5}, "smaller than nothing"),
    ],
    ids=["capitals", "long name", "no type", "small disk", "negative disk"],
)
def test_a_claim_that_cannot_be_bought_says_why_and_costs_nothing(changes: dict[str, object], text: str) -> None:
    world = World()
    world.allow(Budget(reconciles=3 + 5, requests=2 + 4))
    name = world.ask(**changes)["metadata"]["name"]  # type: ignore[arg-type]
    world.run(30)
    state = world.there(name).steps["launched"]
    assert state.reason == "InvalidRequest"
    assert text in state.message
    assert world.cloud.created == []
    world.give_back(name)
    world.run(5)
    assert world.claim(name) is None


def test_a_machine_whose_spec_is_mended_is_bought_at_once() -> None:
    world = World()
    world.allow(2 * ORDER)
    claim = world.ask(instance_type="")
    world.run(10)
    claim = world.cluster.get(resources.MACHINE, "ws000000001")
    claim["spec"]["requirements"][0]["values"] = ["Standard_NC6s_v3"]
    world.cluster.update(resources.MACHINE, claim)
    world.run(2)
    assert len(world.cloud.created) == 1


def test_claims_of_others_are_left_alone() -> None:
    world = World(node_api="NodeClaim")
    world.allow(Budget(reconciles=2, requests=0))
    foreign = world.ask("ws00000000a", node_class=FOREIGN_CLASS)
    world.cluster.put(resources.MACHINE, {"metadata": {"name": "ws00000000b"}, "spec": {}})
    world.run(30)
    assert world.cluster.get(resources.NODE_CLAIM, "ws00000000a") == foreign
    assert world.cloud.created == []


def test_a_foreign_class_with_our_label_is_ours_only_when_asked_for() -> None:
    world = World(node_api="NodeClaim", manage_by_label=True)
    world.allow(ORDER + looks(10))
    world.ask(node_class=FOREIGN_CLASS)
    world.run(10)
    assert len(world.cloud.created) == 1


def test_claims_of_the_other_kind_are_not_taken_but_those_we_hold_are_served_to_their_end() -> None:
    world = World(node_api="Machine")
    world.allow(Budget(reconciles=5, requests=0) + END)
    world.ready_claim()
    world.node_api = "NodeClaim"
    world.start()
    world.run(30)
    assert world.there(kind="Machine").ready
    world.ask("ws00000000c", kind="Machine")
    world.run(30)
    assert len(world.cloud.created) == 1
    world.give_back(kind="Machine")
    world.run(100)
    assert world.claim(kind="Machine") is None
    assert world.cloud.pools == {}


def test_a_throttled_launch_waits_as_long_as_it_was_told() -> None:
    world = World()
    world.allow(2 * ORDER + looks(40))
    answers: list[CloudError] = [Throttled("TooManyRequests", "x", retry_after=120)]
    world.cloud.refuse = lambda verb: answers.pop() if verb == "create" and answers else None
    world.ask()
    world.run(119)
    assert world.cloud.created == []
    assert world.step_of("launched")[1] == "Throttled"
    world.run(40)
    assert len(world.cloud.created) == 1


def test_taints_of_the_claim_are_asked_of_the_pool_with_its_labels() -> None:
    world = World()
    world.allow(LAUNCH)
    world.ask(
        taints=(Taint("sku", "gpu", "NoSchedule"),),
        labels={"kubernetes.io/x": "1", "apps": "a", "kaito.sh/workspace": "w"},
    )
    world.run(2)
    order = world.cloud.pools["ws000000001"].order
    assert order is not None
    assert "kubernetes.io/x" not in order.labels
    assert order.labels["kaito.sh/machine-type"] == "gpu"
    assert order.labels["karpenter.sh/provisioner-name"] == "default"
    assert [str(taint) for taint in order.taints] == ["sku=gpu:NoSchedule"]
    world.run(200)
    node = world.node_of()
    assert node is not None
    assert node["metadata"]["labels"]["kubernetes.io/x"] == "1"


def test_a_requirement_that_no_label_can_carry_does_not_keep_the_claim_from_its_node() -> None:
    world = World()
    world.allow(LAUNCH)
    claim = world.ask()
    claim["spec"]["requirements"] += [
        {"key": "note", "operator": "In", "values": ["not a label value"]},
        {"key": "not a key", "operator": "In", "values": ["x"]},
        {"key": "zone", "operator": "In", "values": ["eastus-1"]},
    ]
    world.cluster.put(resources.MACHINE, claim)
    world.run(200)
    assert world.there().ready
    assert world.there().labels["zone"] == "eastus-1"
    assert "note" not in world.there().labels
    assert "not a key" not in world.there().labels


def test_another_operating_system_than_linux_is_refused_with_a_sentence() -> None:
    world = World()
    world.allow(ORDER)
    claim = world.ask()
    claim["spec"]["requirements"][-1]["values"] = ["windows"]
    world.cluster.put(resources.MACHINE, claim)
    world.run(10)
    assert "the requirements for kubernetes.io/os do not admit linux" in world.there().steps["launched"].message


def test_an_unknown_image_family_is_a_warning_and_ubuntu(world: World) -> None:
    world.allow(ORDER + looks(10))
    world.ask(annotations={"kaito.sh/node-image-family": "Windows"})
    world.run(10)
    order = world.cloud.pools["ws000000001"].order
    assert order is not None
    assert order.image_family == "Ubuntu"
    assert "UnknownNodeImageFamily" in world.heard.reasons()
