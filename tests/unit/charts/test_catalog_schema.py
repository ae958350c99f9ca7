"""Whatever the schema of the Catalog lets in, the controller reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_hooks.api.catalog import Catalog, HubWeights, ImageWeights, VolumeWeights

CRD = Path(__file__).parents[3] / "charts" / "kaito" / "crds" / "kaito.sh_catalogs.yaml"
TEXTS = {
    "repo": "own/model",
    "revision": "a" * 40,
    "path": "/models",
    "readinessTimeout": "1h30m",
    "retired": "2025-09-30",
}
"""Values of the fields whose text has a pattern."""


def schema_of(name: str) -> dict[str, Any]:
    [version] = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    found: dict[str, Any] = spec[name]["additionalProperties"]
    return found


def shapes(schema: dict[str, Any], name: str = "") -> Iterator[Any]:
    """The values of a schema: of an object every field alone and all together, of each field every shape."""
    if "enum" in schema:
        yield from schema["enum"]
    elif schema["type"] == "object":
        yield from objects(schema)
    elif schema["type"] == "array":
        yield from ([item] for item in shapes(schema["items"]))
    elif schema["type"] == "boolean":
        yield from (False, True)
    elif schema["type"] in ("integer", "number"):
        yield from (schema.get("minimum", 0), 7)
    else:
        assert "pattern" not in schema or name in TEXTS, f"this test knows no text for {name}"
        yield TEXTS.get(name, "text")


def objects(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    properties = schema.get("properties")
    if properties is None:
        yield from ({"key": value} for value in shapes(schema["additionalProperties"]))
        return
    one_of = schema.get("maxProperties") == 1
    first = {name: next(shapes(properties[name], name)) for name in properties}
    required = {name: first[name] for name in schema.get("required", ())}
    if len(required) >= schema.get("minProperties", 0):
        yield required
    if not one_of:
        yield first
    for name, below in properties.items():
        yield from ({**required, name: value} for value in shapes(below, name))


PRESETS = [found for found in shapes(schema_of("presets")) if not (found.get("distributed") and "engines" in found)]
TYPES = list(shapes(schema_of("instanceTypes")))


def test_the_shapes_hold_every_source_of_weights() -> None:
    found = [source for preset in PRESETS for source in preset["weights"].items()]
    sources = {(kind, *(written if kind == "volume" else ())) for kind, written in found}
    volumes = {("volume", kind) for kind in ("persistentVolumeClaim", "nfs", "hostPath", "csi")}
    assert sources == {("image",), ("huggingFace",), *volumes}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_shape_of_a_preset_is_read(preset: dict[str, Any]) -> None:
    found = Catalog.read({"spec": {"presets": {"p": preset}}}).presets["p"]
    [(source, written)] = preset["weights"].items()
    match source:
        case "image":
            assert isinstance(found.weights, ImageWeights)
        case "huggingFace":
            assert isinstance(found.weights, HubWeights)
        case _:
            [(kind, fields)] = written.items()
            assert found.weights == VolumeWeights(kind, fields)


@pytest.mark.parametrize("instance_type", TYPES)
def test_every_shape_of_an_instance_type_is_read(instance_type: dict[str, Any]) -> None:
    found = Catalog.read({"spec": {"instanceTypes": {"t": instance_type}}}).instance_types["t"]
    assert found.gpu_count == instance_type["gpuCount"]
