"""Where things lie on this machine: the project, what its users share between clusters, and what clusters remember."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""The project's folder, with charts, presets, Dockerfiles and the modules of the Go programs."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``${XDG_CACHE_HOME:-~/.cache}/kaito``: programs, images and weights, shared by all clusters of a user."""
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kaito"


def state_home(environment: Mapping[str, str] = os.environ) -> Path:
    """``${KAITO_HOME:-~/.local/state/kaito}``: one folder per cluster."""
    base = environment.get("KAITO_HOME")
    return Path(base) if base else Path.home() / ".local" / "state" / "kaito"
