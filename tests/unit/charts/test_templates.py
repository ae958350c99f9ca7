"""The charts as helm reads them from a checkout. Their own suites (charts/*/tests) are run by `make lint`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import yaml

from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
def test_a_chart_is_rendered_without_a_word_about_kubernetes_versions(chart: str) -> None:
    helm = gotools.ensure(["helm"], tools=ROOT / "tools", cache=cache_folder())["helm"]
    command = [str(helm), "template", chart, str(ROOT / "charts" / chart)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
def test_helm_has_no_advice_for_a_chart(chart: str) -> None:
    helm = gotools.ensure(["helm"], tools=ROOT / "tools", cache=cache_folder())["helm"]
    command = [str(helm), "lint", "--strict", str(ROOT / "charts" / chart)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [line for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
def test_the_icon_of_a_chart_is_a_drawing_that_it_brings_along(chart: str) -> None:
    uri = yaml.safe_load((ROOT / "charts" / chart / "Chart.yaml").read_text())["icon"]
    kind, _, drawn = uri.partition(",")
    assert kind == "data:image/svg+xml"
    root = ElementTree.fromstring(unquote(drawn))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert [child.tag.rpartition("}")[2] for child in root] == ["rect", "path", "circle"], "nothing is fetched"


def test_a_chart_without_its_presets_is_not_installed(tmp_path: Path) -> None:
    """A checkout that knows no symbolic links has a file in the link's place."""
    helm = gotools.ensure(["helm"], tools=ROOT / "tools", cache=cache_folder())["helm"]
    chart = tmp_path / "kaito"
    shutil.copytree(ROOT / "charts" / "kaito", chart, symlinks=True)
    (chart / "presets").unlink()
    (chart / "presets").write_text("../../presets")
    command = [str(helm), "template", "kaito", str(chart)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "charts/kaito/presets must be a symbolic link to ../../presets" in done.stderr


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
def test_every_template_has_a_suite_of_its_own(chart: str) -> None:
    folder = ROOT / "charts" / chart
    suites = {file.name.removesuffix("_test.yaml") for file in (folder / "tests").glob("*_test.yaml")}
    templates = {file.stem.replace("-", "_").lower() for file in (folder / "templates").glob("[!_]*")}
    assert templates <= suites
