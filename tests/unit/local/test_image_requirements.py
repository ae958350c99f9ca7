"""What an image installs, written by the script that runs inside it: no package of ours, only the standard library."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "images" / "requirements.py"
_PROJECT = """
[project]
name = "kaito"
version = "1.2.3"
dependencies = ["never-asked-for"]

[project.optional-dependencies]
torch = ["safetensors", "torch"]
serving = ["kaito[torch]", "kaito-plugins[all]", "ray[serve]>=2", "uvicorn"]
everything = ["kaito[torch,serving]"]
"""


def run(folder: Path, extra: str) -> subprocess.CompletedProcess[str]:
    """The script beside a pyproject.toml, as a Dockerfile puts them."""
    shutil.copy(SCRIPT, folder)
    (folder / "pyproject.toml").write_text(_PROJECT)
    command = [sys.executable, "-I", "-S", folder / SCRIPT.name, extra, folder / "out"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("torch", ["safetensors", "torch"]),
        ("serving", ["kaito-plugins[all]", "ray[serve]>=2", "uvicorn"]),
        ("everything", []),
    ],
)
def test_the_packages_of_an_extra_are_written_without_the_projects_own_extras(
    tmp_path: Path, extra: str, packages: list[str]
) -> None:
    assert run(tmp_path, extra).returncode == 0
    assert (tmp_path / "out" / "requirements.txt").read_text().split() == packages


def test_the_version_of_the_project_is_known_where_it_is_only_copied(tmp_path: Path) -> None:
    run(tmp_path, "torch")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"requirements.txt", "kaito.dist-info"}
    (found,) = metadata.distributions(path=[str(tmp_path / "out")])
    assert (found.metadata["Name"], found.version) == ("kaito", "1.2.3")


def test_an_extra_that_does_not_exist_fails_and_writes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "nope")
    assert done.returncode != 0
    assert "nope" in done.stderr
    assert not (tmp_path / "out").exists()
