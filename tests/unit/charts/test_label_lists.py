"""The policies' lists of labels and annotations are those of the controllers."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from subprocess import run

import pytest
import yaml

from kaito_hooks.api import labels, node_labels
from kaito_hooks.workspace.rules.validate import RESERVED_LABELS
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder

ROOT = Path(__file__).parents[3]
POLICIES = ("workspaces", "annotations")


@pytest.fixture(scope="module")
def variables() -> Mapping[str, str]:
    """The expressions of the policies by name."""
    helm = gotools.ensure(["helm"], tools=ROOT / "tools", cache=cache_folder())["helm"]
    shown = [f"--show-only=templates/policy-{name}.yaml" for name in POLICIES]
    command = [helm, "template", "kaito", ROOT / "charts" / "kaito", *shown]
    text = run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    policies = [found for found in yaml.safe_load_all(text) if found["kind"] == "ValidatingAdmissionPolicy"]
    return {variable["name"]: variable["expression"] for policy in policies for variable in policy["spec"]["variables"]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ownLabels", RESERVED_LABELS),
        ("nodeDomains", node_labels.RESERVED_DOMAINS),
        ("nodeKeys", node_labels.RESERVED_KEYS),
        ("requestableKeys", node_labels.REQUESTABLE_KEYS),
        ("knownAnnotations", labels.WORKSPACE_ANNOTATIONS),
    ],
)
def test_a_list_is_the_same_in_both(variables: Mapping[str, str], name: str, expected: tuple[str, ...]) -> None:
    assert sorted(ast.literal_eval(variables[name])) == sorted(expected)


def test_the_known_annotations_of_a_workspace_are_those_that_the_controller_reads() -> None:
    lines = [
        line
        for path in (ROOT / "hooks" / "kaito_hooks" / "workspace").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\b(workspace|ws)\.annotations\b", line)
    ]
    names = set(re.findall(r"\blabels\.([A-Z_]+)\b", "\n".join(lines))) - {"ROLLS"}
    read = {getattr(labels, name) for name in names} | set(labels.ROLLS)
    assert {name for name in read if name.startswith("kaito.sh/")} == set(labels.WORKSPACE_ANNOTATIONS)
