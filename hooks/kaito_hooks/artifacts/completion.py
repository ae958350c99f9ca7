"""Marks that say that a step was done, so that a second run of the same step does nothing.

A new Pod sandbox runs all init containers again, on volumes that still hold the first run's work. A mark never lies in
the folder that it is about: whatever fills a folder could bring its own mark along and escape all checks.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Mark:
    """The file ``path`` says that a step is done for ``source``, and which files its ``folder`` held then."""

    path: Path
    source: str
    folder: Path | None = None

    def is_set(self) -> bool:
        """Whether the step was done for this very source, and its folder still holds the same files."""
        try:
            return bool(json.loads(self.path.read_text()) == self._document())
        except (OSError, ValueError):
            return False

    def set(self) -> None:
        """Written whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text(json.dumps(self._document()))
        partial.replace(self.path)

    def _document(self) -> dict[str, Any]:
        return {"source": self.source, "files": _sizes(self.folder) if self.folder else {}}


def mark_of(folder: Path, source: str, *, marks: Path) -> Mark:
    """The mark in ``marks`` that ``folder`` was filled from ``source``."""
    return Mark(marks / f"{quote(str(folder.absolute()), safe='')}.json", source, folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()
    }


def empty(folder: Path) -> None:
    """Removes what an interrupted run left in ``folder``, which may be a mount point."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
