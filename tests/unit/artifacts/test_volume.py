"""What does not fit, and what a volume refuses."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kaito_hooks.artifacts.errors import ArtifactError, DiskFull, Unwritable
from kaito_hooks.artifacts.volume import not_written, require_room, room


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EACCES, Unwritable),
        (errno.EROFS, Unwritable),
        (errno.EIO, Unwritable),
        (None, Unwritable),
    ],
)
def test_only_a_full_disk_is_called_full(number: int | None, kind: type[ArtifactError]) -> None:
    error = OSError(number, "as the system says") if number else OSError("as the system says")
    told = not_written(Path("/data/x"), error)
    assert type(told) is kind
    assert str(told) == "/data/x cannot be written: as the system says"
    assert not told.final


def test_what_does_not_fit_is_told_with_both_sizes(tmp_path: Path) -> None:
    require_room(tmp_path, room(tmp_path) // 2, what="it")
    with pytest.raises(DiskFull, match=rf"it does not fit: it has 1048576\.0 GiB, and the volume of {tmp_path} "):
        require_room(tmp_path, 1 << 50, what="it")
