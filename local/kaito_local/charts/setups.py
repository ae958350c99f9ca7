"""The set-ups in which the charts are looked at, charts/*/ci/<name>-values.yaml, and what helm renders of each."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kaito_local.errors import CommandError

_SUFFIX = "-values.yaml"
DEFAULTS = "defaults"
"""The set-up of every chart that changes no value; the golden renders of the others are told by their difference."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One file of values of the chart in ``folder``."""

    folder: Path
    values: Path

    @property
    def chart(self) -> str:
        """The chart's name, which the release and its namespace have too."""
        return self.folder.name

    @property
    def name(self) -> str:
        """What the file is called for."""
        return self.values.name.removesuffix(_SUFFIX)

    def __str__(self) -> str:
        return f"{self.chart}/{self.name}"

    def render(self, helm: Path, *options: str) -> str:
        """All objects, hooks too. Raises CommandError with helm's words."""
        command: Sequence[str | Path] = (
            *(helm, "template", self.chart, self.folder, f"--namespace={self.chart}", f"--values={self.values}"),
            *options,
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != 0:
            # Helm tells of each symbolic link that it follows, too.
            said = [line for line in done.stderr.splitlines() if line and not line.startswith("walk.go:")]
            raise CommandError("\n".join([f"the set-up {self} is not rendered:", *said]))
        return done.stdout


def charts(root: Path) -> list[Path]:
    """The folders of the charts, by name."""
    return sorted(file.parent for file in (root / "charts").glob("*/Chart.yaml"))


def setups(root: Path) -> list[Setup]:
    """All set-ups; those of one chart together, its defaults first."""
    found = [Setup(folder, file) for folder in charts(root) for file in folder.glob(f"ci/*{_SUFFIX}")]
    return sorted(found, key=lambda setup: (setup.chart, setup.name != DEFAULTS, setup.name))
