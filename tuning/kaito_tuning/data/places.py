"""Where files lie: what a name stands for that is no file, and what links of a folder lead to."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kaito_tuning.config import MOUNT
from kaito_tuning.errors import DatasetInvalid

_NOWHERE = "a link that leads nowhere"
_SPECIAL = "a pipe or a device"


def exists(path: Path) -> bool:
    """Whether something is there. Raises DatasetInvalid for a name that nothing can have."""
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DatasetInvalid(f"the file name {path.name[:60]}... is longer than a file system takes") from None
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return False
    return True


def check(path: Path) -> None:
    """Raises DatasetInvalid for what is neither a file nor a folder."""
    if exists(path):
        if not (path.is_file() or path.is_dir()):
            raise DatasetInvalid(f"{path} is {_SPECIAL}, not a file; save the rows as a file and name that")
        return
    if str(path) == "-":
        raise DatasetInvalid("standard input is not read: save the rows as a file and name that")
    # A path has one of the two slashes of an address.
    if address := re.fullmatch(r"([a-z][a-z0-9+]+):/+(.+)", str(path)):
        raise DatasetInvalid(
            f"{address[1]}://{address[2]} is an address, not a file; download it, or name it in tuning.input.urls"
        )
    raise DatasetInvalid(f"there is no file {path}")


def below(folder: Path, *, within: Path | None) -> list[tuple[Path, str]]:
    """Every file below a folder with "", or what else it is, in the order of their names; hidden ones are left out.

    Links are followed, and a file that several lead to is one. Raises DatasetInvalid for a link that leads out of
    ``within`` and of what is mounted below /mnt.
    """
    seen: set[str] = set()
    return sorted(_below(folder, folder, within, seen))


def _below(at: Path, folder: Path, within: Path | None, seen: set[str]) -> Iterator[tuple[Path, str]]:
    seen.add(os.path.realpath(at))
    for path in sorted(at.iterdir()):
        if path.name.startswith("."):
            continue
        if not exists(path):
            yield path, _NOWHERE
            continue
        real = os.path.realpath(path)
        if within is not None and not any(Path(real).is_relative_to(place) for place in (within.resolve(), MOUNT)):
            raise DatasetInvalid(
                f"{path.relative_to(folder)} is a link that leads out of {within}; put the file itself there"
            )
        if real in seen:
            continue
        if path.is_dir():
            yield from _below(path, folder, within, seen)
            continue
        seen.add(real)
        yield path, "" if path.is_file() else _SPECIAL
