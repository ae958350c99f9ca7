"""Claims that are deleted because nothing will come of them: nodes that fail, machines that never join (S8)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import END, LAUNCH, ORDER, looks
from tests.unit.provisioner.world import World

from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.errors import QuotaExceeded
from kaito_hooks.runtime import format_time

CLAIM = "ws000000001"


def test_a_node_that_stays_not_ready_is_given_back_without_grace() -> None:
    world = World(node_repair_timeout=600)
    world.allow(Budget(reconciles=8, requests=0) + END)
    world.ready_claim()
    node = world.node_of()
    assert node is not None
    world.add_pod("server", node["metadata"]["name"])
    world.set_ready("Unknown")
    world.run(595)
    assert not world.there().deleting
    world.run(10)
    assert world.there().deleting
    world.run(80)
    assert world.claim() is None
    assert world.node_of() is None
    assert world.cloud.pools == {}
    assert world.cluster.all(resources.POD) == []


def test_a_node_that_recovers_in_time_stays() -> None:
    world = World(node_repair_timeout=600)
    world.allow(Budget(reconciles=6, requests=0))
    world.ready_claim()
    world.set_ready("False")
    world.run(590)
    world.set_ready("True")
    world.run(600)
    assert not world.there().deleting


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=400)], ids=["an hour", "years"])
def test_a_node_whose_clock_is_ahead_is_given_back_by_what_its_own_heartbeats_tell(ahead: timedelta) -> None:
    world = World(node_repair_timeout=600)
    world.allow(Budget(reconciles=40, requests=0) + END)
    world.ready_claim()
    since = world.clock.now() + ahead
    for minute in range(16):
        if world.there().deleting:
            break
        assert minute <= 15
        node = world.node_of()
        assert node is not None
        node["status"]["conditions"] = [
            {
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": format_time(since),
                # A kubelet reports what has not changed every five minutes.
                "lastHeartbeatTime": format_time(since + timedelta(minutes=minute - minute % 5)),
            }
        ]
        world.cluster.put(resources.NODE, node)
        world.run(60)
        if minute < 9:
            assert not world.there().deleting
    assert world.there().deleting


def test_repair_can_be_switched_off() -> None:
    world = World(node_repair_timeout=0)
    world.allow(Budget(reconciles=2, requests=0))
    world.ready_claim()
    world.set_ready("False")
    world.run(3600)
    assert not world.there().deleting


@pytest.mark.parametrize(("fleet", "unhealthy", "repaired"), [(1, 1, True), (5, 1, True), (5, 2, False), (10, 2, True)])
def test_at_most_a_fifth_of_the_nodes_is_replaced_at_once(fleet: int, unhealthy: int, repaired: bool) -> None:
    world = World(node_repair_timeout=60)
    world.allow(fleet * LAUNCH + unhealthy * END)
    names = [f"ws{number:09d}" for number in range(fleet)]
    for name in names:
        world.ask(name)
    world.run(205)
    for name in names[:unhealthy]:
        world.set_ready("Unknown", name)
    world.run(90)
    replaced = [name for name in names if (claim := world.claim(name)) is None or claim.deleting]
    assert replaced == (names[:unhealthy] if repaired else [])
    assert ("NodeRepairBlocked" in world.heard.reasons()) == (not repaired)


def test_a_machine_whose_node_never_joins_is_given_back_in_time() -> None:
    world = World(registration_timeout=900)
    world.allow(LAUNCH + looks(900) + END)
    world.cloud.on_ready = lambda pool: None
    world.ask()
    world.run(180 + 890)
    assert not world.there().deleting
    world.run(20)
    assert world.there().deleting
    world.run(80)
    assert world.cloud.pools == {}


@pytest.mark.parametrize(
    "noted", ["2099-01-01T00:00:00Z", "tomorrow", ""], ids=["by another clock", "no time", "empty"]
)
def test_a_machine_whose_node_never_joins_is_given_back_in_time_whatever_is_noted_on_its_claim(noted: str) -> None:
    """The clock of the process that noted it may have been ahead, and been put right since."""
    world = World(registration_timeout=900)
    world.allow(LAUNCH + looks(900) + END)
    world.cloud.on_ready = lambda pool: None
    claim = world.ask()
    claim["metadata"].setdefault("annotations", {})["kaito.sh/pool-succeeded-at"] = noted
    world.cluster.put(resources.MACHINE, claim)
    world.run(180 + 920)
    assert world.there().deleting
    world.run(80)
    assert world.cloud.pools == {}


def test_a_restart_does_not_prolong_the_registration_timeout() -> None:
    world = World(registration_timeout=900)
    world.allow(LAUNCH + looks(900) + 11 * Budget(reconciles=2, requests=2) + END)
    world.cloud.on_ready = lambda pool: None
    world.ask()
    for _ in range(11):
        world.run(100)
        world.start()
    assert world.there().deleting


def test_a_node_without_a_provider_id_counts_as_not_joined() -> None:
    world = World(registration_timeout=900)
    world.allow(LAUNCH + looks(900) + END)
    world.cloud.on_ready = lambda pool: world.add_node("n", pool, provider_id="") and None
    world.ask()
    world.run(200)
    assert world.step_of("launched")[1] == "WaitingForNode"
    world.run(900)
    assert world.there().deleting


def test_without_a_launch_timeout_a_refused_claim_stays_and_says_why() -> None:
    world = World()
    world.allow(4 * 6 * ORDER)
    world.cloud.refuse = lambda verb: QuotaExceeded("QuotaExceeded", "no cores") if verb == "create" else None
    world.ask()
    world.run(4 * 3600)
    assert not world.there().deleting
    message = "QuotaExceeded: no cores. Instance type asked for: Standard_NC6s_v3. (next try at "
    reason, said = world.there().first_waiting() or ("", "")
    assert reason == "QuotaExceeded"
    assert said.startswith(message)


def test_with_a_launch_timeout_a_refused_claim_is_deleted() -> None:
    world = World(launch_timeout=300)
    world.allow(ORDER + END)
    world.cloud.refuse = lambda verb: QuotaExceeded("QuotaExceeded", "no cores") if verb == "create" else None
    world.ask()
    world.run(310)
    assert world.claim() is None


def test_a_deleted_node_takes_its_claim_and_machine_along() -> None:
    world = World()
    world.allow(END)
    world.ready_claim()
    node = world.node_of()
    assert node is not None
    world.cluster.delete(resources.NODE, node["metadata"]["name"])
    world.run(80)
    assert world.claim() is None
    assert world.cloud.pools == {}
    assert "Disrupted" in world.heard.reasons()
