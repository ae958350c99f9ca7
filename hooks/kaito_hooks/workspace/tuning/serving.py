"""The server of what was tuned: the preset with one adapter, on the node that is there."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import fits
from kaito_hooks.api.workspace import Adapter, DataSource, ResourceSpec, Workspace
from kaito_hooks.workspace.children import idle, inference
from kaito_hooks.workspace.children.deletion import WITHDRAWN, withdraw
from kaito_hooks.workspace.decision.actions import Outcome
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.tuning import state
from kaito_hooks.workspace.tuning.state import Record
from kaito_hooks.workspace.tuning.wanted import Tuning, deletion

ADAPTER = "tuned"
"""The adapter's name in the server."""
ENDING = timedelta(seconds=30)
"""What a Pod may take to end after its push; then its Job is deleted."""


def serve(s: Snapshot, resource: ResourceSpec, found: Tuning, *, record: Record, revision: int) -> None:
    """Serve the adapter of that record on the nodes of ``found``; ``found.served``: how far that is.

    ``revision``: of the Workspace, which the workload is marked with.
    """
    supplied, preset = found.supplied, inference.preset_of(s)
    assert supplied is not None
    assert preset is not None
    held = end_job(s, found)
    if text := shortage(s, resource):
        found.served = Outcome("failed", text)
    elif supplied.lost_to and not idle.without_pods(s):
        found.actions += withdraw(s)
        found.served = Outcome("waiting", f"{WITHDRAWN}: {supplied.lost_to}")
    elif held and inference.live_workload(s) is None:
        found.served = Outcome("waiting", "waiting for the Pod of the tuning job to end, which holds the GPUs")
    elif supplied.outcome.ready or inference.live_workload(s) is not None or inference.in_the_way(s) or idle.unmade(s):
        wanted_children = inference.preset_children(
            s, resource, preset, adapters=[_adapter(s, record)], chosen=supplied.nodes, revision=revision
        )
        serving = inference.infer(s, wanted_children, beside=[f"Job/{s.workspace.name}"])
        found.actions += serving.actions
        found.notes += serving.notes
        found.served, found.up_to_date, found.serves = serving.outcome, serving.up_to_date, True
        if serving.outcome.ready:
            found.status[state.SERVED] = True
    else:
        found.served = Outcome("waiting", "waiting for the nodes")


def serve_earlier(s: Snapshot, resource: ResourceSpec, found: Tuning, record: Record | None) -> None:
    """Serve the result of an earlier revision as that revision has it, with its own Secret; the summary of the
    Workspace speaks of the new one."""
    assert record is not None
    live = inference.live_workload(s)
    made_for = (live["metadata"].get("annotations") or {}).get(labels.REVISION) if live is not None else None
    known = (number for number in (made_for, record.revision) if number and number.isdecimal())
    serve(_as_tuned(s, record), resource, found, record=record, revision=int(next(known, 0)))
    found.served, found.unserved = None, found.served


def _as_tuned(s: Snapshot, record: Record) -> Snapshot:
    """With the tuning of the record's revision, as long as a ControllerRevision has it."""
    recorded = next((r for r in s.revisions if str(r.get("revision")) == record.revision), {})
    tuning = (recorded.get("data") or {}).get("tuning")
    if not tuning:
        return s
    return replace(s, workspace=Workspace.read({**s.workspace.raw, "tuning": tuning}))


def end_job(s: Snapshot, found: Tuning) -> bool:
    """Whether a Pod of the Job whose result is recorded still holds its GPUs; the Job goes if that lasts."""
    pod = state.last_to_end(s.pods)
    if pod is None:
        return False
    pushed = state.pushed_at(pod)
    if pushed is None or s.now >= pushed + ENDING:
        found.actions += [a for a in deletion(s, "Job") if a not in found.actions]
    else:
        found.look_at.append(pushed + ENDING)
    return True


def _adapter(s: Snapshot, record: Record) -> Adapter:
    spec = s.workspace.tuning
    assert spec is not None
    assert spec.output is not None
    source = DataSource(ADAPTER, (), None, record.reference, (spec.output.image_push_secret,))
    return Adapter(source, "1.0")


def shortage(s: Snapshot, resource: ResourceSpec) -> str:
    """Why a model that was tuned in 4 bits cannot be served in 16 where it was tuned; "" if it can, or is."""
    listed = s.catalog.find_instance_type(resource.instance_type) if s.catalog else None
    preset = inference.preset_of(s)
    if preset is None or listed is None or inference.live_workload(s) is not None:
        return ""
    if fits(preset, listed, count=resource.count) is None:
        return ""
    return (
        f"the tuned model is not served: preset {preset.name} needs more than one {listed.name} to run; "
        "set tuning.serveResult to false and serve the adapter from an inference Workspace"
    )
