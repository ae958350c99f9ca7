"""What the scenarios stand on: keys come when they are woken or due, and what they cost is counted."""

from __future__ import annotations

import pytest
from tests.driven.budget import Account, Budget
from tests.driven.clock import SteppedClock
from tests.driven.cluster import MemoryCluster, MemoryInformer
from tests.driven.controller import DrivenController

from kaito_hooks.provisioner import resources
from kaito_hooks.runtime import Conflict, Key, Result

NODE = {"metadata": {"name": "n"}, "spec": {}, "status": {}}


class Controlled:
    """A controller of Nodes whose reconcile answers ``result``, or raises it."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.account = Account(self.clock, lambda: 0)
        self.account.open(Budget(reconciles=10, requests=0))
        self.cluster = MemoryCluster(self.clock)
        self.informer = MemoryInformer(self.cluster, resources.NODE)
        self.result: Result | Exception = Result()
        self.controller = DrivenController("c", self._reconcile, clock=self.clock, account=self.account)
        self.controller.watch(self.informer, lambda node: [Key.of(node)])
        self.cluster.put(resources.NODE, NODE)
        self.informer.sync()

    def _reconcile(self, key: Key) -> Result:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_a_key_that_asks_for_nothing_sleeps_until_its_object_changes() -> None:
    controlled = Controlled()
    assert controlled.controller.work()
    controlled.clock.advance(10_000)
    controlled.informer.sync()
    assert not controlled.controller.work()
    assert controlled.controller.next_moment() == float("inf")
    controlled.cluster.drop(resources.NODE, "n")
    controlled.informer.sync()
    assert controlled.controller.work()


def test_a_write_that_changes_nothing_wakes_nobody() -> None:
    controlled = Controlled()
    assert controlled.controller.work()
    controlled.cluster.update(resources.NODE, controlled.cluster.get(resources.NODE, "n"))
    controlled.informer.sync()
    assert not controlled.controller.work()


def test_a_requeue_comes_at_its_moment() -> None:
    controlled = Controlled()
    controlled.result = Result(15)
    assert controlled.controller.work()
    due = controlled.controller.next_moment()
    assert due == controlled.clock.monotonic() + 15
    controlled.clock.advance(14)
    assert not controlled.controller.work()
    controlled.clock.turn_to(due)
    assert controlled.controller.work()


def test_a_conflict_comes_back_after_the_queue_s_back_off() -> None:
    controlled = Controlled()
    controlled.result = Conflict("somebody else wrote", status=409, reason="Conflict")
    assert controlled.controller.work()
    assert not controlled.controller.work()
    controlled.clock.turn_to(controlled.controller.next_moment())
    assert controlled.controller.work()


def test_a_key_that_asks_to_be_called_at_once_for_ever_ends_its_scenario() -> None:
    controlled = Controlled()
    controlled.result = Result(0.0)
    with pytest.raises(AssertionError, match="allowed"):
        list(iter(controlled.controller.work, False))
