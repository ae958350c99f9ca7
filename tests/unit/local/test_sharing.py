"""Unpacked files are kept once, and nothing else about them changes."""

from __future__ import annotations

import os
from pathlib import Path

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
