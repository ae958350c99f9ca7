"""The versions of helm that the charts are tried with."""

from __future__ import annotations

import sys
from pathlib import Path

from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder
from kaito_local.machine.progress import Progress

PROGRAMS = {"helm 3": "helm", "helm 4": "helm4"}
"""What the program of each version is called in kaito_local.machine.gotools."""


def program(version: str) -> Path:
    """The helm of that version; built by the first test that needs it."""
    name = PROGRAMS[version]
    return gotools.ensure([name], tools=ROOT / "tools", cache=cache_folder(), progress=Progress.to(sys.stderr))[name]
