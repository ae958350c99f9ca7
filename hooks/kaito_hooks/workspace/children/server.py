"""The Pod that serves a preset: init containers fetch weights and adapters, one container serves them."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from functools import lru_cache

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import Engine, HubWeights, ImageWeights, Preset, VolumeWeights
from kaito_hooks.api.workspace import Adapter, PresetSpec, ResourceSpec, Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children import containers, images
from kaito_hooks.workspace.children.service import first_pod_host
from kaito_hooks.workspace.configuration.settings import Settings

WEIGHTS_PATH = "/workspace/tfs/weights"
ADAPTERS_PATH = "/mnt/adapter"
HUB_TOKEN_PATH = "/var/run/secrets/kaito.sh/huggingface"
WEIGHTS_VOLUME = "weights"
ADAPTER_VOLUME = "adapter-volume"
PORT = 5000
# The server answers /health?wait= when it is ready, or when the wait is over: a failure is a Warning Event, even in a
# start that goes well. Its port is open some seconds after its start.
STARTUP_PERIOD = 5
STARTUP_FAILURES = 36
# Seconds, as the server's options of these names: how long it still takes requests after SIGTERM, and how long an
# answer may take. Ending it takes no longer than both and what Ray needs.
DRAIN = 10.0
REQUEST_TIMEOUT = 600.0
_SHUTDOWN = 15.0


def pod_template(
    workspace: Workspace,
    resource: ResourceSpec,
    *,
    wanted: PresetSpec,
    preset: Preset,
    place: Obj,
    adapters: Sequence[Adapter],
    engine: Engine,
    image: str,
    gpus: int,
    settings: Settings,
) -> Obj:
    """The Pod template. ``place``: where it may run; ``gpus``: GPUs of one node, all of which the server takes."""
    volumes: list[Obj] = [
        containers.TMP_VOLUME,
        {"name": "dshm", "emptyDir": {"medium": "Memory"}},
        weights_volume(preset, wanted),
    ]
    secrets = set(wanted.image_pull_secrets) if images.model_image(wanted, preset, settings) else set()
    for adapter in adapters:
        secrets.update(adapter.source.image_pull_secrets)
    if adapters:
        volumes.append({"name": ADAPTER_VOLUME, "emptyDir": {}})
    volumes += hub_token_volumes(preset, wanted)
    volumes += containers.registry_secret_volumes(secrets)
    spec: Obj = {
        **containers.pod_head(settings),
        "terminationGracePeriodSeconds": grace_period(settings.serving.extra_args),
        **place,
        "initContainers": [
            weights_step(wanted, preset, settings),
            *(_adapter_step(adapter, settings) for adapter in adapters),
        ],
        "containers": [
            _server(
                workspace,
                wanted=wanted,
                preset=preset,
                adapters=adapters,
                engine=engine,
                nodes=resource.count if preset.distributed else 1,
                image=image,
                gpus=gpus,
                settings=settings,
            )
        ],
        "volumes": volumes,
    }
    return {"metadata": {"labels": {labels.WORKSPACE: workspace.name}}, "spec": spec}


def hub_token_volumes(preset: Preset, wanted: PresetSpec) -> list[Obj]:
    """The Secret that opens the preset's repository on a hub, if it needs one."""
    if isinstance(preset.weights, HubWeights) and preset.weights.token_secret and not wanted.image:
        return [{"name": "hub-token", "secret": {"secretName": preset.weights.token_secret, "defaultMode": 0o440}}]
    return []


def _uses_volume(preset: Preset, wanted: PresetSpec) -> VolumeWeights | None:
    return preset.weights if isinstance(preset.weights, VolumeWeights) and not wanted.image else None


def weights_volume(preset: Preset, wanted: PresetSpec) -> Obj:
    """The volume that holds the model's weights: the user's own, or one that init ``weights`` fills."""
    volume = _uses_volume(preset, wanted)
    if volume is None:
        return {"name": WEIGHTS_VOLUME, "emptyDir": {}}
    # A hostPath has no such field; every mount of the volume is read-only besides.
    read_only = {} if volume.kind == "hostPath" else {"readOnly": True}
    return {"name": WEIGHTS_VOLUME, volume.kind: {**volume.fields, **read_only}}


def weights_mount(preset: Preset, wanted: PresetSpec, *, read_only: bool) -> Obj:
    """The mount of ``weights_volume`` at its one path."""
    mount: Obj = {"name": WEIGHTS_VOLUME, "mountPath": WEIGHTS_PATH}
    if read_only or _uses_volume(preset, wanted) is not None:
        mount["readOnly"] = True
    return mount


def weights_step(wanted: PresetSpec, preset: Preset, settings: Settings) -> Obj:
    """Fetch the weights from an image, from the hub, or only check those on a volume."""
    return model_step("weights", wanted, preset, settings, mount=weights_mount(preset, wanted, read_only=False))


def model_step(command: str, wanted: PresetSpec, preset: Preset, settings: Settings, *, mount: Obj) -> Obj:
    """Fetch a model's files, or those of them that the command is for; ``mount``: of the volume that they go to."""
    args, mounts, folder = [command], [mount], mount["mountPath"]
    image = images.model_image(wanted, preset, settings)
    if image:
        args += ["--image", image]
        if isinstance(preset.weights, ImageWeights):
            args += ["--image-path", preset.weights.path]
        args += ["--destination", folder]
        args += containers.docker_config_args(wanted.image_pull_secrets)
        mounts += containers.registry_secret_mounts(wanted.image_pull_secrets)
    elif isinstance(preset.weights, HubWeights):
        args += ["--hugging-face", preset.weights.repo, "--revision", preset.weights.revision]
        args += ["--destination", folder]
        if preset.weights.token_secret:
            args += ["--token-file", f"{HUB_TOKEN_PATH}/token"]
            mounts.append({"name": "hub-token", "mountPath": HUB_TOKEN_PATH, "readOnly": True})
    else:
        args += ["--volume", folder]
    if preset.architecture:
        args += ["--architecture", preset.architecture]
    return containers.artifact_step(command, args, mounts=mounts, settings=settings)


def _adapter_step(adapter: Adapter, settings: Settings) -> Obj:
    source = adapter.source
    return containers.artifact_step(
        f"adapter-{source.name}",
        [
            "pull",
            "--image",
            source.image,
            "--destination",
            f"{ADAPTERS_PATH}/{source.name}",
            *containers.docker_config_args(source.image_pull_secrets),
        ],
        mounts=[
            {"name": ADAPTER_VOLUME, "mountPath": ADAPTERS_PATH},
            *containers.registry_secret_mounts(source.image_pull_secrets),
        ],
        settings=settings,
    )


def _server(
    workspace: Workspace,
    *,
    wanted: PresetSpec,
    preset: Preset,
    adapters: Sequence[Adapter],
    engine: Engine,
    nodes: int,
    image: str,
    gpus: int,
    settings: Settings,
) -> Obj:
    """``nodes``: over how many the model is spread."""
    args = ["--pipeline", "text-generation", "--pretrained_model_name_or_path", WEIGHTS_PATH]
    args += ["--served_model_name", preset.name, workspace.name, "--torch_dtype", preset.dtype]
    args += ["--engine", engine]
    rank: list[Obj] = []
    if nodes > 1:
        args += ["--nnodes", str(nodes), "--node_rank", "$(NODE_RANK)", "--master_addr", first_pod_host(workspace)]
        rank = [
            {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{labels.POD_INDEX}']"}}}
        ]
    if adapters:
        args += ["--adapters_dir", ADAPTERS_PATH, "--adapter_strengths", strengths(adapters)]
    # At every address: the kubelet and the Service come to the Pod's, kubectl port-forward to the loopback address.
    args += ["--port", str(PORT), *settings.serving.extra_args]
    env: list[Obj] = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "HOME", "value": containers.TMP},
        {"name": "RAY_TMPDIR", "value": containers.TMP},
        *rank,
    ]
    theirs = {each.get("name") for each in settings.serving.extra_env}
    mounts: list[Obj] = [
        containers.TMP_MOUNT,
        {"name": "dshm", "mountPath": "/dev/shm"},
        weights_mount(preset, wanted, read_only=True),
    ]
    if adapters:
        mounts.append({"name": ADAPTER_VOLUME, "mountPath": ADAPTERS_PATH, "readOnly": True})
    return {
        "name": workspace.name,
        "image": image,
        "imagePullPolicy": settings.images.pull_policy,
        "command": ["python", "-m", "kaito_serving"],
        "args": args,
        "env": [*(each for each in env if each["name"] not in theirs), *settings.serving.extra_env],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": containers.with_gpus(settings.serving.resources, gpus),
        "securityContext": containers.CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "startupProbe": _startup_probe(preset.readiness_timeout),
        "readinessProbe": _probe(period=5, timeout=3, failures=3),
        # Slow on purpose: Ray Serve replaces a dead replica by itself, a restarted container loads the weights again.
        "livenessProbe": _probe(period=30, timeout=10, failures=10),
        "volumeMounts": mounts,
    }


@lru_cache(maxsize=8)
def grace_period(extra_args: tuple[str, ...]) -> int:
    """Seconds that a server started with ``extra_args`` may need to end: its drain, its longest answer, Ray's end."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--drain_s", type=float, default=DRAIN)
    parser.add_argument("--request_timeout_s", type=float, default=REQUEST_TIMEOUT)
    try:
        known, _ = parser.parse_known_args(list(extra_args))
    except argparse.ArgumentError:  # the server itself says what is wrong with it
        known = parser.parse_args([])
    drain = max(0.0, known.drain_s) if math.isfinite(known.drain_s) else DRAIN
    answers = math.isfinite(known.request_timeout_s) and known.request_timeout_s > 0
    return math.ceil(drain + (known.request_timeout_s if answers else REQUEST_TIMEOUT) + _SHUTDOWN)


def strengths(adapters: Sequence[Adapter]) -> str:
    """The deployment's adapter mix as one JSON argument."""
    return json.dumps({a.source.name: float(a.strength) for a in adapters}, sort_keys=True)


def _startup_probe(within: float) -> Obj:
    """The model may take ``within`` seconds to load, the port three minutes to open."""
    wait = math.ceil(within / STARTUP_FAILURES)
    return _probe(period=STARTUP_PERIOD, timeout=wait + 5, failures=STARTUP_FAILURES, path=f"/health?wait={wait}")


def _probe(*, period: int, timeout: int, failures: int, path: str = "/health") -> Obj:
    return {
        "httpGet": {"path": path, "port": PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }
