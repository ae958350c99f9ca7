"""Data sets: found by name, read by content, checked row by row."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from datasets import Dataset

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import Data, load, shared
from kaito_tuning.errors import DatasetInvalid

WHOLE = DatasetConfig(train_test_split=1)


def test_processes_of_one_machine_read_the_data_once(tmp_path: Path) -> None:
    folder, common = tmp_path / "data", tmp_path / "common"
    folder.mkdir()
    common.mkdir()
    rows = [
        {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "a"}]} for i in range(9)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": []}]))
    config = DatasetConfig(train_test_split=0.7, max_bad_rows=0.5)
    waited: list[float] = []
    read: list[Data] = []

    def until_read(seconds: float) -> None:
        waited.append(seconds)
        read.append(shared.load(folder, config, refusal=lambda _: "", shared=common, first=True))
        (folder / "rows.jsonl").unlink()

    other = shared.load(folder, config, refusal=lambda _: "", shared=common, first=False, sleep=until_read)
    (first,) = read
    assert len(waited) == 1
    assert first == dataclasses.replace(other, training=first.training, evaluation=first.evaluation)
    assert other.training.to_list() == first.training.to_list()
    assert other.evaluation is not None
    assert first.evaluation is not None
    assert other.evaluation.to_list() == first.evaluation.to_list()
    assert (other.skipped, other.digest) == (1, first.digest)
    assert other.training.cache_files == first.training.cache_files


TURN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def write(folder: Path, name: str, rows: list[object]) -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_parquet_file_with_a_mangled_name_is_read_by_its_content(tmp_path: Path) -> None:
    Dataset.from_list([{"messages": TURN}] * 3).to_parquet(str(tmp_path / "train.parquet_download_true"))
    data = load(tmp_path, WHOLE)
    assert data.form == "messages"
    assert len(data.training) == 3
    assert data.evaluation is None


def test_csv_columns_are_mapped_by_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('q,a\nWhy?,"Because, so."\n')
    data = load(tmp_path, DatasetConfig(train_test_split=1, context_column="q", response_column="a"))
    assert data.form == "prompt-completion"
    assert data.training.to_list() == [{"prompt": "Why?", "completion": "Because, so."}]


def test_sharegpt_conversations_become_messages(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    write(tmp_path, "x.jsonl", [{"conversations": turns}])
    assert load(tmp_path, WHOLE).training.to_list() == [{"messages": TURN}]


def test_a_split_holds_rows_back_and_shuffling_is_the_same_every_time(tmp_path: Path) -> None:
    write(tmp_path, "x.json", [{"text": str(i)} for i in range(10)])
    first = load(tmp_path, DatasetConfig(train_test_split=0.8))
    again = load(tmp_path, DatasetConfig(train_test_split=0.8))
    assert first.evaluation is not None
    assert again.evaluation is not None
    assert (len(first.training), len(first.evaluation)) == (8, 2)
    assert first.training.to_list() == again.training.to_list()
    assert {*first.training["text"], *first.evaluation["text"]} == {str(i) for i in range(10)}
    assert first.digest == hashlib.sha256((tmp_path / "x.json").read_bytes()).hexdigest()


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
