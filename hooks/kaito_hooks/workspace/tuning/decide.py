"""From a Snapshot to what a tuning Workspace needs: a checked configuration, a node, a Job, and then a server.

The end of a job is first recorded in the status and acted upon afterwards, so that a controller that dies in between
neither trains twice nor forgets why it must not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from kaito_hooks.api.catalog import Preset, fits
from kaito_hooks.api.conditions import is_true
from kaito_hooks.api.workspace import Adapter, DataSource, ResourceSpec
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children import images, inference, network, service, workload
from kaito_hooks.workspace.children import upkeep as children
from kaito_hooks.workspace.children.deletion import WITHDRAWN, withdraw
from kaito_hooks.workspace.decision.actions import Action, CopyConfigMap, Delete, Note, Outcome
from kaito_hooks.workspace.decision.revision import Revision, tuning_hash_of
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.rules import validate
from kaito_hooks.workspace.status import conditions as status
from kaito_hooks.workspace.status.conditions import Verdict
from kaito_hooks.workspace.supply import decide as supply
from kaito_hooks.workspace.supply import placement
from kaito_hooks.workspace.tuning import config, progress, state
from kaito_hooks.workspace.tuning.job import job
from kaito_hooks.workspace.tuning.phase import Phase, Situation, read
from kaito_hooks.workspace.tuning.state import Record

ADAPTER = "tuned"
"""The adapter's name in the server."""
ENDING = timedelta(seconds=30)
"""What a Pod may take to end after its push; then its Job is deleted."""
CONFIG_PERIOD = 10.0
"""Seconds between two looks at a ConfigMap that is missing or wrong: no event tells when it is put right."""
_WORKING = (Phase.REMOVING_SERVER, Phase.RUNNING, Phase.REMOVING_JOB)
"""Phases in which something of ours may be on a node."""


@dataclass(slots=True)
class Tuning:
    """What to do and where each concern stands; None: not reached. ``fields``: of the status, besides conditions.

    ``completion``: what the summary says of a job that has started, until it has ended. ``given_back``: no node is
    needed any more.
    """

    resource: Outcome
    supplied: supply.Supply | None = None
    job: Outcome | None = None
    completion: Outcome | None = None
    served: Outcome | None = None
    unserved: Outcome | None = None
    up_to_date: Verdict | None = None
    given_back: bool = False
    actions: list[Action] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    look_at: list[datetime] = field(default_factory=list)


def decide(s: Snapshot, resource: ResourceSpec, *, revision: Revision) -> Tuning:
    """What a tuning Workspace needs now whose rules hold, or which goes by itself."""
    at = read(s, revision)
    match at.phase:
        case Phase.FAILED:
            return _failed(s, resource, at)
        case Phase.DONE:
            return _give_back(s, at)
        case Phase.SERVING:
            return _serve(s, resource, at, revision=revision)
    return _train(s, resource, at)


def _failed(s: Snapshot, resource: ResourceSpec, at: Situation) -> Tuning:
    """The job of this revision will not be tried again; its Job goes, unless its own end says why."""
    supplied = supply.supply(s, resource, disk_gib=0, buy=False)
    assert at.record is not None
    sentence = at.record.failure or "the tuning job of this revision has failed"
    found = Tuning(
        supplied.outcome, supplied, job=Outcome("failed", sentence), fields={"progress": progress.done(at.record)}
    )
    _explain_server(s, found)
    if at.job is not None and not is_true((at.job.get("status") or {}).get("conditions"), "Failed"):
        found.actions += _deletion(s, "Job")
    found.look_at += _moments(supplied)
    return found


def _give_back(s: Snapshot, at: Situation) -> Tuning:
    """Nothing is served: server and claims go; the nodes that were brought stay."""
    assert at.record is not None
    fields = {"progress": progress.done(at.record)}
    found = Tuning(Outcome("ready"), job=Outcome("ready"), given_back=True, fields=fields)
    found.actions += [*_deletion(s, "Deployment"), *_deletion(s, "StatefulSet")]
    doomed = [claim for claim in s.claims if not claim.deleting]
    found.actions += [Delete(claim.kind, "", claim.name, claim.uid) for claim in doomed]
    found.notes += [
        Note("Normal", f"Deleted{c.kind}", f"deleted {c.kind} {c.name}: the tuning is done and nothing is served")
        for c in doomed
    ]
    _end_job(s, found)
    _explain_server(s, found, "the tuned model is not served because tuning.serveResult is false")
    return found


def _serve(s: Snapshot, resource: ResourceSpec, at: Situation, *, revision: Revision) -> Tuning:
    """The preset with one adapter, on the node that is there."""
    assert at.record is not None
    supplied = supply.supply(s, resource, disk_gib=0, buy=True)
    found = Tuning(supplied.outcome, supplied, job=Outcome("ready"), fields={"progress": progress.done(at.record)})
    found.actions += supplied.actions
    found.notes += supplied.notes
    found.look_at += _moments(supplied)
    preset = inference.preset_of(s)
    assert preset is not None
    if at.job is not None and not at.current:
        found.actions += _deletion(s, "Job")
    held = _end_job(s, found)
    if (shortage := _too_small(s, resource, preset)) is not None:
        found.served = shortage
    elif supplied.lost_to:
        found.actions += withdraw(s)
        found.served = Outcome("waiting", f"{WITHDRAWN}: {supplied.lost_to}")
    elif held and inference.live_workload(s) is None:
        found.served = Outcome("waiting", "waiting for the Pod of the tuning job to end, which holds the GPUs")
    elif supplied.outcome.ready or inference.live_workload(s) is not None:
        adapters = [_adapter(s, at.record)]
        wanted_children = inference.preset_children(
            s, resource, preset, adapters=adapters, chosen=supplied.nodes, revision=revision.number
        )
        serving = inference.infer(s, wanted_children, beside=[f"Job/{s.workspace.name}"])
        found.actions += serving.actions
        found.notes += serving.notes
        found.served, found.up_to_date = serving.outcome, serving.up_to_date
    else:
        found.served = Outcome("waiting", "waiting for the nodes")
    return found


def _end_job(s: Snapshot, found: Tuning) -> bool:
    """Whether a Pod of the Job whose result is recorded still holds its GPUs; the Job goes if that lasts."""
    pod = state.last_to_end(s.pods)
    if pod is None:
        return False
    pushed = state.pushed_at(pod)
    if pushed is None or s.now >= pushed + ENDING:
        found.actions += [a for a in _deletion(s, "Job") if a not in found.actions]
    else:
        found.look_at.append(pushed + ENDING)
    return True


def _adapter(s: Snapshot, record: Record) -> Adapter:
    spec = s.workspace.tuning
    assert spec is not None
    assert spec.output is not None
    source = DataSource(ADAPTER, (), None, record.reference, (spec.output.image_push_secret,))
    return Adapter(source, "1.0")


def _too_small(s: Snapshot, resource: ResourceSpec, preset: Preset) -> Outcome | None:
    """A model that was tuned in 4 bits may not fit where it is served in 16."""
    listed = s.catalog.find_instance_type(resource.instance_type) if s.catalog else None
    if listed is None or fits(preset, listed, count=resource.count) is None:
        return None
    return Outcome(
        "failed",
        f"the tuned model is not served: preset {preset.name} needs more than one {listed.name} to run; "
        "set tuning.serveResult to false and serve the adapter from an inference Workspace",
    )


def _train(s: Snapshot, resource: ResourceSpec, at: Situation) -> Tuning:
    """A Job for this revision, and nothing else on its node."""
    supplied = supply.supply(s, resource, disk_gib=0, buy=at.phase is not Phase.MISCONFIGURED)
    found = Tuning(supplied.outcome, supplied)
    found.actions += supplied.actions
    found.notes += supplied.notes
    found.look_at += _moments(supplied)
    if at.record is not None and not at.record.succeeded:
        found.fields["tuning"] = None
    if at.phase is Phase.MISCONFIGURED:
        found.job = Outcome("failed", validate.told(at.checked.problems))
        if supplied.outcome.state == "waiting":
            found.resource = Outcome("waiting", "no node is bought before the tuning configuration is right")
        found.look_at.append(s.now + timedelta(seconds=CONFIG_PERIOD))
        found.fields["progress"] = ""
    elif supplied.lost_to and at.phase in _WORKING and not _has_ended(s, at):
        found.actions += withdraw(s)
        found.job = Outcome("waiting", f"{WITHDRAWN}: {supplied.lost_to}")
        found.fields["progress"] = ""
    else:
        _take_step(s, resource, found, at)
    _explain_server(s, found)
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
            found.actions += [*_deletion(s, "Deployment"), *_deletion(s, "StatefulSet")]
            found.job = Outcome("waiting", "the server of the previous result is being removed")
            found.fields["progress"] = ""
        case Phase.RUNNING:
            assert at.job is not None
            _follow(s, found, at.job, wanted=at.wanted)
        case Phase.OCCUPIED:
            assert at.job is not None
            found.job = Outcome("failed", children.foreign(s.workspace.namespace, children.reference(at.job)))
        case Phase.REMOVING_JOB:
            found.actions += _deletion(s, "Job")
            found.job = Outcome("waiting", "the job of the previous revision is being removed")
            found.fields["progress"] = ""
        case Phase.STARTING if found.supplied.outcome.ready:
            _start(s, resource, found, checked=at.checked, wanted=at.wanted)
        case _ if s.workspace.condition(status.JOB_STARTED) is not None:
            found.job = Outcome("waiting", "waiting for the nodes")


def _start(s: Snapshot, resource: ResourceSpec, found: Tuning, *, checked: config.Checked, wanted: str) -> None:
    if checked.copy is not None:
        found.actions.append(CopyConfigMap(checked.copy))
    preset = inference.preset_of(s)
    assert preset is not None
    assert found.supplied is not None
    wanted_job = job(
        s.workspace,
        preset=preset,
        place=placement.place(s, resource),
        output_dir=checked.output_dir,
        image=images.tuning_image(resource.instance_type, s.catalog, s.settings),
        gpus=inference.gpus_per_node(s, resource, preset, found.supplied.nodes),
        revision=wanted,
        tuning_hash=tuning_hash_of(s.workspace.raw),
        settings=s.settings,
    )
    found.job = _keep(s, found, [*_surroundings(s), wanted_job]) or Outcome("waiting", "waiting for the job")
    found.fields["progress"] = ""


def _follow(s: Snapshot, found: Tuning, live: Obj, *, wanted: str) -> None:
    """Where the running Job is."""
    problem = _keep(s, found, _surroundings(s))
    at = state.read(s, live, revision=wanted)
    said = s.tuning_progress
    if at.record is not None:
        found.job = at.outcome
        found.fields |= {"tuning": at.record.write(), "progress": progress.done(at.record)}
        if at.record.succeeded:
            found.completion = Outcome("waiting", "the tuning job has ended, its result is served next")
            found.notes.append(Note("Normal", "AdapterPushed", f"pushed {at.record.reference}"))
        return
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


def _surroundings(s: Snapshot) -> list[Obj]:
    """The Service, and a NetworkPolicy that lets this cluster's Pods alone, us and Prometheus, see the progress."""
    ws = s.workspace
    found = [service.service(ws, metadata=workload.metadata(ws), distributed=False)]
    if s.settings.network_policy:
        found.append(
            network.network_policy(ws, metadata=workload.metadata(ws), distributed=False, in_cluster_only=True)
        )
    return found


def _keep(s: Snapshot, found: Tuning, wanted: Sequence[Obj]) -> Outcome | None:
    """Create or repair these children; the worst that is to be said of them."""
    kept = children.keep_all(s, wanted, beside=[f"{kind}/{s.workspace.name}" for kind in placement.WITH_PODS])
    found.notes += kept.notes
    found.actions += kept.actions
    return kept.problem


def _deletion(s: Snapshot, kind: str) -> list[Delete]:
    """The deletion of our child of that kind, if it is there; it is gone when its Pods are."""
    live = s.children.get(f"{kind}/{s.workspace.name}")
    if live is None or not children.is_owned(live, s.workspace.uid) or live["metadata"].get("deletionTimestamp"):
        return []
    metadata = live["metadata"]
    return [Delete(kind, metadata["namespace"], metadata["name"], metadata["uid"], foreground=True)]


def _explain_server(
    s: Snapshot, found: Tuning, why: str = "the tuned model is served when the tuning job has ended"
) -> None:
    """InferenceReady, if an earlier revision was served."""
    if s.workspace.condition(status.INFERENCE_READY) is not None:
        found.unserved = Outcome("waiting", why)


def _moments(supplied: supply.Supply) -> list[datetime]:
    return [supplied.look_at] if supplied.look_at is not None else []
