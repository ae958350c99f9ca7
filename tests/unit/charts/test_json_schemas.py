"""Schemas for kubeconform refuse what an API server would drop or refuse, and nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_local.charts.json_schemas import LOCATION, kinds
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder

DOCUMENT = {
    "components": {
        "schemas": {
            "io.example.Thing": {
                "type": "object",
                "x-kubernetes-group-version-kind": [{"group": "example.io", "kind": "Thing", "version": "v1"}],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"allOf": [{"$ref": "#/components/schemas/io.example.Meta"}], "default": {}},
                    "port": {"x-kubernetes-int-or-string": True},
                    "size": {"type": "integer", "format": "int32", "minimum": 1},
                    "text": {"type": "string", "nullable": True},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            },
            "io.example.Meta": {"type": "object", "properties": {"name": {"type": "string"}}},
            "io.example.Options": {
                "type": "object",
                "x-kubernetes-group-version-kind": [{"group": "", "kind": "DeleteOptions", "version": "v1"}] * 2,
            },
            "io.example.List": {
                "type": "object",
                "properties": {"items": {"type": "array", "items": {"$ref": "#/components/schemas/io.example.Thing"}}},
            },
        }
    }
}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    for name, schema in kinds(DOCUMENT):
        (folder / name).write_text(json.dumps(schema))
    return folder


@pytest.fixture(scope="module")
def kubeconform() -> Path:
    return gotools.ensure(["kubeconform"], tools=ROOT / "tools", cache=cache_folder())["kubeconform"]


def findings(fields: Any, schemas: Path, kubeconform: Path) -> str:
    command = [kubeconform, "-strict", "-output=json", f"-schema-location={schemas}/{LOCATION}", "-"]
    thing = {"apiVersion": "example.io/v1", "kind": "Thing", "metadata": {"name": "a"}, **fields}
    done = subprocess.run(command, input=yaml.safe_dump(thing), capture_output=True, text=True, check=False, timeout=60)
    return " ".join(found["msg"] for found in json.loads(done.stdout).get("resources") or ())


def test_only_kinds_have_a_file(schemas: Path) -> None:
    assert [file.name for file in schemas.iterdir()] == ["example.io_v1_thing.json"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"port": 80, "size": 1, "text": None, "free": {"any": {"thing": 1}}, "labels": {"a": "b"}},
        {"port": "http", "text": "a"},
    ],
)
def test_what_an_api_server_takes_is_taken(fields: Any, schemas: Path, kubeconform: Path) -> None:
    assert findings(fields, schemas, kubeconform) == ""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"szie": 1}, "additional properties 'szie' not allowed"),
        ({"metadata": {"name": "a", "labelz": {}}}, "additional properties 'labelz' not allowed"),
        ({"size": 0}, "minimum: got 0, want 1"),
        ({"size": "1"}, "got string, want integer"),
        ({"port": [80]}, "got array, want integer"),
        ({"labels": {"a": 1}}, "got number, want string"),
        ({"text": 1}, "got number, want string"),
    ],
)
def test_what_an_api_server_drops_or_refuses_is_found(fields: Any, said: str, schemas: Path, kubeconform: Path) -> None:
    assert said in findings(fields, schemas, kubeconform)
