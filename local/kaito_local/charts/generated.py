"""Files that are written from another source, and are kept beside it: whether they are as they would be written."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

_SHOWN_LINES = 40


def write(files: Mapping[Path, str], *, only_in: frozenset[Path]) -> list[Path]:
    """Writes what differs, and removes other files of the folders ``only_in``; returns what it touched."""
    changed = [file for file, text in files.items() if _content(file) != text]
    for file in changed:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(files[file])
    strangers = _strangers(files, only_in)
    for file in strangers:
        file.unlink()
    return [*changed, *strangers]


def differences(files: Mapping[Path, str], *, only_in: frozenset[Path], root: Path) -> list[str]:
    """What ``write`` would change, as the beginning of a diff per file."""
    found = []
    for file, text in files.items():
        if (there := _content(file)) != text:
            name = str(file.relative_to(root))
            lines = difflib.unified_diff(there.splitlines(), text.splitlines(), name, "as generated", lineterm="", n=1)
            found.append("\n".join(list(lines)[:_SHOWN_LINES]))
    return found + [f"{file.relative_to(root)} is not generated any more" for file in _strangers(files, only_in)]


def _strangers(files: Mapping[Path, str], folders: frozenset[Path]) -> list[Path]:
    return [file for folder in sorted(folders) for file in sorted(folder.glob("*")) if file not in files]


def _content(file: Path) -> str:
    return file.read_text() if file.exists() else ""
