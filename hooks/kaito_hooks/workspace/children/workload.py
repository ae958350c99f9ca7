"""The Deployment or StatefulSet of an inference Workspace."""

from __future__ import annotations

import copy

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import Engine
from kaito_hooks.api.conditions import is_true
from kaito_hooks.api.resources import WORKSPACE
from kaito_hooks.api.workspace import ResourceSpec, Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children.service import headless_name
from kaito_hooks.workspace.decision.revision import workload_hash_of
from kaito_hooks.workspace.supply.placement import pod_of


def owner_reference(workspace: Workspace) -> Obj:
    """What marks an object as a child of this Workspace."""
    return {
        "apiVersion": WORKSPACE.api_version,
        "kind": WORKSPACE.kind,
        "name": workspace.name,
        "uid": workspace.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(workspace: Workspace, *, name: str = "") -> Obj:
    """Metadata of a child: its name (the Workspace's by default), label, owner."""
    return {
        "name": name or workspace.name,
        "namespace": workspace.namespace,
        "labels": {labels.WORKSPACE: workspace.name},
        "ownerReferences": [owner_reference(workspace)],
    }


def _workload_metadata(workspace: Workspace, *, revision: int, engine: Engine | None) -> Obj:
    """Metadata of a workload: what it was made for is in its annotations and in a label."""
    annotations = {labels.REVISION: str(revision)} | ({labels.RUNTIME: engine} if engine else {})
    rolls = {name: workspace.annotations[name] for name in labels.ROLLS if name in workspace.annotations}
    found = metadata(workspace)
    # A label, as another annotation is a new generation of a Deployment, and that is not ready for a moment.
    marks = {**found["labels"], labels.WORKLOAD_HASH: workload_hash_of(workspace.raw)}
    return {**found, "labels": marks, "annotations": annotations | rolls}


def deployment(
    workspace: Workspace,
    resource: ResourceSpec,
    *,
    template: Obj,
    deadline: float,
    revision: int,
    engine: Engine | None = None,
) -> Obj:
    """A Deployment with one replica per node; ``deadline``: seconds until it counts as stuck.

    ``engine``: of a preset's server; a template of the user's own has none.

    GPUs cannot be had twice: an old Pod goes before its successor comes.
    """
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _workload_metadata(workspace, revision=revision, engine=engine),
        "spec": {
            "replicas": resource.count,
            "progressDeadlineSeconds": max(1, int(deadline)),
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": {labels.WORKSPACE: workspace.name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": template,
        },
    }


def stateful_set(workspace: Workspace, resource: ResourceSpec, *, template: Obj, revision: int, engine: Engine) -> Obj:
    """A StatefulSet for a preset that spans nodes: all Pods start together and find each other by name."""
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": _workload_metadata(workspace, revision=revision, engine=engine),
        "spec": {
            "replicas": resource.count,
            "podManagementPolicy": "Parallel",
            "serviceName": headless_name(workspace),
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": {labels.WORKSPACE: workspace.name}},
            "template": template,
        },
    }


def users_template(workspace: Workspace, template: Obj, *, place: Obj) -> Obj:
    """The user's own Pod template with our label, where it may run and, beside the user's, our tolerations."""
    pod = copy.deepcopy(dict(template))
    found = pod.setdefault("metadata", {}) or {}
    found["labels"] = {**(found.get("labels") or {}), labels.WORKSPACE: workspace.name}
    # A template's name and namespace mean nothing in a Deployment.
    pod["metadata"] = {key: value for key, value in found.items() if key in ("labels", "annotations")}
    spec = pod.setdefault("spec", {})
    existing = list(spec.get("tolerations") or ())
    spec |= {**place, "tolerations": existing + [t for t in place["tolerations"] if t not in existing]}
    return pod


def is_available(workload: Obj) -> bool:
    """Whether its controller has seen the newest specification, and every replica is of that and ready.

    A Pod of before counts as ready until its end is noticed, and as long it is among ``replicas`` (as ``kubectl rollout
    status`` knows).
    """
    status, spec = workload.get("status") or {}, workload.get("spec") or {}
    replicas = int(spec.get("replicas") or 0)
    seen = int(status.get("observedGeneration") or 0) >= int(workload["metadata"].get("generation") or 0)
    ready, updated = (int(status.get(name) or 0) for name in ("readyReplicas", "updatedReplicas"))
    return seen and ready >= replicas and updated >= max(replicas, int(status.get("replicas") or 0))


def is_over(job: Obj) -> bool:
    """Whether a Job has ended, in whichever way."""
    found = (job.get("status") or {}).get("conditions")
    return is_true(found, "Complete") or is_true(found, "Failed")


def gpu_request(workload: Obj | None) -> int | None:
    """GPUs that each Pod of an existing workload requests; None if there is no workload."""
    if workload is None:
        return None
    requests = [
        int((((c.get("resources") or {}).get("limits")) or {}).get(labels.GPU_RESOURCE, 0))
        for c in pod_of(workload).get("containers") or ()
    ]
    return max(requests, default=0)
