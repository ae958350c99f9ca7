"""From a Snapshot to a Plan: pure, so that everything that a Workspace may meet can be tried as plain data.

The order of the concerns is the order in which a user waits: rules, nodes, workload. A plan holds the actions in the
order of their execution, the new status (None: nothing new to say), and when to look again at the latest.
"""

from __future__ import annotations

from dataclasses import replace

from kaito_hooks.api import labels
from kaito_hooks.api.claim import ENCODINGS
from kaito_hooks.api.workspace import ResourceSpec
from kaito_hooks.runtime import format_time
from kaito_hooks.workspace.children import idle, inference
from kaito_hooks.workspace.children.deletion import WITHDRAWN, dismantle, withdraw
from kaito_hooks.workspace.children.workload import owner_reference
from kaito_hooks.workspace.decision import refusals
from kaito_hooks.workspace.decision.actions import Action, Adopt, CreateChild, Delete, Outcome, Plan
from kaito_hooks.workspace.decision.revision import Revision, revise, tuning_hash_of
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.memory import after_look
from kaito_hooks.workspace.outcomes import Outcomes, conclude, seconds_until
from kaito_hooks.workspace.problem import forbidden_change, problem_of
from kaito_hooks.workspace.status import conditions
from kaito_hooks.workspace.status.conditions import Verdict
from kaito_hooks.workspace.supply.decide import supply
from kaito_hooks.workspace.tuning.decide import tune
from kaito_hooks.workspace.tuning.state import revision_of


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
        return conclude(s, (), outcomes=Outcomes(forbidden, unneeded=forbidden.message))
    actions = [*_adoption(s, revision), *_history(revision)]
    problem = problem_of(s, revision)
    resource = s.workspace.resource
    if resource is None or (problem is not None and inference.live_workload(s) is None):
        problem = problem or Outcome("failed", "resource is missing")
        has_job = s.workspace.tuning is not None and s.workspace.condition(conditions.JOB_STARTED) is not None
        job = problem if has_job else None
        return conclude(s, actions, outcomes=Outcomes(problem, job=job, unneeded=problem.message))
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
        if exists or s.workspace.condition(conditions.INFERENCE_READY) is not None:
            served = Outcome("waiting", f"{WITHDRAWN}: {supplied.lost_to}")
    elif supplied.outcome.ready or exists or in_the_way or idle.unmade(s):
        wanted = inference.wanted_children(s, resource, chosen=supplied.nodes, revision=revision.number)
        serving = inference.infer(s, wanted)
        actions += serving.actions
        deeds += serving.notes
        served, up_to_date = serving.outcome, serving.up_to_date
    elif s.workspace.condition(conditions.INFERENCE_READY) is not None:
        served = Outcome("waiting", "waiting for the nodes")
    return conclude(
        s,
        actions,
        deeds=deeds,
        outcomes=Outcomes(
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
    return conclude(
        s,
        [*actions, *found.actions],
        deeds=found.notes,
        outcomes=Outcomes(
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


def _plan_deletion(s: Snapshot) -> Plan:
    actions, deeds, waiting_for = dismantle(s)
    due = refusals.split(s, actions, deeds)
    causes = [*([waiting_for] if waiting_for else []), *(refused.message for refused in due.causes)]
    if not causes:
        return Plan(actions=tuple(actions), deeds=tuple(deeds))
    verdicts = conditions.deleting("; ".join(causes))
    return Plan(
        actions=due.actions,
        status=conditions.write(s.workspace, verdicts, worker_nodes=None, now=format_time(s.now)),
        deeds=due.deeds,
        notes=tuple(conditions.notes(s.workspace, verdicts)),
        look_again=seconds_until(s, None),
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
