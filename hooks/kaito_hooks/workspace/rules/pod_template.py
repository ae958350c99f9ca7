"""A Pod template of the user's own, which no schema describes: is it one, what does it need, where does it listen?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from kaito_hooks.api import labels

_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

METADATA = "invalid value: metadata must be a mapping, and its labels and annotations mappings of text to text"
CONTAINERS = "invalid value: spec must be a mapping with containers, a list of at least one container with a name"
POD = (
    "invalid value: each container needs an image and a name of its own of small letters, digits and -, "
    "and restartPolicy is Always"
)
LISTS = "invalid value: spec.initContainers and spec.tolerations must be lists of mappings"


def problems(template: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with its shape, as far as this controller relies on it; the rest is for the API server to judge.

    As everywhere in the API an explicit null is an absent field.
    """
    metadata = template.get("metadata")
    if metadata is not None and not _is_metadata(metadata):
        yield METADATA
    spec = template.get("spec")
    if not isinstance(spec, Mapping) or not _are_containers(spec.get("containers")):
        yield CONTAINERS
        return
    if not _can_be_served(spec):
        yield POD
    if not all(spec.get(name) is None or _are_mappings(spec[name]) for name in ("initContainers", "tolerations")):
        yield LISTS


def requests_gpus(template: Mapping[str, Any]) -> bool:
    """Whether one of its containers asks for an NVIDIA GPU."""
    return any(
        _mapping(_mapping(container.get("resources")).get(part)).get(labels.GPU_RESOURCE) not in (None, 0, "0")
        for field in ("containers", "initContainers")
        for container in _mappings(_mapping(template.get("spec")).get(field))
        for part in ("limits", "requests")
    )


def first_port(template: Mapping[str, Any]) -> int | None:
    """The TCP port that its containers name first; None if they name none."""
    for container in _mappings(_mapping(template.get("spec")).get("containers")):
        for port in _mappings(container.get("ports")):
            number = port.get("containerPort")
            if isinstance(number, int) and port.get("protocol") in (None, "TCP"):
                return number
    return None


def _is_metadata(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_text_map(value.get(name)) for name in ("labels", "annotations"))


def _is_text_map(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values()))


def _are_containers(value: object) -> bool:
    return _are_mappings(value) and bool(value) and all(isinstance(c.get("name"), str) and c["name"] for c in value)


def _can_be_served(spec: Mapping[str, Any]) -> bool:
    """What a Deployment asks of its Pods' containers, as far as it can be read off them."""
    names = [container["name"] for container in spec["containers"]]
    images = [container.get("image") for container in spec["containers"]]
    return (
        all(_DNS_1123.fullmatch(name) for name in names)
        and len(set(names)) == len(names)
        and all(isinstance(image, str) and image for image in images)
        and spec.get("restartPolicy") in (None, "Always")
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return value if _are_mappings(value) else []


def _are_mappings(value: object) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)
