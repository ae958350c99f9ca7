"""The inference side of a Workspace: workload, Services, NetworkPolicy, and how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import ENGINES, Preset
from kaito_hooks.api.conditions import find
from kaito_hooks.api.workspace import Adapter, ResourceSpec
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace import (
    children,
    images,
    network,
    nodes,
    pod_template,
    pods,
    server,
    server_state,
    service,
    workload,
)
from kaito_hooks.workspace.actions import Action, CreateChild, Note, Outcome
from kaito_hooks.workspace.engines import engine_of
from kaito_hooks.workspace.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Inference:
    """What to do for serving and where it stands."""

    outcome: Outcome
    actions: tuple[Action, ...] = ()
    notes: tuple[Note, ...] = ()


def live_workload(s: Snapshot) -> Obj | None:
    """The workload of ours that exists, of either kind."""
    for kind in children.WORKLOADS:
        found = s.children.get(f"{kind}/{s.workspace.name}")
        if found is not None and children.is_owned(found, s.workspace.uid):
            return found
    return None


def is_of_revision(s: Snapshot, revision: int) -> bool:
    """Whether the existing workload is what that revision wants."""
    return _annotation(s, labels.REVISION) == str(revision)


def is_of_engine(s: Snapshot) -> bool:
    """Whether the existing workload runs the engine that is asked for; a template of the user's own has none."""
    asked = s.workspace.annotations.get(labels.RUNTIME, s.catalog.default_engine if s.catalog is not None else None)
    if asked not in (None, *ENGINES):
        return False
    return s.workspace.preset is None or asked in (None, _annotation(s, labels.RUNTIME))


def _annotation(s: Snapshot, name: str) -> str | None:
    found = live_workload(s)
    return (found["metadata"].get("annotations") or {}).get(name) if found is not None else None


def infer(s: Snapshot, wanted: Sequence[Obj]) -> Inference:
    """Keep all children as they should be, and judge the workload."""
    actions: list[Action] = []
    problems: list[Outcome] = []
    for child in wanted:
        action, problem = children.keep(s, child)
        if action is not None:
            actions.append(action)
        if problem is not None:
            problems.append(problem)
    created = [children.reference(a.child) for a in actions if isinstance(a, CreateChild)]
    outcome = next((p for p in problems if p.state == "failed"), problems[0] if problems else None)
    return Inference(
        outcome=outcome or progress(s),
        actions=tuple(actions),
        notes=(Note("Normal", "Created", f"created {', '.join(created)}"),) if created else (),
    )


def look_at(s: Snapshot) -> datetime | None:
    """When to ask the servers again that are not ready."""
    return min((answer.stale_at for answer in s.servers.values()), default=None)


def progress(s: Snapshot) -> Outcome:
    """How far the existing workload is."""
    found = live_workload(s)
    if found is None:
        return Outcome("waiting", pods.WAITING)
    status, spec = found.get("status") or {}, found.get("spec") or {}
    replicas, ready = int(spec.get("replicas") or 0), int(status.get("readyReplicas") or 0)
    seen = int(status.get("observedGeneration") or 0) >= int(found["metadata"].get("generation") or 0)
    if seen and ready >= replicas and int(status.get("updatedReplicas") or 0) >= replicas:
        return Outcome("ready")
    serving = [pod for pod in s.pods if not pods.owned_by_job(pod)]
    told = pods.explain(serving, s.pod_warnings, said=s.said, servers=server_state.outcomes(s.servers))
    if told is not None and told.state == "failed":
        return told
    stuck = find(status.get("conditions"), "Progressing")
    if stuck is not None and stuck.get("status") == "False":
        detail = told.message if told is not None else str(stuck.get("message", ""))
        return Outcome("failed", f"deployment {s.workspace.name} is not progressing: {detail}")
    failure = find(status.get("conditions"), "ReplicaFailure")
    if failure is not None and failure.get("status") == "True":
        return Outcome("failed", f"{children.reference(found)} cannot create its Pods: {failure.get('message', '')}")
    count = f"{ready}/{replicas} replicas ready; " if replicas > 1 else ""
    return Outcome("waiting", count + (told.message if told is not None else pods.WAITING))


def wanted_children(s: Snapshot, resource: ResourceSpec, *, chosen: Sequence[Obj], revision: int) -> list[Obj]:
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


def _template_children(s: Snapshot, resource: ResourceSpec, *, revision: int) -> list[Obj]:
    """A template is the user's own: a Deployment and a Service, and no NetworkPolicy that knows its ports."""
    ws = s.workspace
    assert ws.inference is not None
    assert ws.inference.template is not None
    template = workload.users_template(ws, resource, dict(ws.inference.template))
    deadline = s.settings.timeouts.template_ready
    port = pod_template.first_port(template) or service.SERVER_PORT
    return [
        service.service(ws, metadata=workload.metadata(ws), distributed=False, port=port),
        workload.deployment(ws, resource, template=template, deadline=deadline, revision=revision),
    ]


def preset_children(
    s: Snapshot,
    resource: ResourceSpec,
    preset: Preset,
    *,
    adapters: Sequence[Adapter],
    chosen: Sequence[Obj],
    revision: int,
) -> list[Obj]:
    """Services, NetworkPolicy and workload of a preset that is served with these adapters."""
    ws = s.workspace
    assert ws.preset is not None
    assert s.catalog is not None
    engine = engine_of(ws, s.catalog)
    template = server.pod_template(
        ws,
        resource,
        wanted=ws.preset,
        preset=preset,
        adapters=adapters,
        engine=engine,
        image=images.serving_image(engine, resource.instance_type, s.catalog, s.settings),
        gpus=gpus_per_node(s, resource, preset, chosen),
        settings=s.settings,
    )
    wanted = [service.service(ws, metadata=workload.metadata(ws), distributed=preset.distributed)]
    if s.settings.network_policy:
        wanted.append(network.network_policy(ws, metadata=workload.metadata(ws), distributed=preset.distributed))
    if preset.distributed:
        headless = workload.metadata(ws, name=service.headless_name(ws))
        wanted.append(service.headless_service(ws, metadata=headless))
        wanted.append(workload.stateful_set(ws, resource, template=template, revision=revision, engine=engine))
    else:
        wanted.append(
            workload.deployment(
                ws,
                resource,
                template=template,
                deadline=preset.readiness_timeout,
                revision=revision,
                engine=engine,
            )
        )
    return wanted


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
