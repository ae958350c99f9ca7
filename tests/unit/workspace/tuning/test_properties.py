"""plan() of a tuning Workspace in worlds that do anything: it trains once per revision, and ends in one of two ways."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.workspace.worlds import DIGEST, Obj, SmallWorld, node_object, tuning_object

from kaito_hooks.workspace.configuration.settings import Settings, Timeouts

SHORT = Timeouts(buy_backoff_min=1.0, buy_backoff_max=8.0, gpu_plugin=5.0, claim_without_condition=5.0)
ROUNDS = 8
"""Looks after which a world that nobody changes must be left alone."""
ENDS = {
    "pushed": ("push", {"exitCode": 0, "message": DIGEST}),
    "never": ("tune", {"exitCode": 2, "message": "DatasetInvalid: no rows"}),
    "later": ("check", {"exitCode": 1, "message": "the registry does not answer"}),
}


class AnyTuning(RuleBasedStateMachine):
    """Reconciles, crashes, lost nodes and children, changed specifications, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = SmallWorld(tuning_object(), settings=Settings(timeouts=SHORT, release_namespace="kaito"))
        self.changes = 0
        self.lost_jobs = 0

    @property
    def workspace(self) -> Obj:
        assert self.world.workspace is not None
        return self.world.workspace

    def look(self) -> bool:
        """One reconcile, and whether it had nothing to do; what it says must be true, and what it deletes its own."""
        before = len(self.world.deleted)
        record = dict(self.workspace.get("status", {}).get("tuning") or {})
        silent = self.world.reconcile().empty
        if any(d.kind == "Machine" for d in self.world.deleted[before:]):
            assert record["adapterImage"] == self.workspace["tuning"]["output"]["image"]
            assert self.workspace["tuning"]["serveResult"] is False
        found = {c["type"]: c for c in self.workspace.get("status", {}).get("conditions", ())}
        ready = found.get("WorkspaceReady", {"status": "False"})
        if (ready["status"], ready.get("observedGeneration")) == ("True", self.workspace["metadata"]["generation"]):
            told = self.workspace["status"]["tuning"]
            assert told["adapterImage"] == self.workspace["tuning"]["output"]["image"]
            if self.workspace["tuning"].get("serveResult", True):
                deployment = self.world.children["Deployment/phi"]
                assert deployment["status"]["observedGeneration"] == deployment["metadata"]["generation"]
        return silent

    @initialize(served=st.booleans())
    def begin(self, served: bool) -> None:
        if served:
            self.then_it_ends()

    @rule()
    def reconcile(self) -> None:
        self.look()

    @rule()
    def nobody_changes_anything(self) -> None:
        assert any(self.look() for _ in range(ROUNDS))
        assert self.look()

    @rule(actions=st.integers(0, 7))
    def reconcile_and_crash(self, actions: int) -> None:
        self.world.reconcile(crash_after=actions)
        self.world.memory = type(self.world.memory)()

    @rule()
    def provision(self) -> None:
        self.world.provision()

    @rule(end=st.sampled_from(sorted(ENDS)))
    def run_workloads(self, end: str) -> None:
        self.world.ending_step, self.world.job_ends = ENDS[end]
        self.world.run_workloads()

    @rule()
    def try_the_failing_step_again(self) -> None:
        self.world.pods = []

    @rule(version=st.integers(1, 3))
    def change_the_output(self, version: int) -> None:
        self.changes += 1
        output = {"image": f"r.io/team/adapter:{version}", "imagePushSecret": "push"}
        self._change("tuning", {**self.workspace["tuning"], "output": output})

    @rule(serve=st.booleans())
    def change_serving(self, serve: bool) -> None:
        self._change("tuning", {**self.workspace["tuning"], "serveResult": serve})

    @rule(node=st.integers(0, 3))
    def change_preferred_nodes(self, node: int) -> None:
        self._change("resource", {**self.workspace["resource"], "preferredNodes": [f"n{node}"]})

    def _change(self, part: str, value: Obj) -> None:
        if self.workspace[part] != value:
            self.workspace[part] = value
            self.workspace["metadata"]["generation"] += 1

    @rule()
    def lose_the_claim_and_its_node(self) -> None:
        for name in list(self.world.claims):
            del self.world.claims[name]
            self.world.nodes.pop(f"node-{name}", None)

    @rule(kind=st.sampled_from(["Deployment", "Job", "Service"]))
    def delete_a_child(self, kind: str) -> None:
        if self.world.children.pop(f"{kind}/phi", None) is not None and kind == "Job":
            self.lost_jobs += 1

    @invariant()
    def never_more_than_one_claim(self) -> None:
        assert len(self.world.claims) <= 1

    @invariant()
    def a_revision_is_trained_once(self) -> None:
        assert self.world.jobs_made <= 1 + self.changes + self.lost_jobs

    @invariant()
    def job_and_server_are_never_there_together_unless_the_job_is_done(self) -> None:
        children = self.world.children
        if "Deployment/phi" in children and "Job/phi" in children:
            assert self.world.workspace is not None
            assert (self.world.workspace.get("status") or {}).get("tuning")

    @rule()
    def then_it_ends(self) -> None:
        world = self.world
        world.ending_step, world.job_ends = ENDS["pushed"]
        if any(c["state"].get("terminated", {}).get("exitCode") == 1 for p in world.pods for c in _states(p)):
            world.pods = []
        for name in world.nodes:
            world.nodes[name] = node_object(name, labels=world.nodes[name]["metadata"]["labels"])
        world.settle()
        assert world.workspace is not None
        found = {c["type"]: c for c in world.workspace["status"]["conditions"]}
        record = world.workspace["status"]["tuning"]
        assert (found["WorkspaceReady"]["status"] == "True") == bool(record.get("adapterImage"))
        if "adapterImage" in record:
            assert record["adapterImage"] == world.workspace["tuning"]["output"]["image"]
            served = world.workspace["tuning"].get("serveResult", True)
            assert ("Deployment/phi" in world.children) == served
            assert len(world.claims) == int(served)
        else:
            assert "Job/phi" not in world.children
            assert found["JobStarted"]["message"] == "step tune: DatasetInvalid: no rows"
        assert self.look()

    def teardown(self) -> None:
        """Whatever happened, it ends; and deletion leaves no claim and no finalizer."""
        self.then_it_ends()
        self.world.delete(rounds=10)
        assert self.world.claims == {}


def _states(pod: Obj) -> list[Obj]:
    return [*pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"]]


TestAnyTuning = AnyTuning.TestCase
TestAnyTuning.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
