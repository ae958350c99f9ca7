"""plan() in worlds that do anything: it converges, never buys too much, takes nothing of others, and then is silent."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.workspace.worlds import Obj, SmallWorld, claim_object, is_of, node_object, workspace_object

from kaito_hooks.workspace.configuration.settings import Settings, Timeouts

COUNT = 3
SHORT = Timeouts(buy_backoff_min=1.0, buy_backoff_max=8.0, gpu_plugin=5.0, claim_without_condition=5.0)
OURS = {"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "models"}
THEIRS = {"kaito.sh/workspace": "other", "kaito.sh/workspacenamespace": "models"}
ROUNDS = 6
"""Looks after which a world that nobody changes must be left alone."""


class AnyWorld(RuleBasedStateMachine):
    """Reconciles, crashes, lost claims, dying and foreign nodes, changed wishes and children, time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        obj = workspace_object()
        obj["resource"] = obj["resource"] | {"count": COUNT}
        self.world = SmallWorld(obj, settings=Settings(timeouts=SHORT))
        self.brought: set[str] = set()
        self.given_back: set[str] = set()
        # What belongs to another Workspace with the same labels.
        self.theirs_claim = claim_object("wsother0000", labels=THEIRS)
        self.theirs_node = node_object("theirs", labels=THEIRS)
        self.world.claims["wsother0000"] = copy.deepcopy(self.theirs_claim)
        self.world.nodes["theirs"] = copy.deepcopy(self.theirs_node)

    @property
    def mine(self) -> list[str]:
        return sorted(name for name, claim in self.world.claims.items() if self.world.is_ours(claim))

    @property
    def workspace(self) -> Obj:
        assert self.world.workspace is not None
        return self.world.workspace

    def look(self) -> bool:
        """One reconcile, and whether it had nothing to do; what it says must be true."""
        silent = self.world.reconcile().empty
        told = {c["type"]: c for c in self.workspace.get("status", {}).get("conditions", ())}
        ready = told.get("WorkspaceReady", {"status": "False"})
        if (ready["status"], ready.get("observedGeneration")) == ("True", self.workspace["metadata"]["generation"]):
            deployment = self.world.children["Deployment/phi"]
            assert deployment["status"]["observedGeneration"] == deployment["metadata"]["generation"]
            wanted = [a["source"]["name"] for a in self.workspace["inference"].get("adapters", ())]
            steps = [c["name"] for c in deployment["spec"]["template"]["spec"]["initContainers"]]
            assert steps == ["weights", *(f"adapter-{name}" for name in wanted)]
        return silent

    @initialize(served=st.booleans())
    def begin(self, served: bool) -> None:
        if served:
            self.then_it_converges_and_falls_silent()

    @rule()
    def reconcile(self) -> None:
        self.look()

    @rule()
    def nobody_changes_anything(self) -> None:
        assert any(self.look() for _ in range(ROUNDS))
        assert self.look()

    @rule(actions=st.integers(0, 6))
    def reconcile_and_crash(self, actions: int) -> None:
        self.world.reconcile(crash_after=actions)

    @rule()
    def provision(self) -> None:
        theirs = self.world.claims.pop("wsother0000")
        self.world.provision()
        self.world.claims["wsother0000"] = theirs

    @rule()
    def run_workloads(self) -> None:
        self.world.run_workloads()

    @rule(seconds=st.sampled_from([0.5, 3.0, 30.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(pick=st.integers(0, 5))
    def lose_a_claim_and_its_node(self, pick: int) -> None:
        for name in self.mine[pick : pick + 1]:
            del self.world.claims[name]
            self.world.nodes.pop(f"node-{name}", None)

    @rule(pick=st.integers(0, 5), ready=st.booleans(), gpus=st.integers(0, 1))
    def change_a_node(self, pick: int, ready: bool, gpus: int) -> None:
        for name in sorted(self.world.nodes.keys() - {"theirs"})[pick : pick + 1]:
            before = self.world.nodes[name]["metadata"]["labels"]
            self.world.nodes[name] = node_object(name, ready=ready, gpus=gpus, labels=before)

    @rule(number=st.integers(0, 3))
    def bring_a_node(self, number: int) -> None:
        name = f"brought-{number}"
        self.brought.add(name)
        self.world.nodes[name] = node_object(name)

    @rule(pick=st.integers(0, 5))
    def take_a_brought_node_away(self, pick: int) -> None:
        for name in sorted(self.brought)[pick : pick + 1]:
            self.world.nodes.pop(name, None)

    @rule()
    def forget_everything(self) -> None:
        self.world.memory = type(self.world.memory)()

    @rule(names=st.sets(st.sampled_from(["a", "b", "c"])), at_once=st.booleans())
    def change_the_adapters(self, names: set[str], at_once: bool) -> None:
        adapters = [{"source": {"name": n, "image": f"r.io/x/{n}:1"}, "strength": "0.5"} for n in sorted(names)]
        self._change("inference", {**self.workspace["inference"], "adapters": adapters})
        if at_once:
            self.look()

    @rule(number=st.integers(0, 3))
    def prefer_a_node(self, number: int) -> None:
        self._change("resource", {**self.workspace["resource"], "preferredNodes": [f"brought-{number}"]})

    def _change(self, part: str, value: Any) -> None:
        if self.workspace[part] != value:
            self.workspace[part] = value
            self.workspace["metadata"]["generation"] += 1

    @rule(value=st.sampled_from(["True", "False"]))
    def ask_for_a_load_balancer_or_not(self, value: str) -> None:
        self.workspace["metadata"].setdefault("annotations", {})["kaito.sh/enablelb"] = value

    @rule(pick=st.integers(0, 5))
    def delete_a_child(self, pick: int) -> None:
        names = sorted(n for n in self.world.children if not n.startswith("ControllerRevision"))
        for name in names[pick : pick + 1]:
            del self.world.children[name]

    @rule(kind=st.sampled_from(["Deployment", "Service", "NetworkPolicy"]), empty=st.booleans())
    def change_a_child(self, kind: str, empty: bool) -> None:
        child = self.world.children.get(f"{kind}/phi")
        if child is None:
            return
        if empty:
            child["spec"] = {}
            child["metadata"]["generation"] += 1
        else:
            child["metadata"]["labels"] = {}

    @rule(kind=st.sampled_from(["Deployment", "StatefulSet", "Service", "NetworkPolicy"]))
    def put_something_in_the_way(self, kind: str) -> None:
        metadata = {"name": "phi", "namespace": "models", "uid": "theirs", "generation": 1}
        self.world.children.setdefault(f"{kind}/phi", {"kind": kind, "metadata": metadata, "spec": {}})

    @invariant()
    def never_more_claims_than_count(self) -> None:
        assert len(self.mine) <= COUNT

    @invariant()
    def nothing_that_is_needed_is_deleted_while_the_workspace_lives(self) -> None:
        assert {d.kind for d in self.world.deleted} <= {"ControllerRevision", "Machine"}
        nodes = set(self.workspace.get("status", {}).get("workerNodes", ()))
        for deleted in self.world.deleted:
            if deleted.kind == "Machine" and deleted.uid not in self.given_back:
                self.given_back.add(deleted.uid)
                assert f"node-{deleted.name}" not in nodes
                coming = [name for name in self.mine if f"node-{name}" not in nodes and not self._goes(name)]
                assert len(nodes) + len(coming) >= COUNT

    def _goes(self, name: str) -> bool:
        return "deletionTimestamp" in self.world.claims[name]["metadata"]

    @invariant()
    def what_belongs_to_others_is_not_touched(self) -> None:
        assert self.world.claims["wsother0000"] == self.theirs_claim
        assert self.world.nodes["theirs"] == self.theirs_node
        assert "theirs" not in self.workspace.get("status", {}).get("workerNodes", ())
        for name, child in self.world.children.items():
            if child["metadata"]["uid"] == "theirs":
                assert (name, child["spec"]) == (f"{child['kind']}/phi", {})

    @rule()
    def then_it_converges_and_falls_silent(self) -> None:
        """Once the machines are well and nothing is in the way."""
        world = self.world
        world.children = {n: c for n, c in world.children.items() if c["metadata"]["uid"] != "theirs"}
        for name in world.nodes.keys() - {"theirs"}:
            world.nodes[name] = node_object(name, labels=world.nodes[name]["metadata"]["labels"])
        for name in self.mine:
            node = f"node-{name}"
            if world.claims[name]["status"].get("conditions") and node not in world.nodes:
                world.nodes[node] = node_object(node, labels={**world.claims[name]["metadata"]["labels"], **OURS})
        theirs = world.claims.pop("wsother0000")
        world.settle()
        world.claims["wsother0000"] = theirs
        found = {c["type"]: (c["status"], c["observedGeneration"]) for c in self.workspace["status"]["conditions"]}
        assert found["WorkspaceReady"] == ("True", self.workspace["metadata"]["generation"])
        assert len(self.workspace["status"]["workerNodes"]) == COUNT
        assert all(is_of(child, self.workspace) for child in world.children.values())
        assert self.look()

    def teardown(self) -> None:
        """Whatever happened, it converges; and deletion ends with no claim and no finalizer."""
        self.then_it_converges_and_falls_silent()
        theirs = self.world.claims.pop("wsother0000")
        self.world.delete(rounds=10)
        assert self.world.claims == {}
        assert theirs == self.theirs_claim


TestAnyWorld = AnyWorld.TestCase
TestAnyWorld.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
