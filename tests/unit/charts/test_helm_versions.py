"""What helm 4 renders and finds: the same objects as helm 3, in every set-up, and nothing to complain of."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from tests.helm_versions import program

from kaito_local.charts.setups import Setup, setups
from kaito_local.machine.folders import ROOT

SETUPS = [pytest.param(setup, id=str(setup)) for setup in setups(ROOT)]


@pytest.mark.parametrize("setup", SETUPS)
def test_both_versions_of_helm_render_the_same_objects(setup: Setup) -> None:
    """What helm 3 renders is compared with the golden renders by `make lint`. helm 4 sorts some kinds otherwise."""
    third, fourth = (objects(setup.render(program(version))) for version in ("helm 3", "helm 4"))
    assert third.keys() == fourth.keys()
    for name, obj in third.items():
        assert fourth[name] == obj, name


@pytest.mark.parametrize("setup", SETUPS)
def test_lint_of_helm_4_has_nothing_to_say(setup: Setup) -> None:
    """chart-testing runs that of helm 3."""
    command = [program("helm 4"), "lint", "--strict", setup.folder, f"--values={setup.values}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def objects(rendered: str) -> dict[tuple[str, str, str], object]:
    """By kind, namespace and name."""
    found: dict[tuple[str, str, str], object] = {}
    for obj in yaml.safe_load_all(rendered):
        if obj:
            key = (obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
            assert key not in found
            found[key] = obj
    return found
