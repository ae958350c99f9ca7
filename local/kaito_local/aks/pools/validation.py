"""What AKS refuses in an agent pool before it begins anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kaito_local.aks.errors import Refusal, aks_error
from kaito_local.aks.settings import Settings, sizes

SYSTEM_POOL = "nodepool1"
"""The cluster's first pool: shown with the cluster, and not among those that can be changed."""

_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_TAINT = re.compile(r"(?P<key>[^=:\s]+)(=(?P<value>[^=:\s]*))?:(NoSchedule|PreferNoSchedule|NoExecute)")
_SUBNET = re.compile(
    r"(?P<network>/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Network/virtualNetworks/[^/]+)"
    r"/subnets/[^/]+",
    re.IGNORECASE,
)
_LINUX = ("Ubuntu", "Ubuntu2204", "Ubuntu2404", "AzureLinux", "AzureLinux3", "CBLMariner", "AzureContainerLinux")
_ZONES = ("1", "2", "3")
_RESERVED = ("kubernetes.azure.com", "kubernetes.io", "k8s.io")
_ALLOWED = ("node.kubernetes.io", "kubelet.kubernetes.io", "node-restriction.kubernetes.io")


_TEXTS = ("osType", "osSKU", "mode", "vnetSubnetID", "podSubnetID", "scaleSetPriority")
_OBJECTS = ("powerState", "gpuProfile", "nodeLabels", "tags")
_LISTS = ("nodeTaints", "availabilityZones")


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
    _check_types(properties)
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
    if (properties.get("osType") or "Linux") not in ("Linux", "Windows"):
        raise _invalid("agentPoolProfile.osType", f"The OS type {properties['osType']!r} is not supported.")
    if (properties.get("mode") or "User") not in ("User", "System", "Gateway"):
        raise _invalid("agentPoolProfile.mode", f"The mode {properties['mode']!r} is not supported.")
    power = (properties.get("powerState") or {}).get("code", "Running")
    if power not in ("Running", "Stopped"):
        raise _invalid("agentPoolProfile.powerState", f"The power state {power!r} is not Running or Stopped.")
    _check_machines(properties)
    _check_subnet(properties.get("vnetSubnetID") or "", settings.subnet)
    if (pods := properties.get("podSubnetID")) and not _SUBNET.fullmatch(pods):
        raise _invalid("agentPoolProfile.podSubnetID", f"'{pods}' is not the resource id of a subnet.")
    for key, value in (properties.get("nodeLabels") or {}).items():
        _check_label(key, value)
    for taint in properties.get("nodeTaints") or []:
        if not _TAINT.fullmatch(taint):
            raise _invalid("agentPoolProfile.nodeTaints", f"Taint {taint!r} is not of the form key=value:effect.")
    return properties


def _check_types(properties: Mapping[str, Any]) -> None:
    """What is not of a field's type ARM cannot read; null is as good as nothing."""
    for names, kind, called in ((_TEXTS, str, "a string"), (_OBJECTS, Mapping, "an object"), (_LISTS, list, "a list")):
        for name in names:
            value = properties.get(name)
            if value is not None and not isinstance(value, kind):
                raise _invalid(f"agentPoolProfile.{name}", f"{value!r} is not {called}.")
    for name in _LISTS:
        if any(not isinstance(item, str) for item in properties.get(name) or ()):
            raise _invalid(f"agentPoolProfile.{name}", "An item is not a string.")


def _check_machines(properties: Mapping[str, Any]) -> None:
    sku = properties.get("osSKU") or "Ubuntu"
    if (properties.get("osType") or "Linux") == "Linux" and sku not in _LINUX:
        raise _invalid("agentPoolProfile.osSKU", f"The OS SKU {sku!r} is not supported.")
    zones = properties.get("availabilityZones") or []
    if any(zone not in _ZONES for zone in zones):
        raise _invalid("agentPoolProfile.availabilityZones", f"Of the zones {zones!r} only 1, 2 and 3 are supported.")
    if (priority := properties.get("scaleSetPriority") or "Regular") not in ("Regular", "Spot"):
        raise _invalid("agentPoolProfile.scaleSetPriority", f"The priority {priority!r} is not Regular or Spot.")
    driver = (properties.get("gpuProfile") or {}).get("driver", "Install")
    if driver not in ("Install", "None"):
        raise _invalid("agentPoolProfile.gpuProfile.driver", f"The driver {driver!r} is not Install or None.")
    tags = properties.get("tags") or {}
    if not all(isinstance(value, str) for value in tags.values()):
        raise _invalid("agentPoolProfile.tags", "A tag's value is not a string.")


def _check_subnet(subnet: str, own: str) -> None:
    """A cluster's pools are all in one virtual network: that of AKS, or the one that the cluster was made in.

    https://learn.microsoft.com/azure/aks/create-node-pools#limitations. The words for a cluster in AKS's own network
    are AKS's, the others are not published.
    """
    parameter = "agentPoolProfile.vnetSubnetID"
    if not own:
        if subnet:
            raise _refused(
                parameter,
                f"Cannot use a custom subnet because agent pool {SYSTEM_POOL} is using a managed subnet. "
                "Please omit the vnetSubnetID parameter from the request.",
            )
        return
    if not subnet:
        raise _refused(parameter, f"vnetSubnetID is required: agent pool {SYSTEM_POOL} is using a custom subnet.")
    asked, system = _SUBNET.fullmatch(subnet), _SUBNET.fullmatch(own)
    if asked is None:
        raise _invalid(parameter, f"'{subnet}' is not the resource id of a subnet.")
    if system is None or system["network"].lower() != asked["network"].lower():
        raise _invalid(parameter, f"The subnet is not in the virtual network of agent pool {SYSTEM_POOL}.")


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
    return _refused(parameter, f"The value of parameter {parameter} is invalid. Error details: {details}")


def _refused(parameter: str, message: str) -> Refusal:
    return Refusal(
        400, {"code": "InvalidParameter", "details": None, "message": message, "subcode": "", "target": parameter}
    )
