"""The policy's lists of labels are those of the controllers."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from subprocess import run

import pytest
import yaml

from kaito_hooks.api import node_labels
from kaito_hooks.workspace.rules.validate import RESERVED_LABELS
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def variables() -> Mapping[str, str]:
    """The expressions of the policy workspaces.kaito.sh by name."""
    helm = gotools.ensure(["helm"], tools=ROOT / "tools", cache=cache_folder())["helm"]
    command = [helm, "template", "kaito", ROOT / "charts" / "kaito", "--show-only=templates/policy-workspaces.yaml"]
    text = run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    policy = next(iter(yaml.safe_load_all(text)))
    return {variable["name"]: variable["expression"] for variable in policy["spec"]["variables"]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ownLabels", RESERVED_LABELS),
        ("nodeDomains", node_labels.RESERVED_DOMAINS),
        ("nodeKeys", node_labels.RESERVED_KEYS),
        ("requestableKeys", node_labels.REQUESTABLE_KEYS),
    ],
)
def test_a_list_is_the_same_in_both(variables: Mapping[str, str], name: str, expected: tuple[str, ...]) -> None:
    assert sorted(ast.literal_eval(variables[name])) == sorted(expected)
