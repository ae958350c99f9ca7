"""The volume that is filled: whether something fits, and what its errors mean."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from kaito_hooks.artifacts.errors import ArtifactError, DiskFull, Unwritable

_SPARE = 64 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


def room(folder: Path) -> int:
    """Bytes that ``folder`` takes; its volume is never filled to the last one."""
    return max(0, shutil.disk_usage(folder).free - _SPARE)


def require_room(folder: Path, size: int, *, what: str) -> None:
    """Raises DiskFull if ``size`` bytes do not fit, before any of them is fetched."""
    if size > room(folder):
        raise DiskFull(
            f"{what} does not fit: it has {size / 2**30:.1f} GiB, "
            f"and the volume of {folder} {room(folder) / 2**30:.1f} GiB of room"
        )


def not_written(path: Path, error: OSError) -> ArtifactError:
    """What to raise when ``path`` could not be written."""
    kind = DiskFull if error.errno in _FULL else Unwritable
    return kind(f"{path} cannot be written: {error.strerror or error}")
