"""The Job that tunes a preset: its steps are init containers in sequence, its one main container pushes the result.

So a registry that is down is retried without training again, a trainer that crashed goes on from its checkpoint, and
each step sees only the Secrets that it needs.
"""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import HubWeights, Preset
from kaito_hooks.api.workspace import TuningSpec, Workspace
from kaito_hooks.runtime import Obj, format_duration
from kaito_hooks.workspace.children import containers, images, server, workload
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.tuning.config import CONFIG_PATH, DATA_PATH, KEY, name_of

BACKOFF_LIMIT = 20
GRACE_PERIOD = 120
"""Seconds for a checkpoint after SIGTERM."""
PORT = 5000
TUNE, PUSH = "tune", "push"
_PORTS: list[Obj] = [{"name": "progress", "containerPort": PORT, "protocol": "TCP"}]
"""Of either step; the chart's PodMonitor knows them by that name."""
# A proxy that a service mesh puts into the Pod never ends, and with it the Pod, which holds its GPUs. Istio and Kuma
# read labels, their older releases annotations as the others do.
NO_PROXY_LABELS = {"sidecar.istio.io/inject": "false", "kuma.io/sidecar-injection": "disabled"}
NO_PROXY_ANNOTATIONS = {
    **NO_PROXY_LABELS,
    "linkerd.io/inject": "disabled",
    "consul.hashicorp.com/connect-inject": "false",
    "openservicemesh.io/sidecar-injection": "disabled",
}


def job(
    workspace: Workspace,
    *,
    preset: Preset,
    place: Obj,
    output_dir: str,
    image: str,
    gpus: int,
    revision: str,
    tuning_hash: str,
    checked: bool,
    settings: Settings,
) -> Obj:
    """The Job. ``place``: where its Pod may run; ``gpus``: GPUs of the node, all of which the trainer takes;
    ``revision`` and ``tuning_hash``: of what it tunes; ``checked``: whether a check has passed, and with it the right
    to push, which a step before the training asks for otherwise."""
    metadata = workload.metadata(workspace)
    metadata["annotations"] = {labels.REVISION: revision, labels.TUNING_HASH: tuning_hash}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": BACKOFF_LIMIT,
            # A Pod that is still going holds the GPUs that its successor needs.
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": pod_metadata(workspace, TUNE),
                "spec": _pod(
                    workspace,
                    preset=preset,
                    place=place,
                    output_dir=output_dir,
                    image=image,
                    gpus=gpus,
                    checked=checked,
                    settings=settings,
                ),
            },
        },
    }


def _pod(
    workspace: Workspace,
    *,
    preset: Preset,
    place: Obj,
    output_dir: str,
    image: str,
    gpus: int,
    checked: bool,
    settings: Settings,
) -> Obj:
    spec = workspace.tuning
    assert spec is not None
    assert spec.preset is not None
    assert spec.input is not None
    assert spec.output is not None
    secrets = {spec.output.image_push_secret, *spec.input.image_pull_secrets}
    if images.model_image(spec.preset, preset, settings):
        secrets.update(spec.preset.image_pull_secrets)
    return {
        "restartPolicy": "OnFailure",
        **containers.pod_head(settings),
        "terminationGracePeriodSeconds": GRACE_PERIOD,
        **place,
        "initContainers": [
            *([] if checked else [_push_right_step(spec, output_dir=output_dir, settings=settings)]),
            server.weights_step(spec.preset, preset, settings),
            data_step(spec, settings),
            _tune_step(spec, preset=preset, output_dir=output_dir, image=image, gpus=gpus, settings=settings),
        ],
        "containers": [_push(spec, output_dir=output_dir, settings=settings)],
        "volumes": [
            containers.TMP_VOLUME,
            {"name": "dshm", "emptyDir": {"medium": "Memory"}},
            server.weights_volume(preset, spec.preset),
            {"name": "data-volume", "emptyDir": {}},
            {"name": "results-volume", "emptyDir": {}},
            config_volume(spec),
            *server.hub_token_volumes(preset, spec.preset),
            *containers.registry_secret_volumes(secrets),
        ],
    }


def pod_metadata(workspace: Workspace, step: str) -> Obj:
    """Of the Pods of a Job: whose they are, ``step`` as the one that kubectl asks, and no proxy of a service mesh."""
    return {
        "labels": {labels.WORKSPACE: workspace.name, **NO_PROXY_LABELS},
        "annotations": {labels.DEFAULT_CONTAINER: step, **NO_PROXY_ANNOTATIONS},
    }


def environment(spec: TuningSpec, preset: Preset) -> list[Obj]:
    """What the trainer and the check before it are told alike."""
    return [
        {"name": "HOME", "value": containers.TMP},
        {"name": "YAML_FILE_PATH", "value": f"{CONFIG_PATH}/{KEY}"},
        {"name": "DATASET_FOLDER_PATH", "value": DATA_PATH},
        {"name": "METHOD", "value": spec.method},
        {"name": "CONTEXT_LENGTH", "value": str(preset.context_length)},
        {"name": "SERVE_RESULT", "value": "true" if spec.serve_result else "false"},
    ]


def config_volume(spec: TuningSpec) -> Obj:
    """The volume with the tuning configuration."""
    return {"name": "config-volume", "configMap": {"name": name_of(spec), "items": [{"key": KEY, "path": KEY}]}}


def model_identity(spec: TuningSpec, preset: Preset) -> list[Obj]:
    """Environment: the name by which others know the model, and its commit; that is "" of a model in an image."""
    assert spec.preset is not None
    hub = preset.weights if isinstance(preset.weights, HubWeights) and not spec.preset.image else None
    return [
        {"name": "MODEL_ID", "value": hub.repo if hub else preset.name},
        {"name": "MODEL_REVISION", "value": hub.revision if hub else ""},
    ]


def push_secret(spec: TuningSpec) -> list[str]:
    """The Secret with which the adapter is pushed, as a list of one or none."""
    return [spec.output.image_push_secret] if spec.output is not None else []


def output_image(spec: TuningSpec) -> str:
    """The image that the adapter becomes."""
    return spec.output.image if spec.output is not None else ""


def _push_right_step(spec: TuningSpec, *, output_dir: str, settings: Settings) -> Obj:
    """Opens an upload and cancels it: a wrong Secret is told before any training, and not asked about after it."""
    secret = push_secret(spec)
    args = ["check", "--image", output_image(spec), "--results", output_dir]
    return containers.artifact_step(
        "push-right",
        [*args, *containers.docker_config_args(secret)],
        mounts=[{"name": "results-volume", "mountPath": output_dir}, *containers.registry_secret_mounts(secret)],
        settings=settings,
    )


def data_step(spec: TuningSpec, settings: Settings) -> Obj:
    """Fetches the data into the volume ``data-volume``."""
    source = spec.input
    assert source is not None
    args, mounts = ["data"], [{"name": "data-volume", "mountPath": DATA_PATH}]
    if source.image:
        args += ["--image", source.image, *containers.docker_config_args(source.image_pull_secrets)]
        mounts += containers.registry_secret_mounts(source.image_pull_secrets)
    else:
        # The kubelet would replace $(NAME) in an argument.
        args += [f"--url={url.replace('$(', '$$(')}" for url in source.urls]
        for cidr in settings.tuning.allowed_private_cidrs:
            args += ["--allow-private", cidr]
    return containers.artifact_step("data", [*args, "--destination", DATA_PATH], mounts=mounts, settings=settings)


def _tune_step(spec: TuningSpec, *, preset: Preset, output_dir: str, image: str, gpus: int, settings: Settings) -> Obj:
    assert spec.preset is not None
    return {
        "name": TUNE,
        "image": image,
        "imagePullPolicy": settings.images.pull_policy,
        "command": ["python", "-m", "kaito_tuning"],
        "env": [
            _POD_IP,
            {"name": "HOST", "value": "$(POD_IP)"},
            {"name": "PORT", "value": str(PORT)},
            *environment(spec, preset),
            {"name": "MODEL_PATH", "value": server.WEIGHTS_PATH},
            *model_identity(spec, preset),
            {"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:True"},
        ],
        "ports": _PORTS,
        "resources": containers.with_gpus(settings.tuning.resources, gpus),
        "securityContext": containers.CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            containers.TMP_MOUNT,
            {"name": "dshm", "mountPath": "/dev/shm"},
            server.weights_mount(preset, spec.preset, read_only=True),
            {"name": "data-volume", "mountPath": DATA_PATH, "readOnly": True},
            {"name": "results-volume", "mountPath": output_dir},
            {"name": "config-volume", "mountPath": CONFIG_PATH, "readOnly": True},
        ],
    }


_POD_IP: Obj = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def _push(spec: TuningSpec, *, output_dir: str, settings: Settings) -> Obj:
    secret = push_secret(spec)
    args = ["push", "--image", output_image(spec), "--folder", f"{output_dir}/adapter", "--results", output_dir]
    args += containers.docker_config_args(secret)
    args += ["--port", str(PORT), "--deadline", format_duration(settings.tuning.push_deadline)]
    step = containers.artifact_step(
        PUSH,
        args,
        mounts=[
            {"name": "results-volume", "mountPath": output_dir},
            *containers.registry_secret_mounts(secret),
        ],
        settings=settings,
    )
    return {**step, "env": [_POD_IP, *step["env"]], "ports": _PORTS}
