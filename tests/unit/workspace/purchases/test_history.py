from datetime import timedelta

from tests.unit.workspace.worlds import START, claim_object, conditions, snapshot, workspace_object

from kaito_hooks.api.claim import Claim
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.decision.snapshot import Memory
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.purchases.claims import claim_name
from kaito_hooks.workspace.purchases.history import Losses, Purchases

READY = [{"type": "Ready", "status": "True"}]


def look(before: Purchases, *claims: dict[str, object], at: float, warnings: dict[str, str] | None = None) -> Purchases:
    """A look at claims, of which ws0 to ws9 are of slot 0, and wsb of slot 1."""
    slots = {f"ws{number}": 0 for number in range(10)} | {"wsb": 1}
    read = [Claim.read(claim) for claim in claims]
    return before.look(
        read, slots=slots, now=START + timedelta(seconds=at), minimum=30, maximum=1800, warnings=warnings
    )


def test_a_claim_that_vanishes_delays_the_next_one_and_says_why() -> None:
    why = [{"type": "MachineLaunched", "status": "False", "reason": "InsufficientCapacity", "message": "no A100 left"}]
    found = look(look(Purchases(), claim_object("ws1", conditions=why), at=0), at=5)
    assert found.of(0).not_before == START + timedelta(seconds=35)
    assert found.of(0).cause == "ws1 is gone: InsufficientCapacity: no A100 left"


def test_the_delay_doubles_up_to_its_maximum() -> None:
    found, delays = Purchases(), []
    for attempt in range(9):
        at = attempt * 10_000.0
        found = look(found, claim_object(f"ws{attempt}"), at=at)
        found = look(found, at=at + 1)
        not_before = found.of(0).not_before
        assert not_before is not None
        delays.append((not_before - START).total_seconds() - at - 1)
    assert delays == [30, 60, 120, 240, 480, 960, 1800, 1800, 1800]


def test_a_node_that_served_and_died_is_replaced_at_once() -> None:
    found = look(Purchases(), claim_object("ws1", conditions=READY, node="n"), at=0)
    found = look(found, claim_object("ws1", conditions=READY, node="n"), at=600)
    found = look(found, at=601)
    assert found.of(0).not_before is None
    assert found.of(0).number == 0


def test_a_node_that_serves_again_ends_the_back_off() -> None:
    found = look(look(Purchases(), claim_object("ws1"), at=0), at=1)
    found = look(found, claim_object("ws2", conditions=READY, node="n"), at=40)
    found = look(found, claim_object("ws2", conditions=READY, node="n"), at=80)
    assert (found.of(0).number, found.of(0).not_before) == (0, None)


def test_a_claim_that_came_and_went_between_two_looks_is_lost_too() -> None:
    found = Purchases().buy("ws1", "uid-ws1", slot=0, now=START)
    assert look(found, at=1).of(0).number == 0
    found = look(found, at=6)
    assert (found.of(0).number, dict(found.bought)) == (1, {})
    assert found.of(0).not_before == START + timedelta(seconds=36)


def test_a_bought_claim_is_no_loss_once_the_cache_has_it() -> None:
    found = Purchases().buy("ws1", "uid-ws1", slot=0, now=START)
    found = look(look(found, claim_object("ws1"), at=1), claim_object("ws1"), at=60)
    assert (found.of(0).number, dict(found.bought)) == (0, {})


def test_a_claim_that_is_ready_for_a_moment_only_is_no_success() -> None:
    found = look(Purchases(), claim_object("ws1", conditions=READY, node="n"), at=0)
    found = look(found, at=2)
    assert found.of(0).number == 1


NO_CLASS = {"uid-ws1": "InsufficientCapacityError: node class missing not found"}


def test_a_claim_that_vanishes_without_a_condition_is_explained_by_its_event() -> None:
    found = look(look(Purchases(), claim_object("ws1"), at=0), at=1, warnings=NO_CLASS)
    assert found.of(0).cause == "ws1 is gone: InsufficientCapacityError: node class missing not found"
    found = look(Purchases().buy("ws1", "uid-ws1", slot=0, now=START), at=6, warnings=NO_CLASS)
    assert found.of(0).cause == "ws1 is gone: InsufficientCapacityError: node class missing not found"


def test_an_event_that_comes_after_its_claim_went_still_explains_it_and_costs_no_second_delay() -> None:
    found = look(look(Purchases(), claim_object("ws1"), at=0), at=1)
    assert found.of(0).cause == "ws1 is gone: it was deleted before its node was ready"
    found = look(found, at=2, warnings=NO_CLASS)
    assert found.of(0).cause == "ws1 is gone: InsufficientCapacityError: node class missing not found"
    assert (found.of(0).number, found.of(0).not_before) == (1, START + timedelta(seconds=31))


def test_the_event_of_an_earlier_claim_explains_no_later_one() -> None:
    second = claim_object("ws1", uid="uid-second")
    found = look(look(Purchases(), second, at=0), at=1, warnings=NO_CLASS)
    assert found.of(0).cause == "ws1 is gone: it was deleted before its node was ready"


def test_an_event_goes_before_a_condition_that_only_waits() -> None:
    waits = [
        {"type": "Launched", "status": "Unknown", "reason": "AwaitingReconciliation", "message": "no reconciliation"},
        {"type": "Registered", "status": "Unknown", "reason": "NodeNotFound", "message": "Node not registered"},
    ]
    claim = claim_object("ws1", conditions=waits, kind="NodeClaim")
    assert look(look(Purchases(), claim, at=0), at=1).of(0).cause == "ws1 is gone: NodeNotFound: Node not registered"
    found = look(look(Purchases(), claim, at=0), at=1, warnings=NO_CLASS)
    assert found.of(0).cause == "ws1 is gone: InsufficientCapacityError: node class missing not found"


def test_a_failure_in_a_claims_own_condition_goes_before_its_event() -> None:
    why = [{"type": "MachineLaunched", "status": "False", "reason": "QuotaExceeded", "message": "6 cores more"}]
    found = look(look(Purchases(), claim_object("ws1", conditions=why), at=0), at=1, warnings=NO_CLASS)
    assert found.of(0).cause == "ws1 is gone: QuotaExceeded: 6 cores more"


def test_a_claim_of_another_slot_neither_ends_nor_delays_a_back_off() -> None:
    serving = claim_object("wsb", conditions=READY, node="n")
    found = look(look(Purchases(), serving, claim_object("ws1"), at=0), serving, at=1)
    for at in (40, 80, 600):
        found = look(found, serving, at=at)
        assert (found.of(0).number, found.of(0).not_before) == (1, START + timedelta(seconds=31))
    assert (found.of(1).number, found.of(1).not_before) == (0, None)


def test_a_claim_that_is_given_back_is_no_loss() -> None:
    found = look(Purchases(), claim_object("ws1"), at=0).give_back("uid-ws1")
    going = claim_object("ws1", deletionTimestamp="2026-01-02T12:00:01Z")
    assert look(look(found, going, at=1), at=60) == Purchases()
    assert look(found, at=1) == Purchases()


def test_a_claim_that_stays_although_it_was_to_go_may_be_lost_later() -> None:
    found = look(Purchases(), claim_object("ws1"), at=0).give_back("uid-ws1")
    found = look(look(found, claim_object("ws1"), at=1), at=2)
    assert found.of(0).number == 1


def test_a_claim_of_a_name_that_no_slot_gives_delays_nothing() -> None:
    assert look(look(Purchases(), claim_object("upstream"), at=0), at=1) == Purchases()


def test_the_last_cause_is_still_told_while_the_next_claim_is_waited_for() -> None:
    name = claim_name(Workspace.read(workspace_object()), 0)
    memory = Memory(purchases=Purchases(losses={0: Losses(1, START, f"{name} is gone: no capacity")}))
    decided = plan(snapshot(claims=[claim_object(name)], memory=memory))
    assert conditions(decided)["ResourceReady"][2] == (
        f"node 0/1 ready; waiting for {name}: the provisioner has not answered yet; "
        f"the last try ended with: {name} is gone: no capacity"
    )
