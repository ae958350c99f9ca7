"""What the controller writes into ``status.tuning`` has a typed field in the CRD; the API server prunes the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.unit.workspace.worlds import DIGEST, REPORT

from kaito_hooks.workspace.tuning import milestones, report
from kaito_hooks.workspace.tuning.check import RESULTS, Check
from kaito_hooks.workspace.tuning.state import LAST_FAILURE, METRICS, Record

CRD = Path(__file__).parents[4] / "charts" / "kaito" / "crds" / "kaito.sh_workspaces.yaml"
TYPES = {"string": str, "integer": int, "number": (int, float), "array": list, "object": Mapping, "boolean": bool}


def schema() -> dict[str, Any]:
    [version] = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["tuning"]
    return found


def faults(path: str, wanted: Mapping[str, Any], value: Any) -> Iterator[str]:
    """Where a value has no place in the schema, or another type."""
    if not isinstance(value, TYPES[wanted["type"]]) or isinstance(value, bool) != (wanted["type"] == "boolean"):
        yield f"{path}: {value!r} is no {wanted['type']}"
    elif wanted["type"] == "array":
        for item in value:
            yield from faults(f"{path}[]", wanted["items"], item)
    elif wanted["type"] == "object":
        for key, item in value.items():
            part = wanted.get("properties", {}).get(key) or wanted.get("additionalProperties")
            yield from [f"{path}.{key}: unknown"] if part is None else faults(f"{path}.{key}", part, item)
    if "enum" in wanted and value not in wanted["enum"]:
        yield f"{path}: {value!r} is none of {wanted['enum']}"


def test_every_field_of_the_status_is_in_the_schema() -> None:
    record = Record("1", "r.io/a:1", DIGEST, "why", dict.fromkeys(METRICS, 0.5), {"seed": "42"}, served=True)
    full = {**REPORT, "problems": ["p"], "warnings": ["w"], "reason": "DatasetInvalid"}
    metrics = {"evalLoss": 1.0, "baseEvalLoss": 2.0}
    said = {"curve": "█▁", "checkpointStep": 50, "metrics": metrics}
    reached, _ = milestones.follow(milestones.of({}, "1"), said)
    training = {**reached, LAST_FAILURE: "Pod phi-abcde: init container tune: DiskFull: no space left"}
    for result in RESULTS:
        check = Check("1", "0123456789abcdef", result, "why", report.typed(full)).write()
        assert list(faults("tuning", schema(), record.write() | {"check": check, "training": training})) == []


def test_every_field_of_the_schema_is_written_by_somebody() -> None:
    fields = schema()["properties"]
    written = {"revision", "inputs", "result", "message", *report.FIELDS}
    assert fields["check"]["properties"].keys() == written
    assert fields["metrics"]["properties"].keys() == set(METRICS)
    for part, numbers in report.PARTS.items():
        assert fields["check"]["properties"][part]["properties"].keys() - {"cutShare"} == set(numbers)
