"""Every value has a comment that says what it is for, a type, and the comment again where editors show it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_local.charts.documented_values import comments, fields, schemas
from kaito_local.charts.setups import charts
from kaito_local.machine.folders import ROOT

CHARTS = ROOT / "charts"
NAMES = [chart.name for chart in charts(ROOT)]
TYPED = {"type", "enum", "const", "$ref", "allOf"}


def schema(chart: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CHARTS / chart / "values.schema.json").read_text())
    return loaded


def defaults(chart: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    return loaded


def parts(part: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every property of a schema, also those of its definitions, lists and maps."""
    for name, field in part.get("properties", {}).items():
        yield (*path, name), field
        yield from parts(field, (*path, name))
    for name in ("items", "additionalProperties"):
        if isinstance(part.get(name), dict):
            yield from parts(part[name], (*path, name))
    for name, definition in part.get("$defs", {}).items():
        yield from parts(definition, (*path, name))


@pytest.mark.parametrize("chart", NAMES)
def test_every_value_has_a_comment(chart: str) -> None:
    texts = comments((CHARTS / chart / "values.yaml").read_text())
    named = {path for path, _ in fields(schema(chart))}
    lacking = [".".join(path) for path, text in texts.items() if path in named and not text]
    assert lacking == []


@pytest.mark.parametrize("chart", NAMES)
def test_every_default_is_a_value_that_the_schema_names(chart: str) -> None:
    known = dict(fields(schema(chart)))

    def unknown(values: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
        for name, value in values.items():
            here = (*path, name)
            if here not in known:
                yield ".".join(here)
            elif isinstance(value, dict) and "properties" in known[here]:
                yield from unknown(value, here)

    assert list(unknown(defaults(chart), ())) == []


def test_the_schemas_have_the_comments_of_values_yaml_and_ask_for_its_keys() -> None:
    """If not: make generate"""
    found = schemas(ROOT)
    assert found == {file: file.read_text() for file in CHARTS.glob("*/values.schema.json")}
    assert len(found) == len(NAMES) == 2


def test_a_schema_takes_comments_and_keys_from_the_values_beside_it(tmp_path: Path) -> None:
    chart = tmp_path / "charts" / "mine"
    chart.mkdir(parents=True)
    (chart / "Chart.yaml").write_text("name: mine\n")
    (chart / "values.yaml").write_text("# How many.\na: 1\n# Left empty by who likes.\nb: {}\n")
    before = {"$defs": {}, "properties": {"a": {"type": "integer", "description": "Old."}, "b": {"type": "object"}}}
    (chart / "values.schema.json").write_text(json.dumps(before))
    [(file, text)] = schemas(tmp_path).items()
    assert file == chart / "values.schema.json"
    after = json.loads(text)
    assert after["required"] == ["a"]
    assert after["properties"]["a"] == {"description": "How many.", "type": "integer"}
    assert after["properties"]["b"]["description"] == "Left empty by who likes."


@pytest.mark.parametrize("chart", NAMES)
def test_every_property_of_the_schema_has_a_type_and_a_description(chart: str) -> None:
    whole = schema(chart)
    definitions = whole["$defs"]
    for path, field in parts(whole):
        assert TYPED & field.keys(), ".".join(path)
        name = field.get("$ref", "").removeprefix("#/$defs/")
        assert field.get("description") or definitions.get(name, {}).get("description"), ".".join(path)


@pytest.mark.parametrize("chart", NAMES)
def test_no_object_of_the_schema_takes_what_it_does_not_name(chart: str) -> None:
    """But `global`, which umbrella charts share with charts that know other values."""
    for path, field in parts(schema(chart)):
        if "properties" in field and path != ("global",):
            assert field.get("additionalProperties") is False, ".".join(path)


def test_a_comment_is_what_stands_directly_above_its_key() -> None:
    text = """
# First line,
# second line.
a:
  # Of b.
  b: 1
#  my: example
# Of c.
c: {d: 1}

# Of nobody.

e: 2
"""
    assert comments(text) == {
        ("a",): "First line, second line.",
        ("a", "b"): "Of b.",
        ("c",): "Of c.",
        ("c", "d"): "",
        ("e",): "",
    }


@pytest.mark.parametrize("chart", NAMES)
def test_every_value_of_upstreams_chart_that_the_schema_lets_through_has_an_answer(chart: str) -> None:
    suite = yaml.safe_load((CHARTS / chart / "tests" / "upstream_values_test.yaml").read_text())
    answered = {test["it"] for test in suite["tests"]}
    let_through = {".".join(path) for path, field in fields(schema(chart)) if field.get("$ref") == "#/$defs/ofUpstream"}
    assert answered == let_through
