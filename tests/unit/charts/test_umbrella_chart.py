"""Both charts as parts of an umbrella chart, as helm's guide to best practices has it."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

import pytest
import yaml
from tests.helm_versions import program

from kaito_local.machine.folders import ROOT

CHARTS = ("kaito", "gpu-provisioner")


@pytest.fixture(scope="module")
def umbrella(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chart that holds both, each on a condition, the first of them under two names."""
    folder = tmp_path_factory.mktemp("umbrella") / "platform"
    folder.mkdir()
    parts = [(chart, chart) for chart in CHARTS] + [("kaito", "models")]
    written = {
        "apiVersion": "v2",
        "name": folder.name,
        "version": "1.0.0",
        "dependencies": [
            {
                "name": chart,
                "alias": alias,
                "version": ">=0.0.0-0",
                "repository": f"file://{ROOT / 'charts' / chart}",
                "condition": f"{alias}.enabled",
            }
            for chart, alias in parts
        ],
    }
    (folder / "Chart.yaml").write_text(yaml.safe_dump(written))
    (folder / "values.yaml").write_text(yaml.safe_dump({alias: {"enabled": False} for _, alias in parts}))
    build = [program("helm 3"), "dependency", "build", "--skip-refresh", folder]
    run(build, check=True, capture_output=True, timeout=120)
    return folder


def rendered(umbrella: Path, *options: str, version: str = "helm 3") -> CompletedProcess[str]:
    command = [program(version), "template", "mine", umbrella, "--namespace=models", *options]
    return run(command, capture_output=True, text=True, check=False, timeout=120)


def objects(umbrella: Path, *options: str, version: str = "helm 3") -> list[Any]:
    done = rendered(umbrella, *options, version=version)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@pytest.mark.parametrize("version", ["helm 3", "helm 4"])
@pytest.mark.parametrize("chart", CHARTS)
def test_a_condition_of_an_umbrella_chart_is_no_unknown_value(umbrella: Path, chart: str, version: str) -> None:
    """https://helm.sh/docs/chart_best_practices/dependencies/#conditions-and-tags"""
    found = objects(umbrella, f"--set={chart}.enabled=true", version=version)
    names = {obj["metadata"]["name"] for obj in found if obj["kind"] == "Deployment"}
    assert names == {f"mine-{chart}"}
    assert objects(umbrella, version=version) == []


def test_a_typo_below_an_umbrella_chart_is_refused_with_its_path_and_name(umbrella: Path) -> None:
    done = rendered(umbrella, "--set=kaito.enabled=true", "--set=kaito.nodeApi=none")
    assert done.returncode != 0
    assert "kaito:\n- at '': additional properties 'nodeApi' not allowed" in done.stderr


def test_a_chart_under_another_name_calls_its_objects_so(umbrella: Path) -> None:
    found = objects(umbrella, "--set=models.enabled=true")
    assert {obj["metadata"]["name"] for obj in found if obj["kind"] == "Deployment"} == {"mine-models"}


def test_a_null_removes_a_preset_below_an_umbrella_chart_with_helm_4(umbrella: Path) -> None:
    """helm 3 hands no null on to the parts of a chart."""
    options = ("--set=kaito.enabled=true", "--set=kaito.presets.phi-2=null")
    [catalog] = [obj for obj in objects(umbrella, *options, version="helm 4") if obj["kind"] == "Catalog"]
    assert "phi-2" not in catalog["spec"]["presets"]
    assert "phi-3-mini-4k-instruct" in catalog["spec"]["presets"]


def test_what_an_umbrella_chart_shares_reaches_both(umbrella: Path) -> None:
    switched = [f"--set={chart}.enabled=true" for chart in CHARTS]
    shared = ["--set=global.imageRegistry=registry.example.com:5000", "--set=global.storageClass=fast"]
    found = objects(umbrella, *switched, *shared, "--set=global.imagePullSecrets={reader}")
    for deployment in (obj["spec"]["template"]["spec"] for obj in found if obj["kind"] == "Deployment"):
        assert deployment["containers"][0]["image"].startswith("registry.example.com:5000/")
        assert deployment["imagePullSecrets"] == [{"name": "reader"}]
