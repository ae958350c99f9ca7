"""What AKS refuses in an agent pool before it begins anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kaito_local.aks.errors import Refusal, aks_error
from kaito_local.aks.settings import Settings, sizes

_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_TAINT = re.compile(r"(?P<key>[^=:\s]+)(=(?P<value>[^=:\s]*))?:(NoSchedule|PreferNoSchedule|NoExecute)")
_RESERVED = ("kubernetes.azure.com", "kubernetes.io", "k8s.io")
_ALLOWED = ("node.kubernetes.io", "kubelet.kubernetes.io", "node-restriction.kubernetes.io")


def check_name(name: str) -> None:
    """Raises Refusal for a name that no pool may have."""
    if not _NAME.fullmatch(name):
        raise _invalid(
            "agentPoolProfile.name",
            f"Agent pool name '{name}' must start with a lowercase letter, have max length of 12, and only have "
            "characters a-z0-9.",
        )


def check_body(body: Any, settings: Settings) -> Mapping[str, Any]:
    """The pool's properties. Raises Refusal."""
    properties = body.get("properties") if isinstance(body, Mapping) else None
    if not isinstance(properties, Mapping):
        raise aks_error(400, "InvalidRequestContent", "The request content has no properties.")
    size = properties.get("vmSize")
    if not isinstance(size, str) or not size:
        raise _invalid("agentPoolProfile.vmSize", "Required parameter agentPoolProfile.vmSize is missing (null).")
    if size.lower() not in sizes():
        message = f"Virtual Machine size {size} is not supported in location {settings.location}."
        raise aks_error(400, "VMSizeNotSupported", message)
    count = properties.get("count", 1)
    if type(count) is not int or not 0 <= count <= 1000:
        raise _invalid("agentPoolProfile.count", f"The count {count!r} is not between 0 and 1000.")
    disk = properties.get("osDiskSizeGB") or 0
    if type(disk) is not int or (disk != 0 and not 30 <= disk <= 2048):
        raise _invalid("agentPoolProfile.osDiskSizeGB", f"The disk size {disk!r} GB is not between 30 and 2048.")
    if properties.get("osType", "Linux") not in ("Linux", "Windows"):
        raise _invalid("agentPoolProfile.osType", f"The OS type {properties['osType']!r} is not supported.")
    if properties.get("mode", "User") not in ("User", "System", "Gateway"):
        raise _invalid("agentPoolProfile.mode", f"The mode {properties['mode']!r} is not supported.")
    power = (properties.get("powerState") or {}).get("code", "Running")
    if power not in ("Running", "Stopped"):
        raise _invalid("agentPoolProfile.powerState", f"The power state {power!r} is not Running or Stopped.")
    for key, value in (properties.get("nodeLabels") or {}).items():
        _check_label(key, value)
    for taint in properties.get("nodeTaints") or []:
        if not isinstance(taint, str) or not _TAINT.fullmatch(taint):
            raise _invalid("agentPoolProfile.nodeTaints", f"Taint {taint!r} is not of the form key=value:effect.")
    return properties


def _check_label(key: str, value: Any) -> None:
    domain, _, name = key.rpartition("/")
    reserved = _within(domain, _RESERVED) and not _within(domain, _ALLOWED)
    well_formed = _LABEL_NAME.fullmatch(name) and (not domain or _DOMAIN.fullmatch(domain))
    if reserved or not well_formed:
        raise _invalid("agentPoolProfile.nodeLabels", f"Label key '{key}' is not allowed.")
    if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
        raise _invalid("agentPoolProfile.nodeLabels", f"The value {value!r} of label '{key}' is not allowed.")


def _within(domain: str, bases: tuple[str, ...]) -> bool:
    return any(domain == base or domain.endswith(f".{base}") for base in bases)


def _invalid(parameter: str, details: str) -> Refusal:
    message = f"The value of parameter {parameter} is invalid. Error details: {details}"
    return Refusal(
        400, {"code": "InvalidParameter", "details": None, "message": message, "subcode": "", "target": parameter}
    )
