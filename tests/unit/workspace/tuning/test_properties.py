"""plan() of a tuning Workspace in worlds that do anything: it trains once per revision, and ends in one of two ways."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.workspace.worlds import DIGEST, REPORT, Obj, SmallWorld, is_of, node_object, tuning_object

from kaito_hooks.workspace.configuration.settings import Settings, Timeouts
from kaito_hooks.workspace.decision.actions import BuyClaim, Plan

SHORT = Timeouts(buy_backoff_min=1.0, buy_backoff_max=8.0, gpu_plugin=5.0, claim_without_condition=5.0)
ROUNDS = 8
"""Looks after which a world that nobody changes must be left alone."""
WORSE = {"digest": DIGEST, "metrics": {"evalLoss": 2.5, "baseEvalLoss": 1.75}}
ENDS = {
    "pushed": ("push", {"exitCode": 0, "message": DIGEST}),
    "worse than the base": ("push", {"exitCode": 0, "message": json.dumps(WORSE)}),
    "never": ("tune", {"exitCode": 2, "message": "DatasetInvalid: no rows"}),
    "later": ("push-right", {"exitCode": 1, "message": "the registry does not answer"}),
}
CHECKS = {
    "passed": ("check", {"exitCode": 0, "message": json.dumps(REPORT)}),
    "refused": ("check", {"exitCode": 2, "message": '{"reason": "DatasetInvalid", "problems": ["no rows"]}'}),
    "later": ("data", {"exitCode": 1, "message": "example.com does not answer"}),
    "wrong secret": ("push-right", {"exitCode": 2, "message": "the registry refuses the credentials"}),
}
ASKED, GATE = "kaito.sh/tuning-check", "kaito.sh/tuning-gate"


class AnyTuning(RuleBasedStateMachine):
    """Reconciles, crashes, lost nodes and children, changed specifications, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = SmallWorld(tuning_object(), settings=Settings(timeouts=SHORT, release_namespace="kaito"))
        self.changes = 0
        self.lost_jobs = 0
        self.questions = 1

    @property
    def workspace(self) -> Obj:
        assert self.world.workspace is not None
        return self.world.workspace

    def look(self) -> bool:
        """One reconcile, and whether it had nothing to do; what it says must be true, and what it deletes its own."""
        before = len(self.world.deleted)
        record = dict(self.workspace.get("status", {}).get("tuning") or {})
        silent = self.reconciled().empty
        if any(d.kind == "Machine" for d in self.world.deleted[before:]):
            assert self.needs_no_node(record)
        found = {c["type"]: c for c in self.workspace.get("status", {}).get("conditions", ())}
        ready = found.get("WorkspaceReady", {"status": "False"})
        if (ready["status"], ready.get("observedGeneration")) == ("True", self.workspace["metadata"]["generation"]):
            told = self.workspace["status"]["tuning"]
            assert told["adapterImage"] == self.workspace["tuning"]["output"]["image"]
            if self.workspace["tuning"].get("serveResult", True):
                deployment = self.world.children["Deployment/phi"]
                assert deployment["status"]["observedGeneration"] == deployment["metadata"]["generation"]
        return silent

    def needs_no_node(self, record: Obj) -> bool:
        """Whether what is recorded failed for good, was refused, or is a result that nobody serves."""
        if "failure" in record or record.get("check", {}).get("result") == "Refused":
            return True
        is_unserved = self.workspace["tuning"].get("serveResult") is False or self.is_gated()
        return bool(record.get("adapterImage") == self.workspace["tuning"]["output"]["image"] and is_unserved)

    def is_gated(self) -> bool:
        """Whether the adapter that is recorded is worse than its base, and nobody has opened the gate."""
        metrics = ((self.workspace.get("status") or {}).get("tuning") or {}).get("metrics") or {}
        opened = (self.workspace["metadata"].get("annotations") or {}).get(GATE) == "off"
        return metrics == WORSE["metrics"] and not opened

    def reconciled(self, *, crash_after: int | None = None) -> Plan:
        """One reconcile, which buys only what was checked, is not to be, or is trained already."""
        tuning = dict(self.workspace.get("status", {}).get("tuning") or {})
        off = (self.workspace["metadata"].get("annotations") or {}).get(ASKED) == "off"
        begun = "Job/phi" in self.world.children or "adapterImage" in tuning
        decided = self.world.reconcile(crash_after=crash_after)
        if any(isinstance(action, BuyClaim) for action in decided.actions):
            assert off or begun or tuning["check"]["result"] == "Passed"
        return decided

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
        self.reconciled(crash_after=actions)
        self.world.memory = type(self.world.memory)()

    @rule()
    def provision(self) -> None:
        self.world.provision()

    @rule(end=st.sampled_from(sorted(ENDS)))
    def run_workloads(self, end: str) -> None:
        self.world.ending_step, self.world.job_ends = ENDS[end]
        self.world.run_workloads()

    @rule(end=st.sampled_from(sorted(CHECKS)))
    def run_the_check(self, end: str) -> None:
        self.world.check_step, self.world.check_ends = CHECKS[end]
        self.world.run_workloads()

    @rule(end=st.sampled_from(sorted(ENDS)), check=st.sampled_from(sorted(CHECKS)))
    def everybody_acts_for_a_while(self, end: str, check: str) -> None:
        for _ in range(ROUNDS):
            self.look()
            self.world.provision()
            self.run_the_check(check)
            self.run_workloads(end)

    @rule(value=st.sampled_from(["again", "and again", "off"]))
    def ask_for_another_check(self, value: str) -> None:
        annotations = self.workspace["metadata"].setdefault("annotations", {})
        self.questions += annotations.get(ASKED) != value
        annotations[ASKED] = value

    @rule(value=st.sampled_from(["off", "on"]))
    def open_or_shut_the_gate(self, value: str) -> None:
        self.workspace["metadata"].setdefault("annotations", {})[GATE] = value

    @rule()
    def delete_a_check(self) -> None:
        for job in self.world.checks():
            del self.world.children[f"Job/{job['metadata']['name']}"]
            self.questions += 1

    @rule()
    def try_the_failing_step_again(self) -> None:
        self.world.pods = []

    @rule(version=st.integers(1, 3))
    def change_the_output(self, version: int) -> None:
        self.changes += 1
        self.questions += 1
        output = {"image": f"r.io/team/adapter:{version}", "imagePushSecret": "push"}
        self._change("tuning", {**self.workspace["tuning"], "output": output})

    @rule(serve=st.booleans())
    def change_serving(self, serve: bool) -> None:
        self.questions += 1
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
    def a_question_is_checked_once(self) -> None:
        assert self.world.checks_made <= self.questions

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
        world.check_step, world.check_ends = CHECKS["passed"]
        self.open_or_shut_the_gate("off")
        if (self.workspace.get("status", {}).get("tuning") or {}).get("check", {}).get("result") == "Refused":
            self.ask_for_another_check(f"{self.questions} times")
        for job in world.checks():
            world.pods = [pod for pod in world.pods if not is_of(pod, job)]
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
            assert world.claims == {}
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
