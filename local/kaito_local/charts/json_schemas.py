"""JSON schemas of Kubernetes' kinds, strict, as kubeconform reads them, from what an API server says at /openapi/v3.

An API server drops fields that it does not know, with a warning; these schemas refuse them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

LOCATION = "{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json"
"""Where kubeconform looks for a kind; to it, the core group is called like its version."""

_PREFIX = "#/components/schemas/"
_DROPPED = {"description", "default", "externalDocs"}
_INT_OR_STRING = {"oneOf": [{"type": "integer"}, {"type": "string"}]}


def kinds(document: Schema) -> Iterator[tuple[str, Schema]]:
    """File name, as in LOCATION, and schema of each kind in one group's document of OpenAPI v3."""
    schemas = document.get("components", {}).get("schemas", {})
    strict = {name: _strict(schema) for name, schema in schemas.items()}
    for name, schema in schemas.items():
        # Options of requests belong to every group.
        found = schema.get("x-kubernetes-group-version-kind", ())
        if len(found) == 1 and "metadata" in schema.get("properties", {}):
            version = found[0]["version"]
            yield (
                f"{found[0]['group'] or version}_{version}_{found[0]['kind'].lower()}.json",
                {"$ref": f"#/definitions/{name}", "definitions": _reachable(name, strict)},
            )


def _strict(schema: Any) -> Any:
    """The schema in JSON Schema's words, without what only people read; an object takes no field it does not name."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            found[key] = {name: _strict(part) for name, part in value.items()}
        elif key == "$ref":
            found[key] = "#/definitions/" + value.removeprefix(_PREFIX)
        elif key not in _DROPPED and not key.startswith("x-kubernetes-"):
            found[key] = value if key in ("enum", "required") else _strict(value)
    if schema.get("x-kubernetes-int-or-string"):
        found |= _INT_OR_STRING
    # An object is whole where it stands; a part of allOf would forbid what the other parts name.
    if "properties" in found and "type" in found and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return {"anyOf": [found, {"type": "null"}]} if found.pop("nullable", False) else found


def _reachable(name: str, schemas: Mapping[str, Schema]) -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    waiting = [name]
    while waiting:
        here = waiting.pop()
        if here not in found:
            found[here] = schemas[here]
            waiting += _references(schemas[here])
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].removeprefix("#/definitions/")
        for part in schema.values():
            yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)
