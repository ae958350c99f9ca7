"""Unpacked files are kept once, and nothing else about them changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kaito_local.images.sharing import share_files
from kaito_local.machine.folders import gib, used_bytes

BIG = b"x" * 100_000


def put(path: Path, content: bytes, *, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_equal_files_become_one_wherever_the_layers_lie(tmp_path: Path) -> None:
    ours = put(tmp_path / "golden/snapshots/7/fs/opt/lib.so", BIG)
    theirs = put(tmp_path / "storage/overlay/abc/diff/opt/lib.so", BIG)
    os.utime(theirs, (1, 1))
    assert share_files(tmp_path / "golden", tmp_path / "storage") == len(BIG)
    assert ours.samefile(theirs)
    assert sorted(path.name for path in ours.parent.iterdir()) == ["lib.so"]
    assert share_files(tmp_path / "golden", tmp_path / "storage") == 0


def test_what_differs_in_content_mode_or_name_stays_apart(tmp_path: Path) -> None:
    other = put(tmp_path / "storage/a/lib.so", BIG)
    put(tmp_path / "storage/a/run.sh", BIG, mode=0o755)
    kept = [
        put(tmp_path / "golden/a/lib.so", BIG[:-1] + b"y"),
        put(tmp_path / "golden/a/run.sh", BIG, mode=0o644),
        put(tmp_path / "golden/a/other.so", BIG),
    ]
    (tmp_path / "golden/b").mkdir()
    (tmp_path / "golden/b/lib.so").symlink_to(other)
    assert share_files(tmp_path / "golden", tmp_path / "storage") == 0
    assert all(path.stat().st_nlink == 1 for path in kept)
    assert (tmp_path / "golden/b/lib.so").is_symlink()


def test_of_equal_names_the_equal_content_is_found(tmp_path: Path) -> None:
    put(tmp_path / "storage/a/__init__.py", b"a" * 5000)
    twin = put(tmp_path / "storage/b/__init__.py", b"b" * 5000)
    ours = put(tmp_path / "golden/c/__init__.py", b"b" * 5000)
    share_files(tmp_path / "golden", tmp_path / "storage")
    assert ours.samefile(twin)


@pytest.mark.parametrize(
    ("ours", "theirs", "shared"),
    [(b"1", b"2", False), (b"1", None, False), (None, b"2", False), (b"1", b"1", True)],
    ids=["other-value", "only-ours", "only-theirs", "equal"],
)
def test_files_whose_extended_attributes_differ_stay_apart(
    tmp_path: Path, *, ours: bytes | None, theirs: bytes | None, shared: bool
) -> None:
    """A program's capabilities are such attributes: shared, a container would have those of another image."""
    file, twin = put(tmp_path / "golden/a/ping", BIG), put(tmp_path / "storage/b/ping", BIG)
    for path, value in ((file, ours), (twin, theirs)):
        if value is not None:
            try:
                os.setxattr(path, "user.kaito", value)
            except OSError as error:
                pytest.skip(f"this file system has no extended attributes of users: {error.strerror}")
    assert share_files(tmp_path / "golden", tmp_path / "storage") == (len(BIG) if shared else 0)
    assert file.samefile(twin) is shared
    assert [os.getxattr(file, name) for name in os.listxattr(file)] == ([] if ours is None else [ours])


@pytest.mark.parametrize("reason", [errno.EMLINK, errno.EPERM, errno.EXDEV], ids=errno.errorcode.__getitem__)
def test_a_file_whose_link_is_refused_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(reason, os.strerror(reason))

    file, twin = put(tmp_path / "golden/a/lib.so", BIG), put(tmp_path / "storage/b/lib.so", BIG)
    monkeypatch.setattr(os, "link", refuse)
    assert share_files(tmp_path / "golden", tmp_path / "storage") == 0
    assert file.read_bytes() == BIG
    assert not file.samefile(twin)
    assert sorted(path.name for path in file.parent.iterdir()) == ["lib.so"]


def test_a_refused_link_does_not_keep_others_from_being_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, link = put(tmp_path / "storage/a/lib.so", BIG), os.link

    def refuse_full(source: Path, target: Path) -> None:
        if Path(source) == full:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, target)

    files = [put(tmp_path / f"golden/{layer}/lib.so", BIG) for layer in "xy"]
    twin = put(tmp_path / "storage/b/lib.so", BIG)
    monkeypatch.setattr(os, "link", refuse_full)
    assert share_files(tmp_path / "golden", tmp_path / "storage") == 2 * len(BIG)
    assert all(file.samefile(twin) for file in files)


def test_links_count_once_in_what_is_used(tmp_path: Path) -> None:
    first = put(tmp_path / "one/blob", BIG)
    (tmp_path / "two").mkdir()
    os.link(first, tmp_path / "two/blob")
    seen: set[tuple[int, int]] = set()
    one = used_bytes(tmp_path / "one", seen=seen)
    assert one >= len(BIG)
    assert used_bytes(tmp_path / "two", seen=seen) == 0
    assert used_bytes(tmp_path) == one
    assert used_bytes(tmp_path / "nowhere") == 0
    assert gib(3 << 29) == "1.5 GiB"
