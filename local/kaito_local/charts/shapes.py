"""What a JSON schema says of one field, in words: its type, and what its values must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_local.charts.tables import code

Schema = Mapping[str, Any]

_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "minLength": "characters: at least {}",
    "maxLength": "characters: at most {}",
    "minItems": "items: at least {}",
    "maxItems": "items: at most {}",
    "minProperties": "keys: at least {}",
    "maxProperties": "keys: at most {}",
    "pattern": "matches {}",
    "format": "format {}",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: ``path`` with ``[]`` for the items of a list and ``<name>`` for the keys of a map."""

    path: str
    schema: Schema
    required: bool


def fields(schema: Schema, definitions: Mapping[str, Schema], path: str = "") -> Iterator[Field]:
    """All fields below a schema, parents first, in its order; ``definitions`` are what ``#/$defs/`` names."""
    schema = resolved(schema, definitions)
    required = schema.get("required", ())
    for name, part in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        found = resolved(part, definitions)
        yield Field(here, found, name in required)
        yield from fields(found, definitions, here)
    for key, step in (("items", "[]"), ("additionalProperties", ".<name>")):
        below = resolved(schema.get(key) or {}, definitions) if isinstance(schema.get(key), Mapping) else {}
        if "properties" in below or "items" in below or isinstance(below.get("additionalProperties"), Mapping):
            yield from fields(below, definitions, f"{path}{step}")


def resolved(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """The schema with the definition that it names in it; what it says itself wins."""
    named = [schema, *schema.get("allOf", ())]
    found: dict[str, Any] = {}
    for part in named:
        definition = definitions.get(str(part.get("$ref", "")).rpartition("/")[2], {})
        found = {**definition, **found, **{key: value for key, value in part.items() if key != "allOf"}}
    return found


def type_of(schema: Schema, definitions: Mapping[str, Schema]) -> str:
    """``string``, ``list of string``, ``map of integer``, ``integer or string``; ``any`` where nothing is said."""
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    given = schema.get("type")
    if given is None:
        return "string" if "enum" in schema else "any"
    kinds = [given] if isinstance(given, str) else list(given)
    for key, kind, name in (("items", "array", "list"), ("additionalProperties", "object", "map")):
        below = schema.get(key)
        if kind in kinds and isinstance(below, Mapping) and below:
            kinds[kinds.index(kind)] = f"{name} of {type_of(resolved(below, definitions), definitions)}"
    return " or ".join("list" if kind == "array" else kind for kind in kinds)


def limits_of(schema: Schema, definitions: Mapping[str, Schema]) -> list[str]:
    """What its values, and the items of a list of plain values, must be."""
    found = []
    if "enum" in schema:
        found.append("one of " + ", ".join(code(value) if value != "" else '`""`' for value in schema["enum"]))
    found += [text.format(code(schema[key])) for key, text in _LIMITS.items() if key in schema]
    if "not" in schema and "const" in schema["not"]:
        found.append(f"not {code(schema['not']['const'])}")
    items = schema.get("items")
    if isinstance(items, Mapping):
        found += [f"each {text}" for text in limits_of(resolved(items, definitions), definitions)]
    return found
