"""The charts' own suites (charts/*/tests), run by helm-unittest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kaito_local import gotools
from kaito_local.state import cache_folder

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
def test_the_templates_render_what_their_suites_say(chart: str) -> None:
    program = gotools.ensure(["helm-unittest"], tools=ROOT / "tools", cache=cache_folder())["helm-unittest"]
    done = subprocess.run(
        [str(program), str(ROOT / "charts" / chart)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
