"""Where each concern of a Workspace stands, and the Plan that this makes: its status, and when to look again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kaito_hooks.runtime import format_time
from kaito_hooks.workspace.children import idle, inference
from kaito_hooks.workspace.decision import refusals
from kaito_hooks.workspace.decision.actions import Action, Delete, Note, Outcome, Plan
from kaito_hooks.workspace.decision.snapshot import Memory, Snapshot
from kaito_hooks.workspace.status import claims, conditions, pods, startup
from kaito_hooks.workspace.status.conditions import Verdict
from kaito_hooks.workspace.supply.decide import Supply
from kaito_hooks.workspace.supply.nodes import name_of


@dataclass(frozen=True, slots=True)
class Outcomes:
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


def conclude(
    s: Snapshot,
    actions: Sequence[Action],
    *,
    outcomes: Outcomes,
    deeds: Sequence[Note] = (),
    fields: Mapping[str, Any] | None = None,
    look_at: datetime | None = None,
) -> Plan:
    """The Plan of these actions and outcomes: with what becomes of idle claims, without writes that are not due.

    ``deeds`` are the Events of the actions, ``fields`` those of the status besides conditions and nodes.
    """
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
    elif s.workspace.condition(conditions.WORKLOAD_UP_TO_DATE) is not None and inference.live_workload(s) is None:
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
        look_again=seconds_until(s, look_at),
        memory=Memory(idle_since=spare.since if spare is not None else None),
    )


def _nodes_in_use(s: Snapshot, outcomes: Outcomes, actions: Sequence[Action]) -> list[str]:
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
    if s.workspace.condition(conditions.INFERENCE_READY) is None:
        return None
    if inference.live_workload(s) is not None:
        return inference.progress(s)
    return Outcome("waiting", resource.message or pods.WAITING)


def seconds_until(s: Snapshot, look_at: datetime | None) -> float | None:
    """Seconds until that moment, or until a refused write is due if that is earlier; None if there is neither."""
    moments = [m for m in (look_at, *(r.retry_at for r in s.memory.refusals.values())) if m is not None and m > s.now]
    # The little more is for clocks that tick in whole seconds.
    return max(0.05, (min(moments) - s.now).total_seconds() + 0.05) if moments else None
