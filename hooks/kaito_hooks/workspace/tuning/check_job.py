"""The Job that looks at a tuning before a node is bought: on any node, without GPU, until it has an answer."""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import Preset, VolumeWeights
from kaito_hooks.api.workspace import TuningSpec, Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children import containers, images, server, workload
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.tuning import check, job
from kaito_hooks.workspace.tuning.config import CONFIG_PATH, DATA_PATH

FOREVER = 2**31 - 1
"""A limit of restarts that is never met: what cannot be reached is waited for, and costs nothing."""
MODEL_PATH = "/mnt/model"
LARGEST_DATA = "20Gi"
"""Of a volume on a node that is not made for data; a Pod that takes more is evicted."""
NEVER_READY = "kaito.sh/never-ready"
"""A readiness gate that nobody opens: the Service of an earlier result must not send requests to a check."""


def check_job(
    workspace: Workspace, *, preset: Preset, revision: str, inputs: str, config_version: str, settings: Settings
) -> Obj:
    """The Job for that revision and those inputs (``check.inputs_of``); ``config_version``: of its ConfigMap."""
    metadata = workload.metadata(workspace, name=check.job_name(workspace.name, revision))
    metadata["annotations"] = {
        labels.REVISION: revision,
        labels.CHECK_INPUTS: inputs,
        labels.CHECK_CONFIG: config_version,
    }
    spec = job_spec(workspace, preset=preset, settings=settings)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def job_spec(workspace: Workspace, *, preset: Preset, settings: Settings) -> Obj:
    """The Job's specification, which has everything in it that settings and Catalog say.

    It ends by itself, also where no controller looks, and is made again then: what it has waited for all that time, a
    Secret say, is not known not to come.
    """
    limits, pod = settings.tuning.check, _pod(workspace, preset=preset, settings=settings)
    # The last of them is for what is waited for: steps that are in time are never begun again from the first.
    deadlines = len(pod["initContainers"]) + len(pod["containers"]) + 1
    return {
        "backoffLimit": FOREVER,
        "activeDeadlineSeconds": max(1, int(deadlines * max(limits.deadline, limits.timeout))),
        "template": {"metadata": job.pod_metadata(workspace, check.CHECK), "spec": pod},
    }


def _pod(workspace: Workspace, *, preset: Preset, settings: Settings) -> Obj:
    spec = workspace.tuning
    assert spec is not None
    assert spec.preset is not None
    assert spec.input is not None
    tokenizer = _tokenizer_step(spec, preset, settings)
    secrets = {*job.push_secret(spec), *spec.input.image_pull_secrets}
    hub: list[Obj] = []
    if tokenizer is not None:
        hub = server.hub_token_volumes(preset, spec.preset)
        if images.model_image(spec.preset, preset, settings):
            secrets.update(spec.preset.image_pull_secrets)
    return {
        "restartPolicy": "OnFailure",
        **containers.pod_head(settings),
        "readinessGates": [{"conditionType": NEVER_READY}],
        # What the images are made for.
        "nodeSelector": {labels.OPERATING_SYSTEM: "linux", labels.ARCHITECTURE: "amd64"},
        "tolerations": [dict(toleration) for toleration in settings.workloads.tolerations],
        "initContainers": [
            _push_right_step(spec, settings),
            *([tokenizer] if tokenizer is not None else []),
            job.data_step(spec, settings),
        ],
        "containers": [_check(spec, preset=preset, has_model=tokenizer is not None, settings=settings)],
        "volumes": [
            containers.TMP_VOLUME,
            {"name": "model-volume", "emptyDir": {}},
            {"name": "data-volume", "emptyDir": {"sizeLimit": LARGEST_DATA}},
            job.config_volume(spec),
            *hub,
            *containers.registry_secret_volumes(secrets),
        ],
    }


def _push_right_step(spec: TuningSpec, settings: Settings) -> Obj:
    """Opens an upload and cancels it."""
    secret = job.push_secret(spec)
    args = ["push-right", "--image", job.output_image(spec), *containers.docker_config_args(secret)]
    mounts = containers.registry_secret_mounts(secret)
    return containers.artifact_step("push-right", args, mounts=mounts, settings=settings)


def _tokenizer_step(spec: TuningSpec, preset: Preset, settings: Settings) -> Obj | None:
    """Fetches the model's small files as ``weights`` fetches all; none of a volume, which only its nodes may reach."""
    assert spec.preset is not None
    if isinstance(preset.weights, VolumeWeights) and not spec.preset.image:
        return None
    return server.model_step("tokenizer", spec.preset, preset, settings, mount=_model_mount())


def _model_mount(*, read_only: bool = False) -> Obj:
    return {"name": "model-volume", "mountPath": MODEL_PATH, **({"readOnly": True} if read_only else {})}


def _check(spec: TuningSpec, *, preset: Preset, has_model: bool, settings: Settings) -> Obj:
    """``has_model``: whether the model's small files are there; without them no tokens are counted."""
    return {
        "name": check.CHECK,
        "image": settings.images.tuning["check"],
        "imagePullPolicy": settings.images.pull_policy,
        "command": ["python", "-m", "kaito_tuning.check"],
        "env": [
            *job.environment(spec, preset),
            {"name": "MODEL_PATH", "value": MODEL_PATH if has_model else ""},
            {"name": "MODEL_TYPE", "value": preset.architecture.removesuffix("ForCausalLM").lower()},
            {"name": "CHECK_MAX_BYTES", "value": str(settings.tuning.check.max_bytes)},
        ],
        "resources": dict(settings.tuning.check.resources),
        "securityContext": containers.CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            containers.TMP_MOUNT,
            _model_mount(read_only=True),
            {"name": "data-volume", "mountPath": DATA_PATH, "readOnly": True},
            {"name": "config-volume", "mountPath": CONFIG_PATH, "readOnly": True},
        ],
    }
