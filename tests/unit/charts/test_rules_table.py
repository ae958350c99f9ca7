"""The rules' table against the controller's own rules: the same manifests, the same texts, the same places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.cluster.admission.rules_table import Case, catalog_values, creations, updates

from kaito_hooks.api.catalog import ENGINES, Catalog
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.rules.changes import check_change
from kaito_hooks.workspace.rules.validate import check

PRESETS = Path(__file__).parents[3] / "presets"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """What the chart renders for Azure with the table's values."""
    presets = {}
    for path in sorted((PRESETS / "models").glob("*.yaml")):
        presets |= yaml.safe_load(path.read_text())
    types = yaml.safe_load((PRESETS / "instance-types" / "azure.yaml").read_text())
    values = catalog_values()
    return Catalog.read(
        {
            "spec": {
                "cloud": "azure",
                "uncheckedInstanceTypePrefixes": ["Standard_N", "Standard_D"],
                "presets": presets | values["presets"],
                "instanceTypes": types | values["instanceTypes"],
            }
        }
    )


@pytest.mark.parametrize("case", [case for case in creations() if case.python], ids=lambda case: case.id)
def test_the_controller_decides_as_the_table_says(catalog: Catalog, case: Case) -> None:
    [engine] = [engine for engine in ENGINES if engine == case.default_engine]
    problems = check(
        Workspace.read(case.new), replace(catalog, default_engine=engine), max_nodes=Settings().max_nodes_per_workspace
    )
    if not case.refused:
        assert problems == []
        return
    assert [
        problem for problem in problems if case.refused in problem.message and problem.path.startswith(case.path)
    ], problems


@pytest.mark.parametrize("case", [case for case in updates() if case.python], ids=lambda case: case.id)
def test_the_controller_judges_changes_as_the_table_says(case: Case) -> None:
    assert case.old is not None
    new = Workspace.read(case.new)
    # A changed field must hold the rules of its own again; the Catalog's rules are for new Workspaces only.
    problems = [
        *check_change(Workspace.read(case.old), new),
        *check(new, None, max_nodes=Settings().max_nodes_per_workspace),
    ]
    if not case.refused:
        assert problems == []
        return
    assert [
        problem for problem in problems if case.refused in problem.message and problem.path.startswith(case.path)
    ], problems
