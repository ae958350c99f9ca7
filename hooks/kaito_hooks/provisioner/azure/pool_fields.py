"""The fields of the chart's value agentPool, checked by the SDK's model of an agent pool before anything is ordered.

Names are those of ARM (https://learn.microsoft.com/rest/api/aks/agent-pools/create-or-update, below ``properties``).
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from enum import Enum
from types import NoneType
from typing import Any

from azure.mgmt.containerservice import models
from azure.mgmt.containerservice.models import AgentPoolManagedClusterAgentPoolProfileProperties as PoolProperties

from kaito_hooks.provisioner.configuration import ConfigurationInvalid

VALUE = "agentPool"
DECIDED_BY_THE_CLAIM = frozenset(
    {
        *("count", "minCount", "maxCount", "enableAutoScaling", "scaleDownMode", "powerState"),
        *("vmSize", "osDiskSizeGB", "nodeLabels", "nodeTaints"),
        *("scaleSetPriority", "scaleSetEvictionPolicy", "spotMaxPrice"),
        *("type", "mode", "osType", "nodeImageVersion"),
        *("gatewayProfile", "windowsProfile", "virtualMachinesProfile", "virtualMachineNodesStatus", "status"),
    }
)
"""What a claim says, or what makes a pool one Linux machine of its own."""


def pool_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the SDK's model; ConfigurationInvalid names the field, its value and what is possible."""
    for name in document:
        if name in DECIDED_BY_THE_CLAIM:
            raise ConfigurationInvalid(f"{VALUE}.{name} is not for the chart to set: every claim decides it")
    return _arguments(VALUE, document, PoolProperties, without=DECIDED_BY_THE_CLAIM)


def known_fields() -> dict[str, Any]:
    """Every field that may be set, by ARM's name, with the type of its value."""
    fields = _fields(PoolProperties)
    return {name: hint for name, (_, hint) in fields.items() if name not in DECIDED_BY_THE_CLAIM}


def _arguments(
    path: str, document: Mapping[str, Any], model: type[Any], *, without: frozenset[str] = frozenset()
) -> dict[str, Any]:
    known = {name: field for name, field in _fields(model).items() if name not in without}
    found = {}
    for name, value in document.items():
        if name not in known:
            raise ConfigurationInvalid(
                f"{path}.{name} is no field that AKS knows there; possible are {', '.join(sorted(known))}"
            )
        attribute, hint = known[name]
        found[attribute] = _value(f"{path}.{name}", value, hint)
    return found


def _fields(model: type[Any]) -> dict[str, tuple[str, Any]]:
    """ARM's name -> the model's attribute and its type, of all that can be written. The model spells the names."""
    hints = typing.get_type_hints(model, localns={"_models": models})
    found = {}
    for attribute, hint in hints.items():
        if not attribute.startswith("_"):
            for name in model(**{attribute: _sample(hint)}).as_dict(exclude_readonly=True):
                found[name] = (attribute, hint)
    return found


def _sample(hint: Any) -> Any:
    kind = _kinds(hint)[0]
    origin = typing.get_origin(kind)
    return (origin or kind)()


def _kinds(hint: Any) -> list[Any]:
    """The types that a field takes, None aside."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) is typing.Union else (hint,)
    return [kind for kind in kinds if kind is not NoneType]


def _value(path: str, value: Any, hint: Any) -> Any:
    kinds = _kinds(hint)
    choices = [choice.value for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for choice in kind]
    if choices:
        return _choice(path, value, choices)
    kind = kinds[0]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and isinstance(value, list):
        return [_value(f"{path}[{number}]", part, arguments[0]) for number, part in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {key: _value(f"{path}.{key}", part, arguments[1]) for key, part in value.items()}
    if origin is None and isinstance(value, Mapping) and kind not in _PLAIN:
        return kind(**_arguments(path, value, kind))
    if origin is None and kind in _PLAIN and (type(value) is kind or (kind is float and type(value) is int)):
        return value
    raise ConfigurationInvalid(f"{path} is {value!r}; it must be {_name(kind)}")


def _choice(path: str, value: Any, choices: list[str]) -> str:
    # A pool of another system than Linux is none of ours.
    possible = [choice for choice in choices if not choice.startswith("Windows")]
    if value not in possible:
        raise ConfigurationInvalid(f"{path} is {value!r}; it must be one of {', '.join(possible)}")
    return str(value)


_PLAIN = {str: "a string", int: "a whole number", bool: "true or false", float: "a number"}


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is list:
        return "a list"
    return _PLAIN.get(kind, "a mapping")
