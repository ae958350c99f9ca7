"""Files that other programs write in ways of their own: read as they are meant, or refused with what is wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from tests.unit.tuning.checked import check_alone
from tests.unit.tuning.job import Job
from tests.unit.tuning.test_tuning_config import changed
from tests.unit.tuning.test_tuning_data_rows import ANSWER, ASK, TURN, WHOLE

from kaito_tuning.data import load
from kaito_tuning.errors import DatasetInvalid
from kaito_tuning.run import REFUSED

MARK = b"\xef\xbb\xbf"
ROW = b'{"prompt": "a", "completion": "b"}\n'
MAPS = pa.list_(pa.map_(pa.string(), pa.string()))


def conversation(*messages: dict[str, str]) -> list[list[tuple[str, str]]]:
    return [list(message.items()) for message in messages]


@pytest.mark.parametrize("first", [b"", MARK], ids=["in the middle", "everywhere"])
def test_files_with_byte_order_marks_may_be_put_together(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(first + ROW + MARK + ROW + MARK + ROW)
    data = load(tmp_path, WHOLE)
    assert len(data.training) == 3
    assert not data.skipped


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_messages_as_maps_are_messages(tmp_path: Path, kind: str) -> None:
    """What Spark writes of an array of maps."""
    table = pa.table({"messages": pa.array([conversation(ASK, ANSWER)] * 3, MAPS)})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "x.parquet")
    else:
        feather.write_feather(table, str(tmp_path / "x.arrow"), compression="uncompressed")
    assert load(tmp_path, WHOLE).training["messages"][2] == TURN


def test_a_map_that_has_a_key_twice_is_a_bad_row(tmp_path: Path) -> None:
    twice = [[("role", "user"), ("role", "system"), ("content", "hi")], [*ANSWER.items()]]
    rows = [conversation(ASK, ANSWER)] * 150
    pq.write_table(pa.table({"messages": pa.array([*rows, twice, *rows], MAPS)}), tmp_path / "x.parquet")
    data = load(tmp_path, WHOLE)
    assert (len(data.training), data.skipped) == (300, 1)
    assert "row 151 holds a map that has a key twice" in data.warnings[0]


@pytest.mark.parametrize(
    "text",
    [
        '"prompt","completion","to do; or not; or; then"\na,b,c\n',
        "\n\r\n\nprompt,completion\na,b\n",
        'prompt;"a, b, c, d";completion\na;b;b\n',
    ],
    ids=["semicolons in a name", "empty lines first", "commas in a name"],
)
def test_a_header_is_read_as_it_is_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode())
    assert load(tmp_path, WHOLE).training[0] == {"prompt": "a", "completion": "b"}


def test_an_archive_of_hidden_files_says_that_it_is_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../rows.jsonl", ROW)
    with pytest.raises(DatasetInvalid, match=r"x\.zip is a zip archive whose files are hidden or outside of it"):
        load(tmp_path, WHOLE)


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").write_bytes("pr\xe9nom,r\xe9ponse\na,b\n".encode("latin-1"))
    return tmp_path


def test_a_header_in_another_encoding_is_refused_in_words_that_can_be_written(latin: Path) -> None:
    found = check_alone(latin)
    assert found.code == 2
    assert "the data set has the columns pr" in found.report["problems"][0]


def test_a_training_ends_with_a_sentence_whatever_characters_are_in_it(
    latin: Path, model: Path, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(latin, model, output, changed("DatasetConfig"))
    (latin / "data" / "boxes.jsonl").unlink()
    code, sentence = job.run_here()
    assert code == REFUSED
    assert sentence.startswith("DatasetInvalid: the data set has the columns pr\\udce9nom")
    assert caplog.text.encode()
    assert "\\udce9nom" in caplog.text
