"""``make release VERSION=x.y.z``: one version for charts, images, package and CHANGELOG.md, and the charts' packages.

Everything that can be wrong is looked at before anything is written. Nothing is committed, tagged or pushed: the
commands for that are printed. Images take their tag from Chart.yaml's appVersion.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kaito_local.errors import CommandError, LocalError, UsageError
from kaito_local.images.product import VARIANTS, product_images
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder
from kaito_local.machine.progress import Progress

CHARTS = ("kaito", "gpu-provisioner")
UNRELEASED = "## [Unreleased]"
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
# Where the version stands: file, and the lines that hold it.
_PLACES = {
    "pyproject.toml": (r'^version = "(.+)"$',),
    "hooks/kaito_hooks/api/version.py": (r'^VERSION = "(.+)"$',),
    **{f"charts/{chart}/Chart.yaml": (r"^version: (.+)$", r"^appVersion: (.+)$") for chart in CHARTS},
}


def stamped(texts: Mapping[str, str], version: str) -> dict[str, str]:
    """The files of ``_PLACES`` (path to text) with ``version`` in all their places.

    Raises UsageError for a version that is none, or not newer than what stands there.
    """
    if not _VERSION.fullmatch(version):
        raise UsageError(f"VERSION={version} is no version of a release; write three numbers, as 1.2.3")
    found = {}
    for path, patterns in _PLACES.items():
        found[path] = texts[path]
        for pattern in patterns:
            [match] = re.finditer(pattern, found[path], re.MULTILINE)
            if _numbers(version) <= _numbers(match[1]):
                raise UsageError(f"VERSION={version} is not newer than {match[1]}, which {path} has")
            begin, end = match.span(1)
            found[path] = found[path][:begin] + version + found[path][end:]
    return found


def changelog_of(text: str, version: str, *, today: datetime.date) -> str:
    """CHANGELOG.md, in which what is unreleased becomes that version of today (https://keepachangelog.com).

    Raises UsageError where nothing is told, or the version has its section already.
    """
    if f"## [{version}]" in text:
        raise UsageError(f"CHANGELOG.md has a section [{version}] already; choose another VERSION")
    before, heading, rest = text.partition(f"{UNRELEASED}\n")
    told = re.split(r"^## \[", rest, maxsplit=1, flags=re.MULTILINE)[0]
    if not heading or not re.search(r"^- ", told, re.MULTILINE):
        raise UsageError(
            f"CHANGELOG.md tells nothing below {UNRELEASED}; write what {version} changes for its users there"
        )
    return f"{before}{UNRELEASED}\n\n## [{version}] - {today.isoformat()}\n{rest}"


def release(root: Path, version: str, *, helm: Path, today: datetime.date) -> list[Path]:
    """Stamps the files below ``root`` and packages the charts into ``dist``; the packages.

    Raises UsageError for a tree with changes, a version that exists, or what `stamped` and `changelog_of` raise for;
    CommandError when helm fails, and then every file is as it was.
    """
    changed = _git(root, "status", "--porcelain").splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:5])
        raise UsageError(f"the tree has changes that no commit has ({names}); commit or stash them first")
    if _git(root, "tag", "--list", f"v{version}"):
        raise UsageError(f"there is a tag v{version} already; choose another VERSION")
    before = {path: (root / path).read_text() for path in (*_PLACES, "CHANGELOG.md")}
    after = {
        **stamped(before, version),
        "CHANGELOG.md": changelog_of(before["CHANGELOG.md"], version, today=today),
    }
    try:
        _write(root, after)
        for chart in CHARTS:
            _run([str(helm), "package", str(root / "charts" / chart), "--destination", str(root / "dist")], root)
    except BaseException:
        _write(root, before)
        raise
    return [root / "dist" / f"{chart}-{version}.tgz" for chart in CHARTS]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 0, or 1 with a sentence."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__.splitlines()[0])
    parser.add_argument("version", help="three numbers, newer than the last release's")
    version = parser.parse_args(arguments).version
    try:
        helm = gotools.ensure(["helm"], tools=ROOT / "tools", cache=cache_folder(), progress=Progress.to(sys.stderr))
        packages = release(ROOT, version, helm=helm["helm"], today=datetime.datetime.now(datetime.UTC).date())
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(["packaged:", *(f"  {package.relative_to(ROOT)}" for package in packages)]))
    print("\n".join(["the images of make push:", *(f"  {image.reference}" for image in product_images(VARIANTS))]))
    print("look at the changes, then:")
    print(f"  git commit --all --message 'Release {version}' && git tag v{version}")
    print(f"  make push REGISTRY=<registry> VARIANTS={','.join(VARIANTS)} SIGN=<key>")
    for package in packages:
        print(f"  helm push {package.relative_to(ROOT)} oci://<registry>/charts")
    return 0


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _write(root: Path, texts: Mapping[str, str]) -> None:
    for path, text in texts.items():
        (root / path).write_text(text)


def _git(root: Path, *arguments: str) -> str:
    return _run(["git", *arguments], root)


def _run(command: Sequence[str], root: Path) -> str:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandError(f"{' '.join(command[:2])} failed: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
