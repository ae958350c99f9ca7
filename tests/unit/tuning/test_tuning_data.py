"""Data sets: found by name, read by content, checked row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import as_dataset, load
from kaito_tuning.errors import DatasetInvalid

WHOLE = DatasetConfig(train_test_split=1)
TURN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def write(folder: Path, name: str, rows: list[object]) -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_parquet_file_with_a_mangled_name_is_read_by_its_content(tmp_path: Path) -> None:
    as_dataset([{"messages": TURN}] * 3).to_parquet(str(tmp_path / "train.parquet_download_true"))
    data = load(tmp_path, WHOLE)
    assert data.form == "messages"
    assert len(data.training) == 3
    assert data.evaluation == []


def test_the_first_file_by_name_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "b.json", [{"text": "second"}])
    write(tmp_path, "a.json", [{"text": "first"}])
    (tmp_path / "readme").write_text("nothing")
    assert load(tmp_path, WHOLE).training == [{"text": "first"}]


def test_csv_columns_are_mapped_by_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('q,a\nWhy?,"Because, so."\n')
    data = load(tmp_path, DatasetConfig(train_test_split=1, context_column="q", response_column="a"))
    assert data.form == "prompt-completion"
    assert data.training == [{"prompt": "Why?", "completion": "Because, so."}]


def test_sharegpt_conversations_become_messages(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    write(tmp_path, "x.jsonl", [{"conversations": turns}])
    assert load(tmp_path, WHOLE).training == [{"messages": TURN}]


def test_a_split_holds_rows_back_and_shuffling_is_the_same_every_time(tmp_path: Path) -> None:
    write(tmp_path, "x.json", [{"text": str(i)} for i in range(10)])
    first = load(tmp_path, DatasetConfig(train_test_split=0.8))
    again = load(tmp_path, DatasetConfig(train_test_split=0.8))
    assert (len(first.training), len(first.evaluation)) == (8, 2)
    assert first == again
    assert {row["text"] for row in first.training + first.evaluation} == {str(i) for i in range(10)}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        pytest.param("x.parquet", "<html>login</html>", "holds a web page", id="an error page"),
        pytest.param("x.jsonl", '{"text": "a"}\n{"text": ', "line 2 is not JSON", id="a cut line"),
        pytest.param("x.json", "[1]", "row 1 is int", id="no object"),
        pytest.param("x.json", '{"text": ""}', "row 1: column text is empty", id="an empty text"),
        pytest.param("x.json", '{"foo": "a", "bar": "b"}', "has the columns foo, bar", id="unknown columns"),
        pytest.param(
            "x.json", '{"messages": [{"role": "bot", "content": "a"}]}', "row 1: unknown role 'bot'", id="a role"
        ),
        pytest.param(
            "x.json",
            '{"messages": [{"role": "user", "content": "a"}]}',
            "the last message is the user's",
            id="no answer",
        ),
        pytest.param("x.json", '{"messages": []}', "row 1: messages must be a list", id="no messages"),
        pytest.param("notes", "x", "no file in", id="no known name"),
        pytest.param("x.parquet", "PAR1 but not really", "cannot be read as parquet", id="a broken parquet"),
    ],
)
def test_bad_data_is_refused_with_row_and_cause(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetInvalid) as refused:
        load(tmp_path, WHOLE)
    assert sentence in str(refused.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match="brought no data"):
        load(tmp_path, WHOLE)
