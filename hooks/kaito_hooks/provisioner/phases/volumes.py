"""The volumes that must be detached from a Node before its machine goes: those of Pods that have left it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.phases import drain, eviction
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.runtime import NotFound, Obj


def awaited(own: Sequence[Obj], env: Environment) -> list[str]:
    """The names of the VolumeAttachments to wait for.

    A volume of a Pod that stays to the machine's end is detached after it, by the attach-detach controller.
    """
    names = {nodes.name(node) for node in own}
    attached = [
        attachment
        for attachment in env.client.list(resources.VOLUME_ATTACHMENT).items
        if attachment["spec"].get("nodeName") in names
    ]
    if not attached:
        return []
    kept = set(_volumes_that_stay(own, env))
    return [
        attachment["metadata"]["name"]
        for attachment in attached
        if (attachment["spec"].get("source") or {}).get("persistentVolumeName") not in kept
    ]


def _volumes_that_stay(own: Sequence[Obj], env: Environment) -> Iterator[str]:
    """PersistentVolumes of Pods that are not drained."""
    now = env.clock.now()
    for node in own:
        for pod in eviction.pods_on(node, env):
            if drain.stays(pod, now):
                for claim in _claims_of(pod):
                    yield from _bound_to(claim, pod["metadata"]["namespace"], env)


def _claims_of(pod: Obj) -> Iterator[str]:
    """Names of the Pod's PersistentVolumeClaims; a generic ephemeral volume has one of its own (KEP-1698)."""
    for volume in (pod.get("spec") or {}).get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            yield volume["persistentVolumeClaim"]["claimName"]
        elif "ephemeral" in volume:
            yield f"{pod['metadata']['name']}-{volume['name']}"


def _bound_to(claim: str, namespace: str, env: Environment) -> Iterator[str]:
    try:
        found = env.client.get(resources.PERSISTENT_VOLUME_CLAIM, claim, namespace=namespace)
    except NotFound:
        return
    volume = (found.get("spec") or {}).get("volumeName")
    if volume:
        yield volume
