"""The inference side of a Workspace: workload, Services, NetworkPolicy, and how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import ENGINES, Preset
from kaito_hooks.api.conditions import find
from kaito_hooks.api.workspace import Adapter, ResourceSpec
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children import drift, images, network, server, service, upkeep, workload
from kaito_hooks.workspace.decision.actions import Action, ApplyChild, Note, Outcome
from kaito_hooks.workspace.decision.revision import workload_hash_of
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.rules import pod_template, validate
from kaito_hooks.workspace.rules.engines import engine_of
from kaito_hooks.workspace.status import conditions, pod_refusals, pods, server_state
from kaito_hooks.workspace.status.conditions import Verdict
from kaito_hooks.workspace.supply import nodes, placement


@dataclass(frozen=True, slots=True)
class Inference:
    """What to do for serving and where it stands."""

    outcome: Outcome
    up_to_date: Verdict | None = None
    actions: tuple[Action, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """All children as they should be, the workload last. ``drift``: in what today's settings would make it otherwise;
    "" where it is as they say."""

    children: tuple[Obj, ...]
    drift: str = ""


def live_workload(s: Snapshot) -> Obj | None:
    """The workload of ours that exists, of either kind; one that stays before one that goes."""
    named = [s.children.get(f"{kind}/{s.workspace.name}") for kind in placement.WORKLOADS]
    ours = [found for found in named if found is not None and upkeep.is_owned(found, s.workspace.uid)]
    return min(ours, key=lambda found: bool(found["metadata"].get("deletionTimestamp")), default=None)


def in_the_way(s: Snapshot) -> str:
    """Why no node is bought for a workload in whose place somebody else's stands, and stays; "" if none does."""
    preset = preset_of(s)
    kind = "StatefulSet" if preset is not None and preset.distributed else "Deployment"
    found = s.children.get(f"{kind}/{s.workspace.name}")
    if found is None or upkeep.is_owned(found, s.workspace.uid) or found["metadata"].get("deletionTimestamp"):
        return ""
    return f"no node is bought while {upkeep.reference(found)} of somebody else is there"


def is_of_revision(s: Snapshot, revision: int) -> bool:
    """Whether the existing workload is what that revision, and the annotations of the Workspace, want."""
    live = live_workload(s)
    asked = drift.made_for(live) if live is not None else None
    return _annotation(s, labels.REVISION) == str(revision) and asked in (None, workload_hash_of(s.workspace.raw))


def is_of_engine(s: Snapshot, revision: int) -> bool:
    """Whether the existing workload runs the engine that is asked for; a template of the user's own has none.

    Who does not choose has what the Catalog chose when the workload was made, until that is rolled.
    """
    asked = s.workspace.annotations.get(labels.RUNTIME)
    if asked not in (None, *ENGINES):
        return False
    if s.workspace.preset is None:
        return True
    if asked is None and s.catalog is not None and _frozen_workload(s, revision) is None:
        asked = s.catalog.default_engine
    return asked in (None, _annotation(s, labels.RUNTIME))


def _frozen_workload(s: Snapshot, revision: int) -> Obj | None:
    live = live_workload(s)
    if live is None or placement.is_stranded(s, live):
        return None
    return live if drift.is_frozen(s.workspace, live, revision=revision) else None


def _annotation(s: Snapshot, name: str) -> str | None:
    found = live_workload(s)
    return (found["metadata"].get("annotations") or {}).get(name) if found is not None else None


def infer(s: Snapshot, wanted: Wanted, *, beside: Sequence[str] = ()) -> Inference:
    """Keep all children as they should be, remove those of ours that should not be, and judge the workload.

    ``beside``: ``Kind/name`` of children that others keep. A workload goes with its Pods before its successor comes.
    """
    kept = upkeep.keep_all(s, wanted.children, beside=beside)
    outcome = kept.problem or progress(s)
    if wanted.drift and outcome.state == "failed":
        outcome = Outcome("failed", f"{conditions.NOT_UP_TO_DATE}: {outcome.message}")
    return Inference(outcome, _up_to_date(s, wanted, kept), kept.actions, kept.notes)


def _up_to_date(s: Snapshot, wanted: Wanted, kept: upkeep.Kept) -> Verdict | None:
    """None if there is no workload and none comes."""
    if wanted.drift:
        broken = validate.check(s.workspace, s.catalog, max_nodes=s.settings.max_nodes_per_workspace)
        return conditions.drifted(wanted.drift, broken=validate.told(broken), upgrade=s.settings.workloads.upgrade)
    failed = kept.problem is not None and kept.problem.state == "failed"
    if (live := live_workload(s)) is None and failed:
        return None
    refusal = s.memory.refusals.get(upkeep.reference(wanted.children[-1]))
    if refusal is not None and s.now < refusal.retry_at:
        return conditions.not_updated(refusal.message)
    said = s.workspace.condition(conditions.WORKLOAD_UP_TO_DATE) or {}
    if said.get("reason") in (conditions.PLATFORM_CHANGED, conditions.ROLLING):
        changes = any(isinstance(a, ApplyChild) and a.child["kind"] in placement.WORKLOADS for a in kept.actions)
        if live is None or changes or not workload.is_available(live):
            return conditions.rolling()
    return conditions.up_to_date()


def progress(s: Snapshot) -> Outcome:
    """How far the existing workload is."""
    found = live_workload(s)
    if found is None:
        return Outcome("waiting", pods.WAITING)
    reported, spec = found.get("status") or {}, found.get("spec") or {}
    replicas, ready = int(spec.get("replicas") or 0), int(reported.get("readyReplicas") or 0)
    if replicas == 0:
        kept = "; its nodes are kept" if s.workspace.worker_nodes else ""
        return Outcome("waiting", f"{upkeep.reference(found)} is scaled to zero by hand{kept}")
    if workload.is_available(found):
        return Outcome("ready")
    serving = [pod for pod in s.pods if not pods.owned_by_job(pod)]
    told = pods.explain(
        serving,
        s.pod_warnings,
        pull_errors=s.memory.pull_errors,
        pull_secrets=s.pull_secrets,
        servers=server_state.outcomes(s.servers),
    )
    if told is not None and told.state == "failed":
        return told
    if (refused := _refused(s, found, replicas=replicas, existing=len(serving))) is not None:
        return refused
    stuck = find(reported.get("conditions"), "Progressing")
    if stuck is not None and stuck.get("status") == "False":
        detail = told.message if told is not None else str(stuck.get("message", ""))
        return Outcome("failed", f"deployment {s.workspace.name} is not progressing: {detail}")
    count = f"{ready}/{replicas} replicas ready; " if replicas > 1 else ""
    return Outcome("waiting", count + (told.message if told is not None else pods.WAITING))


def _refused(s: Snapshot, found: Obj, *, replicas: int, existing: int) -> Outcome | None:
    """Why the workload lacks Pods, if the API server refuses them: its condition says it, or its Events do."""
    failure = find((found.get("status") or {}).get("conditions"), "ReplicaFailure")
    if failure is not None and failure.get("status") == "True":
        return pod_refusals.outcome(upkeep.reference(found), str(failure.get("message", "")))
    message = s.pod_refusals.get(str(found["metadata"].get("uid", "")))
    if message is None or existing >= replicas:
        return None
    return pod_refusals.outcome(upkeep.reference(found), message)


def wanted_children(s: Snapshot, resource: ResourceSpec, *, chosen: Sequence[Obj], revision: int) -> Wanted:
    """The children of an inference Workspace as they should be."""
    spec = s.workspace.inference
    assert spec is not None
    if spec.template is not None:
        return _template_children(s, resource, revision=revision)
    preset = preset_of(s)
    assert preset is not None
    return preset_children(s, resource, preset, adapters=spec.adapters, chosen=chosen, revision=revision)


def preset_of(s: Snapshot) -> Preset | None:
    """The Workspace's preset, if the Catalog has it."""
    wanted = s.workspace.preset
    return s.catalog.presets.get(wanted.name) if wanted is not None and s.catalog is not None else None


def _template_children(s: Snapshot, resource: ResourceSpec, *, revision: int) -> Wanted:
    """A template is the user's own: a Deployment and a Service, and no NetworkPolicy that knows its ports."""
    ws = s.workspace
    assert ws.inference is not None
    assert ws.inference.template is not None
    template = workload.users_template(ws, dict(ws.inference.template), place=placement.place(s, resource))
    deadline = s.settings.timeouts.template_ready
    port = pod_template.first_port(template) or service.SERVER_PORT
    return _with_workload(
        s,
        workload.deployment(ws, resource, template=template, deadline=deadline, revision=revision),
        [service.service(ws, metadata=workload.metadata(ws), distributed=False, port=port)],
        frozen=_frozen_workload(s, revision),
    )


def _with_workload(s: Snapshot, wanted: Obj, others: Sequence[Obj], *, frozen: Obj | None) -> Wanted:
    """The others and the workload, or the frozen one as it is."""
    if frozen is not None:
        wanted = drift.placed_as(frozen, wanted)
    if (live := live_workload(s)) is not None:
        wanted = drift.with_earlier_rolls(live, upkeep.sealed(wanted))
    if frozen is None or upkeep.seal_of(frozen) == upkeep.seal_of(wanted):
        return Wanted((*others, wanted))
    return Wanted((*others, drift.frozen(frozen, wanted)), drift.describe(frozen, wanted))


def preset_children(
    s: Snapshot,
    resource: ResourceSpec,
    preset: Preset,
    *,
    adapters: Sequence[Adapter],
    chosen: Sequence[Obj],
    revision: int,
) -> Wanted:
    """Services, NetworkPolicy and workload of a preset that is served with these adapters."""
    ws = s.workspace
    assert ws.preset is not None
    assert s.catalog is not None
    engine, gpus = engine_of(ws, s.catalog), gpus_per_node(s, resource, preset, chosen)
    template = server.pod_template(
        ws,
        resource,
        wanted=ws.preset,
        preset=preset,
        place=placement.place(s, resource),
        adapters=adapters,
        engine=engine,
        image=images.serving_image(engine, gpus, s.settings),
        gpus=gpus,
        settings=s.settings,
    )
    if preset.distributed:
        wanted = workload.stateful_set(ws, resource, template=template, revision=revision, engine=engine)
    else:
        deadline = preset.readiness_timeout
        wanted = workload.deployment(
            ws, resource, template=template, deadline=deadline, revision=revision, engine=engine
        )
    frozen = _frozen_workload(s, revision)
    distributed = (frozen or wanted)["kind"] == "StatefulSet"
    others = [service.service(ws, metadata=workload.metadata(ws), distributed=distributed)]
    if s.settings.network_policy:
        others.append(network.network_policy(ws, metadata=workload.metadata(ws), distributed=distributed))
    if distributed:
        others.append(service.headless_service(ws, metadata=workload.metadata(ws, name=service.headless_name(ws))))
    return _with_workload(s, wanted, others, frozen=frozen)


def gpus_per_node(s: Snapshot, resource: ResourceSpec, preset: Preset, chosen: Sequence[Obj]) -> int:
    """GPUs that the server requests: the type's; of an unlisted type what its workload or its smallest node has.

    Where nodes are not bought their type is not what the Workspace names, so only the workload and the nodes tell.
    """
    listed = s.catalog.find_instance_type(resource.instance_type) if s.catalog else None
    if listed is not None and s.settings.node_api != "none":
        return listed.gpu_count if listed.gpu_vendor == "nvidia" else 0
    existing = workload.gpu_request(live_workload(s))
    if existing is not None:
        return existing
    if chosen:
        return min(map(nodes.gpu_capacity, chosen))
    return preset.gpu_count if nodes.needs_nvidia(resource.instance_type, s.catalog) else 0
