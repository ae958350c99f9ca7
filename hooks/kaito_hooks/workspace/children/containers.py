"""Containers and volumes that our Pods share: how they are locked down, how they reach registries and Secrets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from kaito_hooks.api import labels
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.configuration.settings import Registries, Settings

USER = 65532
TMP = "/tmp"
REGISTRY_SECRETS = "/var/run/secrets/kaito.sh/registry"

POD_SECURITY: Obj = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Obj = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
TMP_VOLUME: Obj = {"name": "tmp", "emptyDir": {}}
TMP_MOUNT: Obj = {"name": "tmp", "mountPath": TMP}


def pod_head(settings: Settings) -> Obj:
    """What the specs of all our Pods begin with: locked down, without a token, with the Secrets for our images."""
    secrets = [{"name": name} for name in settings.images.pull_secrets]
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        **({"imagePullSecrets": secrets} if secrets else {}),
    }


def artifact_step(name: str, args: list[str], *, mounts: list[Obj], settings: Settings) -> Obj:
    """An init container that runs ``kaito_hooks.artifacts``; it ends with a sentence as termination message."""
    return {
        "name": name,
        "image": settings.images.hooks,
        "imagePullPolicy": settings.images.pull_policy,
        "command": ["python", "-m", "kaito_hooks.artifacts"],
        "args": args,
        "env": [
            {"name": "HOME", "value": TMP},
            {"name": "KAITO_REGISTRIES", "value": registries_json(settings.registries)},
            *_network_environment(settings),
        ],
        "resources": dict(settings.steps.resources),
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [TMP_MOUNT, *mounts],
    }


def _network_environment(settings: Settings) -> list[Obj]:
    """Proxies and the hub, where the chart names them; a cluster may set the same variables in every Pod."""
    wanted = {
        "HTTP_PROXY": settings.proxy.http,
        "HTTPS_PROXY": settings.proxy.https,
        "NO_PROXY": ",".join(settings.proxy.no_proxy),
        "HF_ENDPOINT": settings.hugging_face_endpoint,
    }
    return [{"name": name, "value": value} for name, value in wanted.items() if value]


def with_gpus(configured: Mapping[str, Any], gpus: int) -> Obj:
    """The configured resources, and all GPUs of the node as request and limit."""
    resources: Obj = {part: dict(configured[part]) for part in ("requests", "limits") if configured.get(part)}
    if gpus:
        for part in ("requests", "limits"):
            resources[part] = {**resources.get(part, {}), labels.GPU_RESOURCE: str(gpus)}
    return resources


def registries_json(registries: Registries) -> str:
    """The value of KAITO_REGISTRIES; the same settings give the same text."""
    return json.dumps(
        {
            "mirrors": dict(registries.mirrors),
            "plainHTTP": list(registries.plain_http),
            "caBundle": registries.ca_bundle,
        },
        sort_keys=True,
        separators=(",", ":"),
    )


def registry_secret_volumes(secrets: Iterable[str]) -> list[Obj]:
    """One volume for each Secret with registry credentials."""
    return [
        {"name": _volume_name(secret), "secret": {"secretName": secret, "defaultMode": 0o440}}
        for secret in sorted(set(secrets))
    ]


def registry_secret_mounts(secrets: Iterable[str]) -> list[Obj]:
    """Mounts for ``registry_secret_volumes``."""
    return [
        {"name": _volume_name(secret), "mountPath": f"{REGISTRY_SECRETS}/{secret}", "readOnly": True}
        for secret in sorted(set(secrets))
    ]


def docker_config_args(secrets: Iterable[str]) -> list[str]:
    """The options that name the mounted credentials."""
    args = []
    for secret in sorted(set(secrets)):
        args += ["--docker-config", f"{REGISTRY_SECRETS}/{secret}/.dockerconfigjson"]
    return args


def _volume_name(secret: str) -> str:
    """A Secret's name may have dots and 253 characters, a volume's may not."""
    return f"registry-{hashlib.sha256(secret.encode()).hexdigest()[:10]}"
