"""Marks of what is complete, outside of what they are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaito_hooks.artifacts.completion import Mark, mark_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "filled"
    (found / "sub").mkdir(parents=True)
    (found / "sub" / "a").write_text("a")
    (found / "link").symlink_to("sub/a")
    return found


def test_a_mark_lies_outside_of_the_folder_and_is_for_one_source(tmp_path: Path, folder: Path) -> None:
    mark = mark_of(folder, "image a", marks=tmp_path / "marks")
    assert not mark.is_set()
    mark.set()
    assert mark.is_set()
    assert not mark.path.is_relative_to(folder)
    assert not mark_of(folder, "image b", marks=tmp_path / "marks").is_set()
    assert not mark_of(tmp_path / "other", "image a", marks=tmp_path / "marks").is_set()


@pytest.mark.parametrize("change", ["cut", "removed", "added", "gone"])
def test_a_folder_that_changed_is_not_complete(tmp_path: Path, folder: Path, change: str) -> None:
    mark = mark_of(folder, "image a", marks=tmp_path / "marks")
    mark.set()
    match change:
        case "cut":
            (folder / "sub" / "a").write_text("")
        case "removed":
            (folder / "link").unlink()
        case "added":
            (folder / "b").write_text("b")
        case "gone":
            folder.rename(tmp_path / "elsewhere")
    assert not mark.is_set()


@pytest.mark.parametrize("content", ["", "[]", "5", "{}", "\xff"])
def test_a_mark_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    mark = Mark(tmp_path / "mark", "x")
    mark.path.write_text(content, encoding="latin-1")
    assert not mark.is_set()
    mark.set()
    assert mark.is_set()
