"""A mark in a folder that says from where it was filled, so that a second run of the same step does nothing.

A new Pod sandbox runs all init containers again, on volumes that still hold the first run's work.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MARK = ".kaito-complete.json"


def is_complete(folder: Path, source: str) -> bool:
    """Whether ``folder`` was filled from ``source`` before."""
    try:
        return bool(json.loads((folder / MARK).read_text())["source"] == source)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def mark_complete(
    folder: Path, source: str, *, digest: str | None = None, files: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Written last, whole or not at all. ``files``: what is known of each file, for whoever reads the mark."""
    partial = folder / f"{MARK}.partial"
    partial.write_text(json.dumps({"source": source, "digest": digest, "files": [dict(file) for file in files]}))
    partial.replace(folder / MARK)


def empty(folder: Path) -> None:
    """Removes what an interrupted run left in ``folder``, which may be a mount point."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
