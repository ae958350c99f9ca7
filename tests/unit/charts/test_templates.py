"""The charts' own suites (charts/*/tests), run by helm-unittest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
def test_the_templates_render_what_their_suites_say(chart: str) -> None:
    program = gotools.ensure(["helm-unittest"], tools=ROOT / "tools", cache=cache_folder())["helm-unittest"]
    done = subprocess.run(
        [str(program), str(ROOT / "charts" / chart)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
def test_a_chart_is_rendered_without_a_word_about_kubernetes_versions(chart: str) -> None:
    helm = gotools.ensure(["helm"], tools=ROOT / "tools", cache=cache_folder())["helm"]
    command = [str(helm), "template", chart, str(ROOT / "charts" / chart)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout


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
