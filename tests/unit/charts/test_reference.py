"""The documents of docs/reference say everything that their sources do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_local.charts import reference
from kaito_local.charts.shapes import fields, limits_of, type_of
from kaito_local.charts.tables import code, table, text
from kaito_local.machine.folders import ROOT

CHARTS = ("kaito", "gpu-provisioner")
DEFINITIONS = {"port": {"type": "integer", "minimum": 1, "description": "A port."}}


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    return {str(file.relative_to(ROOT)): content for file, content in reference.documents(ROOT).items()}


def rows(document: str) -> dict[str, list[str]]:
    cells = [line.strip("| ").split(" | ") for line in document.splitlines() if line.startswith("| `")]
    return {first.strip("`"): others for first, *others in cells}


def keys(values: Any, path: str = "") -> list[str]:
    """Every key of a values.yaml that has a comment of its own: not those inside of what one value is."""
    found = []
    for name, value in values.items():
        found.append(f"{path}{name}")
        if isinstance(value, dict) and name not in ("resources", "nodeSelector", "affinity", "labels"):
            found += keys(value, f"{path}{name}.")
    return found


@pytest.mark.parametrize("chart", CHARTS)
def test_every_default_has_a_row_with_type_and_meaning(chart: str, documents: dict[str, str]) -> None:
    found = rows(documents[f"docs/reference/values-{chart}.md"])
    values = yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text())
    for key in keys(values):
        kind, _, meaning = found[key]
        assert kind != "any", key
        assert meaning, key


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("maxNodesPerWorkspace", ["integer", "`100`"]),
        ("cloudProviderName", ["string", '`"azure"`']),
        ("timeouts.claimReady", ["string", '`"15m"`']),
        ("registries.plainHTTP", ["list of string", "`[]`"]),
        ("presets.<name>.gpuCount", ["integer", ""]),
        ("nodeClaim.extraRequirements[].operator", ["string", ""]),
    ],
)
def test_a_value_has_its_type_and_default(key: str, row: list[str], documents: dict[str, str]) -> None:
    assert rows(documents["docs/reference/values-kaito.md"])[key][:2] == row


def test_values_of_upstreams_chart_are_not_listed_as_ours(documents: dict[str, str]) -> None:
    found = rows(documents["docs/reference/values-kaito.md"])
    assert not {"featureGates", "webhook", "image.repository", "imagePullSecrets"} & found.keys()


def test_every_kind_of_the_charts_has_a_document(documents: dict[str, str]) -> None:
    kinds = {"workspace": "resource.instanceType", "catalog": "spec.presets.<name>.weights"}
    kinds |= {"machine": "spec.machineTemplateRef", "nodeclaim": "spec.requirements[].key"}
    for kind, field in kinds.items():
        assert field in rows(documents[f"docs/reference/{kind}.md"]), kind


@pytest.mark.parametrize("crd", sorted((ROOT / "charts").glob("*/crds/*.yaml")), ids=lambda file: file.stem)
def test_every_field_of_a_kind_says_what_it_is(crd: Path) -> None:
    """`kubectl explain` reads the same."""
    [version] = yaml.safe_load(crd.read_text())["spec"]["versions"]
    found = fields(version["schema"]["openAPIV3Schema"], {})
    own = {"apiVersion", "kind", "metadata"}
    assert [field.path for field in found if not field.schema.get("description") and field.path not in own] == []


def test_the_rules_of_a_kind_are_told_with_the_field_that_they_guard(documents: dict[str, str]) -> None:
    document = documents["docs/reference/workspace.md"]
    assert "| `tuning` | invalid value: Method must be lora or qlora |" in document
    assert "| the object | Either Inference or Tuning must be specified, but not both |" in document


def test_every_preset_and_every_instance_type_has_its_row(documents: dict[str, str]) -> None:
    found = rows(documents["docs/reference/presets.md"])
    for file in [*(ROOT / "presets" / "models").glob("*"), *(ROOT / "presets" / "instance-types").glob("*")]:
        assert not set(yaml.safe_load(file.read_text())) - found.keys(), file.name
    assert found["falcon-40b"][:3] == ["falcon", "2", "90"]
    assert found["g6e.48xlarge"][:3] == ["8", "357", "L40S"]
    assert found["Standard_NC6s_v3"][-1] == "2025-09-30"


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "array", "items": {"type": "array", "items": {"type": "string"}}}, "list of list of string"),
        ({"type": "object", "additionalProperties": {"$ref": "#/$defs/port"}}, "map of integer"),
        ({"type": ["integer", "null"]}, "integer or null"),
        ({"x-kubernetes-int-or-string": True}, "integer or string"),
        ({"enum": ["a", ""]}, "string"),
        ({"type": "array"}, "list"),
        ({}, "any"),
    ],
)
def test_a_type_in_words(schema: dict[str, Any], kind: str) -> None:
    assert type_of(schema, DEFINITIONS) == kind


def test_limits_in_words() -> None:
    schema = {"type": "array", "maxItems": 3, "items": {"enum": ["a", ""]}}
    assert limits_of(schema, DEFINITIONS) == ["items: at most `3`", 'each one of `a`, `""`']
    assert limits_of({"type": "string", "not": {"const": "latest"}}, {}) == ["not `latest`"]


def test_fields_of_lists_maps_and_definitions_have_paths() -> None:
    schema = {
        "properties": {
            "ports": {"type": "array", "items": {"type": "object", "properties": {"port": {"$ref": "#/$defs/port"}}}},
            "of": {
                "type": "object",
                "required": ["x"],
                "additionalProperties": {"properties": {"x": {"type": "string"}}, "required": ["x"]},
            },
        }
    }
    found = {field.path: field for field in fields(schema, DEFINITIONS)}
    assert list(found) == ["ports", "ports[].port", "of", "of.<name>.x"]
    assert found["ports[].port"].schema["description"] == "A port."
    assert found["of.<name>.x"].required
    assert not found["of"].required


def test_what_is_in_a_cell_stays_in_it() -> None:
    assert table(("a",), [("one\ntwo | three",)]) == "| a |\n| --- |\n| one two \\| three |\n"
    assert code("a`b") == "`` a`b ``"
    assert text("<x> and `<y>`") == "\\<x> and `<y>`"
