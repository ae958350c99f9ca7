"""One table says what the API calls everything: the CRDs of the charts agree with it, and no other module spells it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from kaito_hooks.api import claim, resources
from kaito_hooks.api.resources import ApiResource

ROOT = Path(__file__).parents[3]
TABLE = {r.kind: r for r in vars(resources).values() if isinstance(r, ApiResource)}
CRDS = sorted(ROOT.glob("charts/*/crds/*.yaml"))


@pytest.mark.parametrize("path", CRDS, ids=lambda path: path.stem)
def test_a_crd_of_the_charts_is_in_the_table_as_it_is_served(path: Path) -> None:
    spec = yaml.safe_load(path.read_text())["spec"]
    row = TABLE[spec["names"]["kind"]]
    served = {version["name"] for version in spec["versions"] if version["served"]}
    assert (row.group, row.plural, row.namespaced) == (
        spec["group"],
        spec["names"]["plural"],
        spec["scope"] == "Namespaced",
    )
    assert row.version in served


def test_the_two_encodings_of_a_claim_are_those_of_the_table() -> None:
    assert {k: (e.api_version, e.plural) for k, e in claim.ENCODINGS.items()} == {
        k: (TABLE[k].api_version, TABLE[k].plural) for k in ("Machine", "NodeClaim")
    }


def test_no_other_module_spells_a_resource() -> None:
    """The runtime's own two, its lease and its Events, are those of any controller."""
    spelled = {}
    for path in (ROOT / "hooks/kaito_hooks").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Resource"]
        if any(isinstance(value, ast.Constant) for call in made for value in (*call.args, *_values(call))):
            spelled[str(path.relative_to(ROOT / "hooks/kaito_hooks"))] = len(made)
    assert sorted(spelled) == ["runtime/client/events.py", "runtime/manager/leader.py"]


def _values(call: ast.Call) -> list[ast.expr]:
    return [keyword.value for keyword in call.keywords]
