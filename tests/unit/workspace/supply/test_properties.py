"""What holds for the nodes of Workspaces whatever clouds, kubelets and users do, and in whatever order."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.driven.budget import Budget
from tests.unit.workspace.running import START, RunningWorld, one

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import Settings, Timeouts
from kaito_hooks.workspace.purchases.claims import claim_name

COUNT = 2
MINIMUM = 20.0
NAMES = [claim_name(Workspace.read(one(count=COUNT)), slot) for slot in range(COUNT)]
TIMES = Timeouts(buy_backoff_min=MINIMUM, buy_backoff_max=160.0)
CALM = 3600.0
"""Seconds after which everything that was pending has come, gone, been repaired or been given up."""
ANY_STEP = START + Budget(reconciles=60, requests=60)
"""What one step of any kind may cost: a loop costs thousands."""


class AnyNodes(RuleBasedStateMachine):
    """Several claims, nodes that users bring, take away and label, nodes that blink or die, refusals and restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.world = RunningWorld(
            one(count=COUNT), settings=Settings(timeouts=TIMES), create_seconds=40, delete_seconds=15
        )
        self.world.allow(ANY_STEP)
        self.restarted_at = 0.0

    def _pass(self, seconds: float) -> None:
        self.world.allow(ANY_STEP + Budget(int(seconds / 5), int(seconds / 5)))
        self.world.run(seconds)

    @rule(seconds=st.sampled_from([1.0, 15.0, 45.0, 130.0, 310.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self._pass(seconds)

    @rule(slot=st.integers(0, COUNT - 1))
    def a_slot_is_refused(self, slot: int) -> None:
        self.world.refusals[NAMES[slot]] = ("QuotaExceeded", "more cores are needed")

    @rule(slot=st.integers(0, COUNT - 1))
    def a_slot_is_refused_no_more(self, slot: int) -> None:
        self.world.refusals.pop(NAMES[slot], None)

    @rule(number=st.integers(0, 2))
    def a_node_is_brought(self, number: int) -> None:
        self.world.bring_node(f"brought-{number}")
        self._pass(1)

    @rule(number=st.integers(0, 2))
    def a_node_is_taken_away(self, number: int) -> None:
        self.world.remove_node(f"brought-{number}")
        self._pass(1)

    @rule(pick=st.integers(0, 4), ready=st.booleans())
    def a_node_blinks(self, pick: int, ready: bool) -> None:
        names = [node["metadata"]["name"] for node in self.world.cluster.all(resources.NODE)]
        for name in names[pick : pick + 1]:
            self.world.set_ready(name, ready)
        self._pass(1)

    @rule(slot=st.integers(0, COUNT - 1))
    @precondition(lambda self: self.world.claims())
    def somebody_deletes_a_claim(self, slot: int) -> None:
        if NAMES[slot] in self.world.staying_claims():
            self.world.cluster.delete(resources.MACHINE, NAMES[slot])
        self._pass(1)

    @rule()
    def the_controller_starts_anew(self) -> None:
        self.world.start()
        self.restarted_at = self.world.clock.monotonic()
        self._pass(1)

    @invariant()
    def never_more_is_billed_than_asked_for_and_repaired(self) -> None:
        assert set(self.world.claims()) <= set(NAMES)
        assert len(self.world.claims()) <= COUNT

    @invariant()
    def no_slot_is_bought_twice_within_its_back_off(self) -> None:
        """The shortest pause after a claim that vanished: a deletion takes its time before the back-off begins. A
        controller that starts anew has none, and the deletion's stamp has whole seconds."""
        by_slot = defaultdict(list)
        for moment, name in self.world.purchases:
            by_slot[name].append(moment)
        for moments in by_slot.values():
            for before, after in pairwise(moments):
                assert after - before > self.world.delete_seconds - 1
        for refused, end in self.world.vanished:
            bought = [m for m, name in self.world.purchases if name == refused and end <= m < end + MINIMUM]
            assert not bought or self.restarted_at >= end

    @invariant()
    def no_claim_is_given_back_whose_node_serves_or_is_repaired(self) -> None:
        assert self.world.given_back_in_use == []

    @invariant()
    def what_is_used_is_no_more_than_was_asked_for(self) -> None:
        assert len(self.world.worker_nodes()) <= COUNT

    @rule()
    def then_nothing_is_held_that_no_slot_needs(self) -> None:
        """Once nobody refuses and every node works."""
        self.world.refusals.clear()
        for node in self.world.cluster.all(resources.NODE):
            self.world.set_ready(node["metadata"]["name"], True)
        self._pass(CALM)
        used = self.world.worker_nodes()
        assert (len(used), self.world.told()[0]) == (COUNT, "True")
        for name in self.world.claims():
            assert f"node-{name}" in used or self.world.pods_on(f"node-{name}")
        self.world.allow(Budget(0, 0))
        self.world.run(CALM)

    def teardown(self) -> None:
        self.then_nothing_is_held_that_no_slot_needs()


TestAnyNodes = AnyNodes.TestCase
TestAnyNodes.settings = settings(
    max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
