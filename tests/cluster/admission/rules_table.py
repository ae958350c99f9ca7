"""The table of rule cases (rules.yaml), read into types; it drives the API server and the controller's own rules."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).parent / "rules.yaml"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One manifest, or one change of `old` into `new`, and what is said about it; `refused` "" means admitted."""

    id: str
    rule: str
    old: Manifest | None
    new: Manifest
    refused: str
    path: str
    schema: str
    python: bool
    default_engine: str

    @property
    def expected(self) -> str:
        """The text that the API server's answer contains; "" if it admits the case."""
        return self.schema or self.refused


def creations() -> list[Case]:
    """The cases of CREATE."""
    table = _table()
    return [_case(entry, table["bases"], old=None) for entry in table["cases"]]


def updates() -> list[Case]:
    """The cases of UPDATE."""
    table = _table()
    cases = []
    for entry in table["updates"]:
        old = _changed(table["bases"][entry["base"]], entry.get("from", {}))
        cases.append(_case(entry, {entry["base"]: old}, old=old))
    return cases


def catalog_values() -> Mapping[str, Any]:
    """Values of the chart that make the Catalog of the table."""
    return dict(_table()["catalog"])


def _table() -> Any:
    return yaml.safe_load(TABLE.read_text())


def _case(entry: Mapping[str, Any], bases: Mapping[str, Manifest], *, old: Manifest | None) -> Case:
    new = _changed(bases[entry["base"]], entry.get("changes", {}))
    if "adapters" in entry:
        new["inference"]["adapters"] = [
            {"source": {"name": f"a{n}", "image": f"registry.example.com/a{n}:0.1.0"}} for n in range(entry["adapters"])
        ]
    if "adapterStrength" in entry:
        new["inference"]["adapters"][0]["strength"] = str(entry["adapterStrength"])
    return Case(
        id=f"{entry['rule']} {entry['id']}",
        rule=entry["rule"],
        old=old,
        new=new,
        refused=entry.get("refused", ""),
        path=entry.get("path", ""),
        schema=entry.get("schema", ""),
        python=entry.get("python", True),
        default_engine=entry.get("defaultEngine", "transformers"),
    )


def _changed(base: Manifest, changes: Mapping[str, Any]) -> Manifest:
    manifest = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = manifest
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = copy.deepcopy(value)
    return manifest
