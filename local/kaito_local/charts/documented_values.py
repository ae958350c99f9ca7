"""What values.schema.json takes from values.yaml: the comments, for editors, and which values may not be null."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kaito_local.charts.setups import charts

Keys = tuple[str, ...]

# An example, which follows its value, has two spaces after its sign.
_COMMENT = re.compile(r"\s*# (?! )(?P<text>.*\S)\s*$")


def schemas(root: Path) -> dict[Path, str]:
    """File -> content of the schema of each chart, with what it takes from the values.yaml beside it."""
    found = {}
    for chart in charts(root):
        file = chart / "values.schema.json"
        document = written(json.loads(file.read_text()), (chart / "values.yaml").read_text())
        found[file] = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return found


def comments(text: str) -> dict[Keys, str]:
    """The comment directly above each key of a values.yaml, its lines joined; "" where there is none."""
    lines = text.splitlines()
    return {path: _above(lines, mark.line) if mark else "" for path, mark in _keys(yaml.compose(text))}


def _keys(node: yaml.Node | None, path: Keys = ()) -> Iterator[tuple[Keys, yaml.Mark | None]]:
    """The path of each key, and where it stands if that is a line of its own."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), None if node.flow_style else key.start_mark
            yield from _keys(value, (*path, key.value))


def _above(lines: list[str], line: int) -> str:
    found: list[str] = []
    while line > 0 and (match := _COMMENT.match(lines[line - 1])):
        found.insert(0, match["text"])
        line -= 1
    return " ".join(found)


def fields(part: Mapping[str, Any], path: Keys = ()) -> Iterator[tuple[Keys, dict[str, Any]]]:
    """The values that a schema names one by one, each with its part of the schema.

    What stands under ``$defs`` is a type of Kubernetes or of the Catalog, or belongs to a list or a map of the user's.
    """
    for name, field in part.get("properties", {}).items():
        yield (*path, name), field
        yield from fields(field, (*path, name))


def written(schema: dict[str, Any], text: str) -> dict[str, Any]:
    """The schema itself, which is changed: with what it takes from the ``text`` of a values.yaml."""
    texts = comments(text)
    for path, field in fields(schema):
        if texts.get(path):
            _put_first(field, "description", texts[path])
    for path, part in [((), schema), *fields(schema)]:
        names = part.get("properties", {})
        needed = [name for name in names if (*path, name) in texts and _not_null(names[name], schema["$defs"])]
        part.pop("required", None)
        if needed:
            part["required"] = needed
    return schema


def _put_first(field: dict[str, Any], key: str, value: Any) -> None:
    rest = {name: field[name] for name in field if name != key}
    field.clear()
    field.update({key: value} | rest)


def _not_null(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    """Whether a template cannot do without: helm takes a default away where a file says null.

    Maps and lists of the user's may be left empty so, as where all lines below a key are commented out.
    """
    of_kubernetes = definitions.get(field.get("$ref", "").removeprefix("#/$defs/"), {})
    kinds = field.get("type") or of_kubernetes.get("type", "string")
    return ("properties" in field or kinds not in ("object", "array")) and "null" not in kinds
