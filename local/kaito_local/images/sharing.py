"""Files that lie unpacked in two places of one file system, kept once."""

from __future__ import annotations

import filecmp
import os
import stat
from contextlib import suppress
from pathlib import Path

# Smaller files are many and weigh little.
_FROM_BYTES = 4096


def share_files(folder: Path, other: Path) -> int:
    """Replaces files below ``folder`` by hard links to equal ones below ``other``; the bytes that are saved.

    Both hold unpacked layers of images, ``<layer>/.../<path in the image>``, which nobody writes to: containers see
    them as lower folders of an overlay. Files are equal when name, size, mode, owner, extended attributes and content
    are; their dates do not count, as those of an image are all the same. What cannot be linked stays as it is.
    ``folder`` must not be in use yet, and nothing may be built in ``other`` meanwhile.
    """
    known: dict[tuple[str, int], list[Path]] = {}
    for path, found in _files(other):
        known.setdefault((path.name, found.st_size), []).append(path)
    saved = 0
    for path, found in _files(folder):
        for candidate in known.get((path.name, found.st_size), ()):
            with suppress(OSError):
                twin = candidate.stat()
                if found.st_dev != twin.st_dev or found.st_ino == twin.st_ino or _owned(found) != _owned(twin):
                    continue
                if _attributes(path) == _attributes(candidate) and filecmp.cmp(path, candidate, shallow=False):
                    link = path.with_name(f".{path.name}.link")
                    os.link(candidate, link)
                    link.rename(path)
                    saved += found.st_size
                    break
    filecmp.clear_cache()
    return saved


def _attributes(path: Path) -> dict[str, bytes]:
    """Extended attributes, such as a program's capabilities."""
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def _owned(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mode, found.st_uid, found.st_gid


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    files = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode) and found.st_size >= _FROM_BYTES:
                files.append((path, found))
    return files
