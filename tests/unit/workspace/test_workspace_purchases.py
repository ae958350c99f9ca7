from datetime import timedelta

from tests.unit.workspace.worlds import START, claim_object, conditions, snapshot

from kaito_hooks.api.claim import Claim
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.purchases import Purchases
from kaito_hooks.workspace.snapshot import Memory

READY = [{"type": "Ready", "status": "True"}]


def look(before: Purchases, *claims: dict[str, object], at: float, warnings: dict[str, str] | None = None) -> Purchases:
    read = [Claim.read(claim) for claim in claims]
    return before.look(read, now=START + timedelta(seconds=at), minimum=30, maximum=1800, warnings=warnings)


def test_a_claim_that_vanishes_delays_the_next_one_and_says_why() -> None:
    why = [{"type": "MachineLaunched", "status": "False", "reason": "InsufficientCapacity", "message": "no A100 left"}]
    found = look(look(Purchases(), claim_object("ws1", conditions=why), at=0), at=5)
    assert found.not_before == START + timedelta(seconds=35)
    assert found.cause == "ws1 is gone: InsufficientCapacity: no A100 left"


def test_the_delay_doubles_up_to_its_maximum() -> None:
    found, delays = Purchases(), []
    for attempt in range(9):
        at = attempt * 10_000.0
        found = look(found, claim_object(f"ws{attempt}"), at=at)
        found = look(found, at=at + 1)
        assert found.not_before is not None
        delays.append((found.not_before - START).total_seconds() - at - 1)
    assert delays == [30, 60, 120, 240, 480, 960, 1800, 1800, 1800]


def test_a_node_that_served_and_died_is_replaced_at_once() -> None:
    found = look(Purchases(), claim_object("ws1", conditions=READY, node="n"), at=0)
    found = look(found, claim_object("ws1", conditions=READY, node="n"), at=600)
    found = look(found, at=601)
    assert found.not_before is None
    assert found.losses == 0


def test_a_node_that_serves_again_ends_the_back_off() -> None:
    found = look(look(Purchases(), claim_object("ws1"), at=0), at=1)
    found = look(found, claim_object("ws2", conditions=READY, node="n"), at=40)
    found = look(found, claim_object("ws2", conditions=READY, node="n"), at=80)
    assert (found.losses, found.not_before) == (0, None)


def test_a_claim_that_came_and_went_between_two_looks_is_lost_too() -> None:
    found = Purchases().buy("ws1", "uid-ws1", now=START)
    assert look(found, at=1).losses == 0
    found = look(found, at=6)
    assert (found.losses, dict(found.bought)) == (1, {})
    assert found.not_before == START + timedelta(seconds=36)


def test_a_bought_claim_is_no_loss_once_the_cache_has_it() -> None:
    found = Purchases().buy("ws1", "uid-ws1", now=START)
    found = look(look(found, claim_object("ws1"), at=1), claim_object("ws1"), at=60)
    assert (found.losses, dict(found.bought)) == (0, {})


def test_a_claim_that_is_ready_for_a_moment_only_is_no_success() -> None:
    found = look(Purchases(), claim_object("ws1", conditions=READY, node="n"), at=0)
    found = look(found, at=2)
    assert found.losses == 1


NO_CLASS = {"uid-ws1": "InsufficientCapacityError: node class missing not found"}


def test_a_claim_that_vanishes_without_a_condition_is_explained_by_its_event() -> None:
    found = look(look(Purchases(), claim_object("ws1"), at=0), at=1, warnings=NO_CLASS)
    assert found.cause == "ws1 is gone: InsufficientCapacityError: node class missing not found"
    found = look(Purchases().buy("ws1", "uid-ws1", now=START), at=6, warnings=NO_CLASS)
    assert found.cause == "ws1 is gone: InsufficientCapacityError: node class missing not found"


def test_an_event_that_comes_after_its_claim_went_still_explains_it_and_costs_no_second_delay() -> None:
    found = look(look(Purchases(), claim_object("ws1"), at=0), at=1)
    assert found.cause == "ws1 is gone: it was deleted before its node was ready"
    found = look(found, at=2, warnings=NO_CLASS)
    assert found.cause == "ws1 is gone: InsufficientCapacityError: node class missing not found"
    assert (found.losses, found.not_before) == (1, START + timedelta(seconds=31))


def test_the_event_of_an_earlier_claim_explains_no_later_one() -> None:
    second = claim_object("ws1", uid="uid-second")
    found = look(look(Purchases(), second, at=0), at=1, warnings=NO_CLASS)
    assert found.cause == "ws1 is gone: it was deleted before its node was ready"


def test_an_event_goes_before_a_condition_that_only_waits() -> None:
    waits = [
        {"type": "Launched", "status": "Unknown", "reason": "AwaitingReconciliation", "message": "no reconciliation"},
        {"type": "Registered", "status": "Unknown", "reason": "NodeNotFound", "message": "Node not registered"},
    ]
    claim = claim_object("ws1", conditions=waits, kind="NodeClaim")
    assert look(look(Purchases(), claim, at=0), at=1).cause == "ws1 is gone: NodeNotFound: Node not registered"
    found = look(look(Purchases(), claim, at=0), at=1, warnings=NO_CLASS)
    assert found.cause == "ws1 is gone: InsufficientCapacityError: node class missing not found"


def test_a_failure_in_a_claims_own_condition_goes_before_its_event() -> None:
    why = [{"type": "MachineLaunched", "status": "False", "reason": "QuotaExceeded", "message": "6 cores more"}]
    found = look(look(Purchases(), claim_object("ws1", conditions=why), at=0), at=1, warnings=NO_CLASS)
    assert found.cause == "ws1 is gone: QuotaExceeded: 6 cores more"


def test_the_last_cause_is_still_told_while_the_next_claim_is_waited_for() -> None:
    memory = Memory(purchases=Purchases(losses=1, not_before=START, cause="ws1 is gone: no capacity"))
    decided = plan(snapshot(claims=[claim_object("ws1")], memory=memory))
    assert conditions(decided)["ResourceReady"][2] == (
        "node 0/1 ready; waiting for ws1: the provisioner has not answered yet; "
        "the last try ended with: ws1 is gone: no capacity"
    )
