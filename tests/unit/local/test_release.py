"""One version for everything that is released, in a repository that holds what a release touches."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from kaito_hooks.api.version import VERSION
from kaito_local.errors import CommandError, UsageError
from kaito_local.images.product import product_images
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.release import CHARTS, changelog_of, release, stamped

ROOT = Path(__file__).parents[3]
TODAY = datetime.date(2027, 2, 3)
NEXT = "77.0.1"


@pytest.fixture(scope="module")
def helm() -> Path:
    return gotools.ensure(["helm"], tools=ROOT / "tools", cache=cache_folder())["helm"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with this clone's charts, presets and versions, and nothing that no commit has."""
    found = tmp_path / "clone"
    for folder in ("charts", "presets"):
        shutil.copytree(ROOT / folder, found / folder, symlinks=True)
    for file in ("pyproject.toml", "CHANGELOG.md", ".gitignore", "hooks/kaito_hooks/api/version.py"):
        (found / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, found / file)
    changelog = (found / "CHANGELOG.md").read_text()
    if "\n- " not in changelog.partition("## [Unreleased]\n")[2].partition("\n## [")[0]:
        (found / "CHANGELOG.md").write_text(changelog.replace("## [Unreleased]\n", "## [Unreleased]\n\n- A change.\n"))
    git(found, "init", "--quiet")
    commit(found)
    return found


def git(clone: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    return subprocess.run(["git", *who, *arguments], cwd=clone, capture_output=True, text=True, check=True).stdout


def commit(clone: Path) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "All")


def test_one_version_is_stamped_everywhere_and_packaged(clone: Path, helm: Path) -> None:
    packages = release(clone, NEXT, helm=helm, today=TODAY)
    assert [package.name for package in packages] == [f"kaito-{NEXT}.tgz", f"gpu-provisioner-{NEXT}.tgz"]
    for chart, package in zip(CHARTS, packages, strict=True):
        with tarfile.open(package) as archive:
            file = archive.extractfile(f"{chart}/Chart.yaml")
            assert file is not None
            packaged = yaml.safe_load(file.read())
        for found in (packaged, yaml.safe_load((clone / "charts" / chart / "Chart.yaml").read_text())):
            assert (found["version"], found["appVersion"]) == (NEXT, NEXT)
    assert tomllib.loads((clone / "pyproject.toml").read_text())["project"]["version"] == NEXT
    assert f'VERSION = "{NEXT}"' in (clone / "hooks/kaito_hooks/api/version.py").read_text()
    assert {image.reference.split(":")[1].split("-")[0] for image in product_images(root=clone)} == {NEXT}
    assert f"## [Unreleased]\n\n## [{NEXT}] - 2027-02-03\n\n" in (clone / "CHANGELOG.md").read_text()
    # What is to be committed is these files and no other.
    changed = {line[3:] for line in git(clone, "status", "--porcelain").splitlines()}
    charts = {f"charts/{chart}/Chart.yaml" for chart in CHARTS}
    assert changed == {"CHANGELOG.md", "hooks/kaito_hooks/api/version.py", "pyproject.toml", *charts}
    assert git(clone, "tag") == ""


def test_this_clone_has_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    charts = [yaml.safe_load((ROOT / "charts" / chart / "Chart.yaml").read_text()) for chart in CHARTS]
    assert {project, VERSION, *(c["version"] for c in charts), *(c["appVersion"] for c in charts)} == {project}


@pytest.mark.parametrize("version", ["", "1", "1.2", "v1.2.3", "1.2.3-rc.1", "1.02.3", "1.2.3\n"])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(UsageError, match=r"is no version of a release; write three numbers, as 1.2.3"):
        stamped({}, version)


def test_an_older_version_is_refused(clone: Path, helm: Path) -> None:
    with pytest.raises(UsageError, match=r"VERSION=0.0.9 is not newer than .*, which pyproject.toml has"):
        release(clone, "0.0.9", helm=helm, today=TODAY)


def test_a_tree_with_changes_is_refused(clone: Path, helm: Path) -> None:
    (clone / "presets" / "more.yaml").write_text("{}")
    with pytest.raises(UsageError, match=r"changes that no commit has \(presets/more.yaml\); commit or stash"):
        release(clone, NEXT, helm=helm, today=TODAY)


def test_a_version_that_is_tagged_is_refused(clone: Path, helm: Path) -> None:
    git(clone, "tag", f"v{NEXT}")
    with pytest.raises(UsageError, match=f"there is a tag v{NEXT} already"):
        release(clone, NEXT, helm=helm, today=TODAY)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-11-29\n\n- All.\n", "tells nothing below"),
        ("# Changelog\n\n## [0.1.0] - 2026-11-29\n\n- All.\n", "tells nothing below"),
        (f"## [Unreleased]\n\n- More.\n\n## [{NEXT}] - 2026-11-29\n", "has a section"),
    ],
    ids=["empty section", "no section", "told already"],
)
def test_a_release_that_nobody_has_described_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        changelog_of(text, NEXT, today=TODAY)


def test_a_chart_that_cannot_be_packaged_leaves_everything_as_it_was(clone: Path, helm: Path) -> None:
    (clone / "charts" / "gpu-provisioner" / "values.yaml").write_text("a: [")
    commit(clone)
    with pytest.raises(CommandError, match="package failed"):
        release(clone, NEXT, helm=helm, today=TODAY)
    assert git(clone, "status", "--porcelain") == ""
