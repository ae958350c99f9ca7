"""Rows that cannot be trained on: refused with their number, or skipped up to a share, counted and listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import load
from kaito_tuning.errors import DatasetInvalid

EMPTY = {"text": ""}


def write(folder: Path, rows: int, *, bad: set[int]) -> Path:
    lines = (json.dumps(EMPTY if number in bad else {"text": f"row {number}"}) for number in range(1, rows + 1))
    (folder / "x.jsonl").write_text("\n".join(lines))
    return folder


def test_one_bad_row_of_thousands_is_refused_where_that_is_asked_for_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid) as refused:
        load(write(tmp_path, 1000, bad={7, 9}), DatasetConfig(on_bad_rows="fail"))
    assert str(refused.value) == (
        "row 7: column text is empty or no text, got ''; 2 of 1,000 rows cannot be trained on; "
        "DatasetConfig.on_bad_rows: skip leaves such rows out"
    )
    assert len(refused.value.rows) == 2


def test_bad_rows_are_skipped_up_to_one_percent_counted_and_listed(tmp_path: Path) -> None:
    data = load(write(tmp_path, 1000, bad=set(range(1, 11))), DatasetConfig(train_test_split=1))
    assert (len(data.training), data.skipped) == (990, 10)
    (said,) = data.warnings
    assert said.startswith("left out 10 of 1,000 rows: row 1: column text is empty")
    assert "row 10: " in said
    assert "" not in data.training["text"]


def test_more_bad_rows_than_allowed_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 1000, bad=set(range(1, 12)))
    with pytest.raises(
        DatasetInvalid, match=r"^row 1: .* 11 of 1,000 rows .* \(1.1%\), more than DatasetConfig.max_bad_rows"
    ):
        load(tmp_path, DatasetConfig())
    allowed = load(tmp_path, DatasetConfig(max_bad_rows=0.02, train_test_split=1))
    assert allowed.skipped == 11


def test_many_bad_rows_are_counted_but_not_all_listed(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid) as refused:
        load(write(tmp_path, 500, bad=set(range(1, 501))), DatasetConfig())
    assert "500 of 500 rows cannot be trained on" in str(refused.value)
    assert "skip" not in str(refused.value)
    assert len(refused.value.rows) == 20


def test_a_bad_row_of_several_files_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    (tmp_path / "b.jsonl").write_text(json.dumps(EMPTY))
    with pytest.raises(DatasetInvalid, match=r"b.jsonl, row 1: column text is empty"):
        load(tmp_path, DatasetConfig())


def test_files_of_different_forms_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(DatasetInvalid, match=r"b.jsonl holds rows of the form prompt-completion and a.jsonl .* text"):
        load(tmp_path, DatasetConfig())


def test_one_row_is_trained_on_and_none_is_refused(tmp_path: Path) -> None:
    data = load(write(tmp_path, 1, bad=set()), DatasetConfig(train_test_split=0.8))
    assert (len(data.training), data.evaluation) == (1, None)
    with pytest.raises(DatasetInvalid, match=r"train_test_split 0.1 of 1 rows leaves none to train on"):
        load(tmp_path, DatasetConfig(train_test_split=0.1))


def test_a_split_that_holds_nothing_back_is_said(tmp_path: Path) -> None:
    data = load(write(tmp_path, 9, bad=set()), DatasetConfig(train_test_split=0.999))
    assert (len(data.training), data.evaluation) == (9, None)
    assert data.warnings == (
        "DatasetConfig.train_test_split 0.999 of 9 rows holds none back: nothing is evaluated; lower it, or set 1",
    )
    assert load(tmp_path, DatasetConfig(train_test_split=1)).warnings == ()


def test_a_header_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompt,completion\n")
    with pytest.raises(DatasetInvalid, match=r"x.csv has no rows"):
        load(tmp_path, DatasetConfig())
