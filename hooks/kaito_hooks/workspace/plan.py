"""From a Snapshot to a Plan: pure, so that everything that a Workspace may meet can be tried as plain data.

The order of the concerns is the order in which a user waits: rules, nodes, workload. A plan holds the actions in the
order of their execution, the new status (None: nothing new to say), and when to look again at the latest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from kaito_hooks.api import labels
from kaito_hooks.api.claim import ENCODINGS
from kaito_hooks.api.workspace import ResourceSpec
from kaito_hooks.runtime import format_time
from kaito_hooks.workspace.children import idle, inference
from kaito_hooks.workspace.children.deletion import WITHDRAWN, dismantle, withdraw
from kaito_hooks.workspace.children.workload import owner_reference
from kaito_hooks.workspace.decision import refusals
from kaito_hooks.workspace.decision.actions import Action, Adopt, CreateChild, Delete, Note, Outcome
from kaito_hooks.workspace.decision.revision import Revision, revise, tuning_hash_of
from kaito_hooks.workspace.decision.snapshot import Memory, Snapshot
from kaito_hooks.workspace.memory import after_look
from kaito_hooks.workspace.problem import forbidden_change, problem_of
from kaito_hooks.workspace.status import claims, conditions, pods, startup
from kaito_hooks.workspace.status.conditions import Verdict
from kaito_hooks.workspace.supply.decide import Supply, supply
from kaito_hooks.workspace.supply.nodes import name_of
from kaito_hooks.workspace.tuning.decide import tune
from kaito_hooks.workspace.tuning.state import revision_of


@dataclass(frozen=True, slots=True)
class Plan:
    """``status``: the whole new status, or None. ``look_again``: in how many seconds at the latest, or None.

    Events: ``deeds`` say what the actions did, ``notes`` what the status newly says. ``memory``: what is remembered
    from here on; the actions may add to it.
    """

    actions: tuple[Action, ...] = ()
    status: dict[str, Any] | None = None
    deeds: tuple[Note, ...] = ()
    notes: tuple[Note, ...] = ()
    look_again: float | None = None
    memory: Memory = field(default_factory=Memory)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.actions and self.status is None


def plan(s: Snapshot) -> Plan:
    """What to do for this Workspace now."""
    s = replace(s, memory=after_look(s))
    decided = _plan(s)
    purchases = s.memory.purchases
    for action in decided.actions:
        if isinstance(action, Delete) and action.kind in ENCODINGS:
            purchases = purchases.give_back(action.uid)
    memory = replace(s.memory, purchases=purchases, idle_since=decided.memory.idle_since)
    return replace(decided, memory=memory)


def _plan(s: Snapshot) -> Plan:
    if s.workspace.deleting:
        return _plan_deletion(s)
    revision = revise(s.workspace, s.revisions, owner_reference(s.workspace))
    if (forbidden := forbidden_change(s, revision)) is not None:
        # It never becomes what is worked on, so that taking it back is no change at all.
        return _finish(s, (), outcomes=_Outcomes(forbidden, unneeded=forbidden.message))
    actions = [*_adoption(s, revision), *_history(revision)]
    problem = problem_of(s, revision)
    resource = s.workspace.resource
    if resource is None or (problem is not None and inference.live_workload(s) is None):
        problem = problem or Outcome("failed", "resource is missing")
        job = problem if s.workspace.tuning is not None and _was_said(s, conditions.JOB_STARTED) else None
        return _finish(s, actions, outcomes=_Outcomes(problem, job=job, unneeded=problem.message))
    if s.workspace.tuning is not None and problem is None:
        return _plan_tuning(s, resource, actions, revision=revision)
    return _plan_inference(s, resource, actions, revision=revision, problem=problem)


def _plan_inference(
    s: Snapshot, resource: ResourceSpec, actions: list[Action], *, revision: Revision, problem: Outcome | None
) -> Plan:
    preset = inference.preset_of(s)
    in_the_way = inference.in_the_way(s)
    unneeded = problem.message if problem is not None else in_the_way or idle.without_pods(s)
    supplied = supply(s, resource, disk_gib=preset.disk_gib if preset else 0, why_not=unneeded)
    actions += supplied.actions
    deeds = list(supplied.notes)
    exists = inference.live_workload(s) is not None
    served = unserved = job = None
    up_to_date: Verdict | None = None
    resource_outcome = supplied.outcome
    if problem is not None:
        # Its preset or its rules changed under a running Workspace: what runs is left alone.
        untouched = inference.is_of_revision(s, revision.number) and inference.is_of_engine(s, revision.number)
        if s.workspace.tuning is not None:
            job, unserved = problem, inference.progress(s)
        else:
            served = inference.progress(s) if untouched else problem
        said = s.workspace.condition(conditions.WORKLOAD_UP_TO_DATE) or {}
        if said.get("reason") == conditions.PLATFORM_CHANGED:
            up_to_date = conditions.cannot_roll(problem.message)
        if not resource_outcome.ready:
            resource_outcome = problem
    elif supplied.lost_to and not idle.without_pods(s):
        actions += withdraw(s)
        if exists or _was_said(s, conditions.INFERENCE_READY):
            served = Outcome("waiting", f"{WITHDRAWN}: {supplied.lost_to}")
    elif supplied.outcome.ready or exists or in_the_way or idle.unmade(s):
        wanted = inference.wanted_children(s, resource, chosen=supplied.nodes, revision=revision.number)
        serving = inference.infer(s, wanted)
        actions += serving.actions
        deeds += serving.notes
        served, up_to_date = serving.outcome, serving.up_to_date
    elif _was_said(s, conditions.INFERENCE_READY):
        served = Outcome("waiting", "waiting for the nodes")
    return _finish(
        s,
        actions,
        deeds=deeds,
        outcomes=_Outcomes(
            resource_outcome,
            served=served,
            unserved=unserved,
            job=job,
            up_to_date=up_to_date,
            supplied=supplied,
            unneeded=unneeded,
        ),
        look_at=supplied.look_at,
    )


def _plan_tuning(s: Snapshot, resource: ResourceSpec, actions: list[Action], *, revision: Revision) -> Plan:
    found = tune(s, resource, revision=revision)
    return _finish(
        s,
        [*actions, *found.actions],
        deeds=found.notes,
        outcomes=_Outcomes(
            found.resource,
            served=found.served,
            unserved=found.unserved,
            up_to_date=found.up_to_date,
            job=found.job,
            completion=found.completion,
            supplied=found.supplied,
            given_back=found.given_back,
            unneeded=found.unneeded,
        ),
        fields=found.fields,
        look_at=min(found.look_at, default=None),
    )


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """Where each concern stands; None: not reached.

    ``unserved``: what InferenceReady says where the summary does not depend on it. ``given_back``: no node is needed.
    ``unneeded``: why none is bought at the moment; "" if what is missing is bought.
    """

    resource: Outcome
    served: Outcome | None = None
    unserved: Outcome | None = None
    up_to_date: Verdict | None = None
    job: Outcome | None = None
    completion: Outcome | None = None
    supplied: Supply | None = None
    given_back: bool = False
    unneeded: str = ""


def _finish(
    s: Snapshot,
    actions: Sequence[Action],
    *,
    outcomes: _Outcomes,
    deeds: Sequence[Note] = (),
    fields: Mapping[str, Any] | None = None,
    look_at: datetime | None = None,
) -> Plan:
    verdicts: list[Verdict] = []
    resource, spare = outcomes.resource, None
    if outcomes.unneeded:
        going = [action for action in actions if isinstance(action, Delete)]
        spare = idle.judge(s, resource, why=outcomes.unneeded, going=going)
    if spare is not None:
        resource = spare.resource
        actions, deeds = [*actions, *spare.actions], [*deeds, *spare.notes]
        look_at = min((moment for moment in (look_at, spare.look_at) if moment is not None), default=None)
    if outcomes.supplied is not None and outcomes.supplied.claims is not None:
        verdicts.append(conditions.claims_ready(outcomes.supplied.claims, s.settings.node_api))
    verdicts += claims.as_they_are(s, verdicts)
    verdicts.append(conditions.resource_ready(resource))
    if (served := outcomes.served or outcomes.unserved or _without_server(s, resource)) is not None:
        verdicts.append(conditions.inference_ready(served))
    if outcomes.up_to_date is not None:
        verdicts.append(outcomes.up_to_date)
    elif _was_said(s, conditions.WORKLOAD_UP_TO_DATE) and inference.live_workload(s) is None:
        verdicts.append(conditions.no_workload())
    if outcomes.job is not None:
        verdicts.append(conditions.job_started(outcomes.job))
    steps = (resource, outcomes.job, outcomes.completion, outcomes.served)
    due = refusals.split(s, actions, deeds, has_nodes=resource.ready)
    reached = [*due.causes, *(outcome for outcome in steps if outcome is not None), *due.aside]
    if outcomes.served is None and outcomes.job is None and resource.ready:
        reached.append(Outcome("waiting", pods.WAITING))
    verdicts += conditions.summary(reached)
    fields = {**(fields or {}), idle.FIELD: format_time(spare.since) if spare is not None else None}
    status = conditions.write(
        s.workspace,
        verdicts,
        worker_nodes=_nodes_in_use(s, outcomes, actions),
        now=format_time(s.now),
        fields=fields,
    )
    start = startup.follow(s, verdicts)
    if status is not None and start is not None:
        status["startup"] = start
    return Plan(
        actions=due.actions,
        status=status,
        deeds=due.deeds,
        notes=tuple(startup.add(s, start, conditions.notes(s.workspace, verdicts))),
        look_again=_seconds_until(s, look_at),
        memory=Memory(idle_since=spare.since if spare is not None else None),
    )


def _nodes_in_use(s: Snapshot, outcomes: _Outcomes, actions: Sequence[Action]) -> list[str]:
    """``status.workerNodes`` from here on, without those whose claims are given back."""
    if outcomes.given_back:
        return []
    if outcomes.supplied is not None:
        used = [name_of(node) for node in outcomes.supplied.nodes]
    elif idle.works(s):
        # A Node that is deleted and registered again takes its Pods back, and must not be another's meanwhile.
        used = list(s.workspace.worker_nodes)
    else:
        there = {name_of(node) for node in s.nodes}
        used = [name for name in s.workspace.worker_nodes if name in there]
    released = {action.uid for action in actions if isinstance(action, Delete)}
    gone = {claim.node_name for claim in s.claims if claim.uid in released}
    return [name for name in used if name not in gone]


def _without_server(s: Snapshot, resource: Outcome) -> Outcome | None:
    """What InferenceReady says, if it was said before, where nobody looks at a server: there is none."""
    if not _was_said(s, conditions.INFERENCE_READY):
        return None
    if inference.live_workload(s) is not None:
        return inference.progress(s)
    return Outcome("waiting", resource.message or pods.WAITING)


def _seconds_until(s: Snapshot, look_at: datetime | None) -> float | None:
    moments = [m for m in (look_at, *(r.retry_at for r in s.memory.refusals.values())) if m is not None and m > s.now]
    # The little more is for clocks that tick in whole seconds.
    return max(0.05, (min(moments) - s.now).total_seconds() + 0.05) if moments else None


def _plan_deletion(s: Snapshot) -> Plan:
    actions, deeds, waiting_for = dismantle(s)
    if not waiting_for:
        return Plan(actions=tuple(actions), deeds=tuple(deeds))
    due = refusals.split(s, actions, deeds)
    verdicts = conditions.deleting("; ".join([waiting_for, *(refused.message for refused in due.causes)]))
    return Plan(
        actions=due.actions,
        status=conditions.write(s.workspace, verdicts, worker_nodes=None, now=format_time(s.now)),
        deeds=due.deeds,
        notes=tuple(conditions.notes(s.workspace, verdicts)),
        look_again=_seconds_until(s, None),
    )


def _adoption(s: Snapshot, revision: Revision) -> list[Action]:
    """Our finalizer before anything is bought, and the hash of what is being worked on."""
    wanted = {labels.REVISION_HASH: revision.hash, labels.REVISION: str(revision.number)}
    if s.workspace.tuning is not None:
        wanted[labels.TUNING_HASH] = tuning_hash_of(s.workspace.raw)
        wanted[labels.TUNING_REVISION] = revision_of(s.workspace, revision, s.revisions)
    if revision.conflict:
        wanted = {}
    stale = {key: value for key, value in wanted.items() if s.workspace.annotations.get(key) != value}
    if stale or labels.WORKSPACE_FINALIZER not in s.workspace.finalizers:
        return [Adopt(stale)]
    return []


def _history(revision: Revision) -> list[Action]:
    actions: list[Action] = []
    if revision.drop is not None:
        metadata = revision.drop["metadata"]
        actions.append(Delete("ControllerRevision", metadata["namespace"], metadata["name"], metadata["uid"]))
    if revision.create is not None:
        actions.append(CreateChild(revision.create))
    return actions


def _was_said(s: Snapshot, condition: str) -> bool:
    return any(c.get("type") == condition for c in s.workspace.conditions)
