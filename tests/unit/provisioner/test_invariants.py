"""Safety invariants (S1, S3-S7) under any order of requests, refusals, crashes, stale caches and a former leader."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.driven.budget import Budget
from tests.unit.provisioner.world import Crash, World

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.cloud import State
from kaito_hooks.provisioner.errors import (
    AuthenticationFailed,
    CloudError,
    ConfigurationError,
    InsufficientCapacity,
    LaunchFailed,
    OperationInProgress,
    QuotaExceeded,
    Throttled,
)

NAMES = ("ws00000000a", "ws00000000b")
FOREIGN = "userpool"
REFUSALS: tuple[CloudError, ...] = (
    QuotaExceeded("QuotaExceeded", "x"),
    InsufficientCapacity("AllocationFailed", "x"),
    OperationInProgress("OperationNotAllowed", "x"),
    Throttled("TooManyRequests", "x", retry_after=60),
    AuthenticationFailed("AuthorizationFailed", "x"),
    ConfigurationError("ResourceNotFound", "the cluster"),
    LaunchFailed("InternalServerError", "x", transient=True),
)

name = st.sampled_from(NAMES)
actions = st.one_of(
    st.tuples(st.just("ask"), name),
    st.tuples(st.just("give back"), name),
    st.tuples(st.just("reconcile"), name, st.booleans()),
    st.tuples(st.just("pass"), st.sampled_from([1, 5, 40, 200, 700])),
    st.tuples(st.just("settle"), st.sampled_from([30, 250])),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("crash"), st.integers(1, 6), st.booleans()),
    st.tuples(st.just("restart")),
    st.tuples(st.just("former leader"), name),
    st.tuples(st.just("refuse"), st.sampled_from(["create", "get", "list", "delete"]), st.sampled_from(REFUSALS)),
    st.tuples(st.just("creation fails"), st.sampled_from(REFUSALS)),
    st.tuples(st.just("stale listing"), name),
    st.tuples(st.just("node fails"), name),
    st.tuples(st.just("node deleted"), name),
    st.tuples(st.just("node vanishes"), name),
    st.tuples(st.just("pool deleted"), name),
)


def pace(seconds: float) -> Budget:
    """What no history makes two claims spend in that time: a start, and a reconcile and a request per 2 s each."""
    return 2 * Budget(reconciles=30 + int(seconds / 2), requests=30 + int(seconds / 2))


class Run:
    """One history."""

    def __init__(self, node_api: NodeAPI) -> None:
        self.world = World(node_api=node_api, node_repair_timeout=600)
        self.pool = self.world.cloud.add_foreign(FOREIGN, {"apps": "phi-3", "kaito.sh/workspace": "phi"})
        self.foreign = deepcopy(self.pool)
        self.node = self.world.cluster.put(
            resources.NODE,
            {
                "metadata": {
                    "name": "user-node",
                    "labels": {"agentpool": NAMES[0], "apps": "phi-3"},
                    "finalizers": ["karpenter.sh/termination"],
                },
                "spec": {"providerID": "azure:///user"},
                "status": {},
            },
        )
        self.former = self.world.lifecycles
        self.refusals: dict[str, list[CloudError]] = {}
        self.fuse: list[int] = []
        self.after = False
        self.world.cloud.refuse = lambda verb: self.refusals[verb].pop() if self.refusals.get(verb) else None
        self.world.cloud.touch = self.world.cluster.touch = self._touch

    def _touch(self, what: str, after: bool) -> None:
        if self.fuse and after == self.after:
            self.fuse[0] -= 1
            if self.fuse[0] <= 0:
                self.fuse.clear()
                raise Crash(what)

    def do(self, action: tuple[Any, ...]) -> None:
        what, *rest = action
        handler: Callable[..., None] = getattr(self, "_" + what.replace(" ", "_"))
        try:
            handler(*rest)
        except Crash:
            self._restart()
        self.check()

    def check(self) -> None:
        world = self.world
        assert world.released_with_pool == [], "S4: a claim went before its pool"
        assert world.cloud.pools.get(FOREIGN) == self.foreign, "S6: a user's pool was touched"
        assert world.cluster.find(resources.NODE, "user-node") == self.node, "S6: a user's Node was touched"

    def end(self) -> None:
        """Whatever happened: once all is well again and nobody wants anything, nothing is left."""
        world = self.world
        self.refusals, self.fuse = {}, []
        world.cloud.fail_creation.clear()
        world.cloud.hidden.clear()
        self._restart()
        for kind, resource in resources.CLAIMS.items():
            for claim in world.cluster.all(resource):
                if not claim["metadata"].get("deletionTimestamp"):
                    world.give_back(claim["metadata"]["name"], kind=kind)  # type: ignore[arg-type]
        world.allow(pace(1500))
        world.run(1500, sweep=True)
        assert [claim for r in resources.CLAIMS.values() for claim in world.cluster.all(r)] == []
        assert set(world.cloud.pools) == {FOREIGN}, "S3: a pool without a claim lives on"
        assert [n["metadata"]["name"] for n in world.cluster.all(resources.NODE)] == ["user-node"], "S5"
        self.check()

    def _ask(self, claim: str) -> None:
        if self.world.claim(claim) is None:
            self.world.ask(claim)

    def _give_back(self, claim: str) -> None:
        found = self.world.claim(claim)
        if found is not None and not found.deleting:
            self.world.give_back(claim)

    def _reconcile(self, claim: str, sync: bool) -> None:
        self.world.reconcile(claim, sync=sync)

    def _pass(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.world.cloud.tick()
        self.world.kubelets()

    def _settle(self, seconds: float) -> None:
        self.world.allow(pace(seconds))
        self.world.run(seconds)

    def _sweep(self) -> None:
        self.world.sweep()

    def _crash(self, after_writes: int, after: bool) -> None:
        self.fuse, self.after = [after_writes], after

    def _restart(self) -> None:
        self.former = self.world.lifecycles
        self.world.start()

    def _former_leader(self, claim: str) -> None:
        current, self.world.lifecycles = self.world.lifecycles, self.former
        try:
            self.world.reconcile(claim, sync=False)
        finally:
            self.world.lifecycles = current

    def _refuse(self, verb: str, error: CloudError) -> None:
        self.refusals.setdefault(verb, []).append(error)

    def _creation_fails(self, error: CloudError) -> None:
        self.world.cloud.fail_creation.append(error)

    def _stale_listing(self, claim: str) -> None:
        self.world.cloud.hidden ^= {claim}

    def _node_fails(self, claim: str) -> None:
        if self.world.node_of(claim) is not None:
            self.world.set_ready("Unknown", claim)

    def _node_deleted(self, claim: str) -> None:
        node = self.world.node_of(claim)
        if node is not None:
            self.world.cluster.delete(resources.NODE, node["metadata"]["name"])

    def _node_vanishes(self, claim: str) -> None:
        node = self.world.node_of(claim)
        if node is not None:
            self.world.cluster.drop(resources.NODE, node["metadata"]["name"])

    def _pool_deleted(self, claim: str) -> None:
        pool = self.world.cloud.pools.get(claim)
        if pool is not None and pool.state is not State.DELETING:
            pool.state, pool.etag = State.DELETING, "etag-by-hand"
            pool.done_at = self.world.clock.monotonic() + 60


@pytest.mark.parametrize("node_api", ["Machine", "NodeClaim"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(actions, max_size=25))
def test_no_history_leaks_a_pool_or_a_node_or_touches_what_is_not_ours(
    node_api: NodeAPI, history: list[tuple[Any, ...]]
) -> None:
    run = Run(node_api)
    for action in history:
        run.do(action)
    run.end()


@pytest.mark.parametrize("node_api", ["Machine", "NodeClaim"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", range(1, 19))
def test_a_crash_at_any_write_of_a_whole_life_buys_one_pool_and_leaves_nothing(
    point: int, after: bool, node_api: NodeAPI
) -> None:
    run = Run(node_api)
    world = run.world
    world.ask(NAMES[0])
    run.fuse, run.after = [point], after

    def live(seconds: float) -> None:
        for _ in range(int(seconds / 5)):
            run.do(("settle", 5))

    live(300)
    claim = world.there(NAMES[0])
    assert claim.ready
    assert world.cloud.created == [claim.uid], "S1: one PUT effect per claim"
    world.give_back(NAMES[0])
    live(200)
    assert world.claim(NAMES[0]) is None
    assert set(world.cloud.pools) == {FOREIGN}
    run.check()
