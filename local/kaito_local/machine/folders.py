"""Where things lie on this machine: the project, what its users share between clusters, and what clusters remember."""

from __future__ import annotations

import os
import shutil
import stat
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


def used_bytes(folder: Path, *, seen: set[tuple[int, int]] | None = None) -> int:
    """The disk that files below ``folder`` take; each file once, however many links it has, and none in ``seen``.

    ``seen`` (device and inode) grows by what is counted. Files that go meanwhile do not count.
    """
    seen = set() if seen is None else seen
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue
            key = (found.st_dev, found.st_ino)
            if stat.S_ISREG(found.st_mode) and key not in seen:
                seen.add(key)
                total += found.st_blocks * 512
    return total


def free_bytes(folder: Path) -> int:
    """The disk that the file system has left on which ``folder`` lies, or would lie."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def gib(size: int) -> str:
    """``5.1 GiB``."""
    return f"{size / 2**30:.1f} GiB"
