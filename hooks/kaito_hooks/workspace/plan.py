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
from kaito_hooks.api.workspace import ResourceSpec, Workspace
from kaito_hooks.runtime import format_time
from kaito_hooks.workspace.children import inference
from kaito_hooks.workspace.children.deletion import WITHDRAWN, dismantle, withdraw
from kaito_hooks.workspace.children.workload import owner_reference
from kaito_hooks.workspace.decision.actions import Action, Adopt, CreateChild, Delete, Note, Outcome
from kaito_hooks.workspace.decision.revision import Revision, revise, tuning_hash_of
from kaito_hooks.workspace.decision.snapshot import Memory, Snapshot
from kaito_hooks.workspace.memory import after_look
from kaito_hooks.workspace.rules import changes, validate
from kaito_hooks.workspace.status import conditions as status
from kaito_hooks.workspace.status.conditions import Verdict
from kaito_hooks.workspace.status.pods import WAITING
from kaito_hooks.workspace.supply import decide as supply
from kaito_hooks.workspace.supply.nodes import name_of
from kaito_hooks.workspace.tuning import decide as tuning
from kaito_hooks.workspace.tuning.phase import goes_by_itself
from kaito_hooks.workspace.tuning.state import revision_of

RULES_OF_THE_START = frozenset({"C3", "C4", "C5", "C6", "C7", "C9", "C13", "C25", "C38"})
"""Whether something may begin: a Catalog or a release that says otherwise later is no reason to neglect what runs."""
RULES_OF_THE_ENGINE = frozenset({"C34", "C35"})
"""Whether an engine may begin; as long as the one that runs is the one that is asked for, the same holds."""


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
    return replace(decided, memory=replace(s.memory, purchases=purchases))


def _plan(s: Snapshot) -> Plan:
    if s.workspace.deleting:
        return _plan_deletion(s)
    revision = revise(s.workspace, s.revisions, owner_reference(s.workspace))
    if (forbidden := _forbidden_change(s, revision)) is not None:
        # It never becomes what is worked on, so that taking it back is no change at all.
        return _finish(s, (), outcomes=_Outcomes(forbidden))
    actions = [*_adoption(s, revision), *_history(revision)]
    problem = None if goes_by_itself(s, revision) else _problem(s, revision)
    resource = s.workspace.resource
    if resource is None or (problem is not None and inference.live_workload(s) is None):
        return _finish(s, actions, outcomes=_Outcomes(problem or Outcome("failed", "resource is missing")))
    if s.workspace.tuning is not None and problem is None:
        return _plan_tuning(s, resource, actions, revision=revision)
    return _plan_inference(s, resource, actions, revision=revision, problem=problem)


def _plan_inference(
    s: Snapshot, resource: ResourceSpec, actions: list[Action], *, revision: Revision, problem: Outcome | None
) -> Plan:
    preset = inference.preset_of(s)
    supplied = supply.supply(s, resource, disk_gib=preset.disk_gib if preset else 0, buy=problem is None)
    actions += supplied.actions
    deeds = list(supplied.notes)
    exists = inference.live_workload(s) is not None
    served: Outcome | None = None
    up_to_date: Verdict | None = None
    resource_outcome = supplied.outcome
    if problem is not None:
        # Its preset or its rules changed under a running Workspace: what runs is left alone.
        untouched = inference.is_of_revision(s, revision.number) and inference.is_of_engine(s, revision.number)
        served = inference.progress(s) if untouched else problem
        said = s.workspace.condition(status.WORKLOAD_UP_TO_DATE) or {}
        if said.get("reason") == status.PLATFORM_CHANGED:
            up_to_date = status.cannot_roll(problem.message)
        if not resource_outcome.ready:
            resource_outcome = problem
    elif supplied.lost_to:
        actions += withdraw(s)
        if exists or _was_said(s, status.INFERENCE_READY):
            served = Outcome("waiting", f"{WITHDRAWN}: {supplied.lost_to}")
    elif supplied.outcome.ready or exists:
        wanted = inference.wanted_children(s, resource, chosen=supplied.nodes, revision=revision.number)
        serving = inference.infer(s, wanted)
        actions += serving.actions
        deeds += serving.notes
        served, up_to_date = serving.outcome, serving.up_to_date
    elif _was_said(s, status.INFERENCE_READY):
        served = Outcome("waiting", "waiting for the nodes")
    return _finish(
        s,
        actions,
        deeds=deeds,
        outcomes=_Outcomes(resource_outcome, served=served, up_to_date=up_to_date, supplied=supplied),
        look_at=supplied.look_at,
    )


def _plan_tuning(s: Snapshot, resource: ResourceSpec, actions: list[Action], *, revision: Revision) -> Plan:
    found = tuning.decide(s, resource, revision=revision)
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
        ),
        fields=found.fields,
        look_at=min(found.look_at, default=None),
    )


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """Where each concern stands; None: not reached.

    ``unserved``: what InferenceReady says where the summary does not depend on it. ``given_back``: no node is needed.
    """

    resource: Outcome
    served: Outcome | None = None
    unserved: Outcome | None = None
    up_to_date: Verdict | None = None
    job: Outcome | None = None
    completion: Outcome | None = None
    supplied: supply.Supply | None = None
    given_back: bool = False


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
    worker_nodes: list[str] | None = [] if outcomes.given_back else None
    if outcomes.supplied is not None:
        worker_nodes = [name_of(node) for node in outcomes.supplied.nodes]
        if outcomes.supplied.claims is not None:
            verdicts.append(status.claims_ready(outcomes.supplied.claims, s.settings.node_api))
    verdicts.append(status.resource_ready(outcomes.resource))
    if (served := outcomes.served or outcomes.unserved) is not None:
        verdicts.append(status.inference_ready(served))
    if outcomes.up_to_date is not None:
        verdicts.append(outcomes.up_to_date)
    elif _was_said(s, status.WORKLOAD_UP_TO_DATE) and inference.live_workload(s) is None:
        verdicts.append(status.no_workload())
    if outcomes.job is not None:
        verdicts.append(status.job_started(outcomes.job))
    steps = (outcomes.resource, outcomes.job, outcomes.completion, outcomes.served)
    reached = [outcome for outcome in steps if outcome is not None]
    if outcomes.served is None and outcomes.job is None and outcomes.resource.ready:
        reached.append(Outcome("waiting", WAITING))
    verdicts += status.summary(reached)
    return Plan(
        actions=tuple(actions),
        status=status.write(s.workspace, verdicts, worker_nodes=worker_nodes, now=format_time(s.now), fields=fields),
        deeds=tuple(deeds),
        notes=tuple(status.notes(s.workspace, verdicts)),
        look_again=_seconds_until(s, look_at),
    )


def _seconds_until(s: Snapshot, look_at: datetime | None) -> float | None:
    moments = [m for m in (look_at, *(r.retry_at for r in s.memory.refusals.values())) if m is not None and m > s.now]
    # The little more is for clocks that tick in whole seconds.
    return max(0.05, (min(moments) - s.now).total_seconds() + 0.05) if moments else None


def _plan_deletion(s: Snapshot) -> Plan:
    actions, deeds, waiting_for = dismantle(s)
    if not waiting_for:
        return Plan(actions=tuple(actions), deeds=tuple(deeds))
    verdicts = status.deleting(waiting_for)
    return Plan(
        actions=tuple(actions),
        status=status.write(s.workspace, verdicts, worker_nodes=None, now=format_time(s.now)),
        deeds=tuple(deeds),
        notes=tuple(status.notes(s.workspace, verdicts)),
    )


def _problem(s: Snapshot, revision: Revision) -> Outcome | None:
    """The broken rules, or why the rules cannot be checked or the revision not recorded."""
    broken = validate.check(s.workspace, s.catalog, max_nodes=s.settings.max_nodes_per_workspace)
    begun = RULES_OF_THE_START if _was_taken_up(s) else frozenset()
    if inference.live_workload(s) is not None and inference.is_of_engine(s, revision.number):
        begun |= RULES_OF_THE_ENGINE
    broken = [problem for problem in broken if problem.rule not in begun]
    if broken:
        return Outcome("failed", validate.told(broken))
    if s.catalog is None:
        return Outcome("failed", s.catalog_problem or "there is no Catalog kaito; install the chart kaito again")
    return Outcome("failed", revision.conflict) if revision.conflict else None


def _was_taken_up(s: Snapshot) -> bool:
    """Whether the rules held when nodes were bought or chosen; only then does any of this exist."""
    return bool(s.claims or s.workspace.worker_nodes or inference.live_workload(s) is not None)


def _forbidden_change(s: Snapshot, revision: Revision) -> Outcome | None:
    """The rules on changes that are broken against what was worked on so far, if that is known."""
    before = s.workspace.annotations.get(labels.REVISION_HASH)
    if before in (None, revision.hash):
        return None
    recorded = next(
        (r for r in s.revisions if (r["metadata"].get("annotations") or {}).get(labels.REVISION_HASH) == before), None
    )
    if recorded is None:
        return None
    broken = changes.check_change(Workspace.read(recorded.get("data") or {}), s.workspace)
    return Outcome("failed", validate.told(broken)) if broken else None


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
