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
    settings: Settings,
) -> Obj:
    """The Job. ``place``: where its Pod may run; ``gpus``: GPUs of the node, all of which the trainer takes;
    ``revision`` and ``tuning_hash``: of what it tunes."""
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
                "metadata": {
                    "labels": {labels.WORKSPACE: workspace.name, **NO_PROXY_LABELS},
                    "annotations": {labels.DEFAULT_CONTAINER: TUNE, **NO_PROXY_ANNOTATIONS},
                },
                "spec": _pod(
                    workspace,
                    preset=preset,
                    place=place,
                    output_dir=output_dir,
                    image=image,
                    gpus=gpus,
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
    pod: Obj = {
        "restartPolicy": "OnFailure",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": containers.POD_SECURITY,
        "terminationGracePeriodSeconds": GRACE_PERIOD,
        **place,
        "initContainers": [
            _check_step(spec, output_dir=output_dir, settings=settings),
            server.weights_step(spec.preset, preset, settings),
            _data_step(spec, settings),
            _tune_step(spec, preset=preset, output_dir=output_dir, image=image, gpus=gpus, settings=settings),
        ],
        "containers": [_push(spec, output_dir=output_dir, settings=settings)],
        "volumes": [
            containers.TMP_VOLUME,
            {"name": "dshm", "emptyDir": {"medium": "Memory"}},
            server.weights_volume(preset, spec.preset),
            {"name": "data-volume", "emptyDir": {}},
            {"name": "results-volume", "emptyDir": {}},
            {
                "name": "config-volume",
                "configMap": {"name": name_of(spec), "items": [{"key": KEY, "path": KEY}]},
            },
            *server.hub_token_volumes(preset, spec.preset),
            *containers.registry_secret_volumes(secrets),
        ],
    }
    if settings.images.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.images.pull_secrets]
    return pod


def _push_secret(spec: TuningSpec) -> list[str]:
    return [spec.output.image_push_secret] if spec.output is not None else []


def _output_image(spec: TuningSpec) -> str:
    return spec.output.image if spec.output is not None else ""


def _check_step(spec: TuningSpec, *, output_dir: str, settings: Settings) -> Obj:
    """Opens an upload and cancels it: a wrong Secret is told before any training, and not asked about after it."""
    secret = _push_secret(spec)
    args = ["check", "--image", _output_image(spec), "--results", output_dir]
    return containers.artifact_step(
        "check",
        [*args, *containers.docker_config_args(secret)],
        mounts=[{"name": "results-volume", "mountPath": output_dir}, *containers.registry_secret_mounts(secret)],
        settings=settings,
    )


def _data_step(spec: TuningSpec, settings: Settings) -> Obj:
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
    hub = preset.weights if isinstance(preset.weights, HubWeights) and not spec.preset.image else None
    return {
        "name": TUNE,
        "image": image,
        "imagePullPolicy": settings.images.pull_policy,
        "command": ["python", "-m", "kaito_tuning"],
        "env": [
            _POD_IP,
            {"name": "HOST", "value": "$(POD_IP)"},
            {"name": "PORT", "value": str(PORT)},
            {"name": "HOME", "value": containers.TMP},
            {"name": "YAML_FILE_PATH", "value": f"{CONFIG_PATH}/{KEY}"},
            {"name": "DATASET_FOLDER_PATH", "value": DATA_PATH},
            {"name": "MODEL_PATH", "value": server.WEIGHTS_PATH},
            {"name": "MODEL_ID", "value": hub.repo if hub else preset.name},
            {"name": "MODEL_REVISION", "value": hub.revision if hub else ""},
            {"name": "METHOD", "value": spec.method},
            {"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:True"},
        ],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
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
    secret = _push_secret(spec)
    args = ["push", "--image", _output_image(spec), "--folder", f"{output_dir}/adapter", "--results", output_dir]
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
    return {**step, "env": [_POD_IP, *step["env"]], "ports": [{"containerPort": PORT, "protocol": "TCP"}]}
