"""From a Snapshot to what a tuning Workspace needs: a checked configuration and data, a node, a Job, then a server.

The end of a check and of a job is first recorded in the status and acted upon afterwards, so that a controller that
dies in between neither trains twice nor forgets why it must not.
"""

from __future__ import annotations

from dataclasses import replace

from kaito_hooks.api import labels
from kaito_hooks.api.conditions import is_true
from kaito_hooks.api.workspace import ResourceSpec
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children import idle, images, inference
from kaito_hooks.workspace.children.deletion import WITHDRAWN, withdraw
from kaito_hooks.workspace.children.workload import is_over
from kaito_hooks.workspace.decision.actions import CopyConfigMap, Note, Outcome
from kaito_hooks.workspace.decision.revision import Revision, tuning_hash_of
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.status import conditions
from kaito_hooks.workspace.supply import placement
from kaito_hooks.workspace.supply.decide import supply
from kaito_hooks.workspace.tuning import check, gate, milestones, progress, serving, state
from kaito_hooks.workspace.tuning.checking import NOTHING_BOUGHT, look_before
from kaito_hooks.workspace.tuning.job import job
from kaito_hooks.workspace.tuning.phase import BEFORE_THE_NODE, Phase, Situation, read
from kaito_hooks.workspace.tuning.wanted import (
    Tuning,
    begin,
    deletion,
    explain_server,
    keep,
    moments,
    release,
    surroundings,
)

NO_NODE_FOR_FAILED = (
    "no node is kept for a tuning that has failed for good; change the tuning, and it is checked and trained anew"
)
NO_NODE_FOR_DONE = "no node is needed any more: the tuning is done, and nothing is served"
ENDED = "the end of the tuning job is being recorded"
_WORKING = (Phase.REMOVING_SERVER, Phase.RUNNING, Phase.REMOVING_JOB)
"""Phases in which something of ours may be on a node."""


def tune(s: Snapshot, resource: ResourceSpec, *, revision: Revision) -> Tuning:
    """What a tuning Workspace needs now whose rules hold, or which goes by itself."""
    at = read(s, revision)
    found = _decide(s, resource, at, revision=revision)
    found.actions += check.removals(s, keep=(at.wanted, at.inputs) if at.phase is Phase.CHECKING else None)
    found.fields["tuning"] = found.status
    return found


def _decide(s: Snapshot, resource: ResourceSpec, at: Situation, *, revision: Revision) -> Tuning:
    match at.phase:
        case Phase.FAILED:
            return _failed(s, at)
        case Phase.DONE:
            return _give_back(s, at)
        case Phase.SERVING:
            return _serve(s, resource, at, revision=revision)
    if at.phase in BEFORE_THE_NODE:
        return _prepare(s, resource, at)
    return _train(s, resource, at)


def _failed(s: Snapshot, at: Situation) -> Tuning:
    """The job of this revision will not be tried again, and no node waits for what comes instead; its Job goes, unless
    its own end says why."""
    assert at.record is not None
    sentence = at.record.failure or "the tuning job of this revision has failed"
    found = begin(s, Outcome("waiting", NO_NODE_FOR_FAILED))
    found.job, found.given_back, found.fields["progress"] = Outcome("failed", sentence), True, progress.done(at.record)
    explain_server(s, found)
    if at.job is not None and not is_true((at.job.get("status") or {}).get("conditions"), "Failed"):
        found.actions += deletion(s, "Job")
    release(s, found, "the tuning has failed for good")
    return found


def _give_back(s: Snapshot, at: Situation) -> Tuning:
    """Nothing is served, as was asked for or because of the gate: server and claims go; brought nodes stay."""
    assert at.record is not None
    found = begin(s, Outcome("ready", NO_NODE_FOR_DONE))
    found.job, found.given_back, found.fields["progress"] = Outcome("ready"), True, progress.done(at.record)
    found.actions += [*deletion(s, "Deployment"), *deletion(s, "StatefulSet")]
    found.status.pop(state.SERVED, None)
    release(s, found, "the tuning is done and nothing is served")
    serving.end_job(s, found)
    assert s.workspace.tuning is not None
    if s.workspace.tuning.serve_result:
        found.served = Outcome("failed", gate.refusal(s.workspace, at.record))
    else:
        explain_server(s, found, "the tuned model is not served because tuning.serveResult is false")
    return found


def _serve(s: Snapshot, resource: ResourceSpec, at: Situation, *, revision: Revision) -> Tuning:
    """The preset with one adapter, on the node that is there."""
    assert at.record is not None
    shortage = serving.shortage(s, resource)
    found = _supplied(s, resource, why_not=shortage or inference.in_the_way(s) or idle.without_pods(s))
    found.job, found.fields["progress"] = Outcome("ready"), progress.done(at.record)
    if at.job is not None and not at.current:
        found.actions += deletion(s, "Job")
    serving.serve(s, resource, found, record=at.record, revision=revision.number)
    return found


def _supplied(s: Snapshot, resource: ResourceSpec, *, why_not: str) -> Tuning:
    """A decision that begins with the nodes. ``why_not``: none is bought; "" if they are."""
    supplied = supply(s, resource, disk_gib=0, why_not=why_not)
    found = begin(s, supplied.outcome, supplied)
    found.unneeded = why_not
    found.actions += supplied.actions
    found.notes += supplied.notes
    found.look_at += moments(supplied)
    return found


def _prepare(s: Snapshot, resource: ResourceSpec, at: Situation) -> Tuning:
    """What comes before a node is bought for this revision; an earlier result is served meanwhile, and its node is
    replaced if it dies."""
    shortage = serving.shortage(s, resource) or idle.without_pods(s)
    found = _supplied(s, resource, why_not=shortage if at.serves_earlier else NOTHING_BOUGHT[at.phase])
    assert found.supplied is not None
    _forget(found, at)
    server = inference.live_workload(s)
    if found.supplied.lost_to and not at.serves_earlier:
        # What is left of before, a server that is wanted no longer, say, must not compete for that node either.
        found.actions += withdraw(s)
    if at.serves_earlier:
        serving.serve_earlier(s, resource, found, at.record)
    elif found.resource.state == "waiting" and s.settings.node_api != "none":
        found.resource = Outcome("waiting", found.unneeded)
    look_before(s, found, at)
    if at.serves_earlier:
        return found
    if not s.claims:
        # Nothing is being created.
        found.supplied = replace(found.supplied, claims=None)
    if at.phase is Phase.REFUSED and (at.job is None or is_over(at.job)) and server is None:
        release(s, found, "the check has refused the tuning, and nothing runs there")
    if server is None:
        explain_server(s, found)
        return found
    found.unserved = inference.progress(s)
    said = s.workspace.condition(conditions.WORKLOAD_UP_TO_DATE) or {}
    if said.get("reason") == conditions.PLATFORM_CHANGED and found.job is not None:
        found.up_to_date = conditions.cannot_roll(found.job.message)
    return found


def _forget(found: Tuning, at: Situation) -> None:
    """What the status says of a job that failed and of a check before this revision's is over."""
    if at.record is not None and not at.record.succeeded:
        found.status = state.without_record(found.status)
    if at.check is not None and at.check.revision != at.wanted:
        found.status.pop("check")


def _train(s: Snapshot, resource: ResourceSpec, at: Situation) -> Tuning:
    """A Job for this revision, and nothing else on its node. Once it has ended a node is bought for what comes then,
    if anything does."""
    has_ended, without_pods = _has_ended(s, at), idle.without_pods(s)
    found = _supplied(s, resource, why_not=without_pods or (ENDED if has_ended else ""))
    assert found.supplied is not None
    if has_ended:
        # What comes next is known as soon as that end is recorded.
        found.unneeded = ""
    _forget(found, at)
    if found.supplied.lost_to and at.phase in _WORKING and not (has_ended or without_pods):
        found.actions += withdraw(s)
        found.job = Outcome("waiting", f"{WITHDRAWN}: {found.supplied.lost_to}")
        found.fields["progress"] = ""
    else:
        _take_step(s, resource, found, at)
    explain_server(s, found)
    return found


def _has_ended(s: Snapshot, at: Situation) -> bool:
    """Whether the Job has an end that is not recorded yet."""
    if at.phase is not Phase.RUNNING or at.job is None:
        return False
    return state.read(s, at.job, revision=at.wanted).record is not None


def _take_step(s: Snapshot, resource: ResourceSpec, found: Tuning, at: Situation) -> None:
    """What a phase of training whose configuration is right does."""
    assert found.supplied is not None
    match at.phase:
        case Phase.REMOVING_SERVER:
            found.actions += [*deletion(s, "Deployment"), *deletion(s, "StatefulSet")]
            found.job = Outcome("waiting", "the server of the previous result is being removed")
            found.fields["progress"] = ""
        case Phase.RUNNING:
            assert at.job is not None
            _follow(s, found, at.job, wanted=at.wanted)
        case Phase.REMOVING_JOB:
            found.actions += deletion(s, "Job")
            found.job = Outcome("waiting", _why_removed(at))
            found.fields["progress"] = ""
        case Phase.STARTING if found.supplied.outcome.ready or idle.unmade(s):
            _start(s, resource, found, at)
        case _:
            found.fields["progress"] = ""
            if s.workspace.condition(conditions.JOB_STARTED) is not None:
                found.job = Outcome("waiting", "waiting for the nodes")


def _why_removed(at: Situation) -> str:
    assert at.job is not None
    if (at.job["metadata"].get("annotations") or {}).get(labels.REVISION) != at.wanted:
        return "the job of the previous revision is being removed"
    return "the job is removed and made again: it was made for other nodes than those that are there"


def _start(s: Snapshot, resource: ResourceSpec, found: Tuning, at: Situation) -> None:
    if at.checked.copy is not None:
        found.actions.append(CopyConfigMap(at.checked.copy))
    preset = inference.preset_of(s)
    assert preset is not None
    assert found.supplied is not None
    gpus = inference.gpus_per_node(s, resource, preset, found.supplied.nodes)
    wanted_job = job(
        s.workspace,
        preset=preset,
        place=placement.place(s, resource),
        output_dir=at.checked.output_dir,
        image=images.tuning_image(gpus, s.settings),
        gpus=gpus,
        revision=at.wanted,
        tuning_hash=tuning_hash_of(s.workspace.raw),
        checked=at.check is not None and at.check.has_passed(at.wanted, at.inputs),
        settings=s.settings,
    )
    if (training := found.status.get("training")) is not None:
        found.status["training"] = {key: value for key, value in training.items() if key != state.LAST_FAILURE}
    found.job = keep(s, found, [*surroundings(s), wanted_job]) or Outcome("waiting", "waiting for the job")
    found.fields["progress"] = ""


def _follow(s: Snapshot, found: Tuning, live: Obj, *, wanted: str) -> None:
    """Where the running Job is."""
    problem = keep(s, found, surroundings(s))
    at = state.read(s, live, revision=wanted)
    said = s.tuning_progress
    reached = at.trained or said
    if reached is not None:
        found.status["training"], notes = milestones.follow(milestones.of(found.status, wanted), reached)
        found.notes += notes
    if at.record is not None:
        found.job = at.outcome
        found.status = state.without_record(found.status) | at.record.write()
        found.fields["progress"] = progress.done(at.record)
        if at.record.succeeded:
            found.completion = Outcome("waiting", "the tuning job has ended, its result is served next")
            found.notes.append(Note("Normal", "AdapterPushed", f"pushed {at.record.reference}", alone=True))
        return
    if (last := s.memory.job_failures.get(str(live["metadata"].get("uid", "")))) is not None:
        found.status["training"] = {**milestones.of(found.status, wanted), state.LAST_FAILURE: last}
    if at.phase == "starting":
        found.job = at.outcome
        found.fields["progress"] = ""
    else:
        found.job = Outcome("ready")
        if said is not None:
            found.fields["progress"] = progress.describe(said)
        counts = f"tuning job has {at.active} active pod, {at.ready} ready pod"
        found.completion = Outcome("waiting", f"workspace has not completed, {counts}")
        if at.outcome.state == "failed":
            found.completion = at.outcome
        elif at.phase == "pushing" and said is not None and (why := progress.trouble(said)):
            found.completion = Outcome("failed", f"the adapter is trained, but cannot be pushed yet: {why}")
    if problem is not None and problem.state == "failed":
        found.completion = problem
