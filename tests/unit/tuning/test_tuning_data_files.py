"""Files of a data set: read together, told by content, unpacked, split by name, and what is left out is named."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import Data, load
from kaito_tuning.errors import DatasetInvalid

WHOLE = DatasetConfig(train_test_split=1, shuffle_dataset=False)


def test_links_are_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "..parts").mkdir()
    (tmp_path / "..parts" / "a.jsonl").write_text('{"text": "a"}')
    (tmp_path / "..parts" / "b.jsonl").write_text('{"text": "b"}')
    (tmp_path / "a.jsonl").symlink_to("..parts/a.jsonl")
    (tmp_path / "again.jsonl").symlink_to("a.jsonl")
    (tmp_path / "parts").symlink_to("..parts")
    (tmp_path / "parts2").symlink_to(tmp_path / "parts")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone.jsonl").symlink_to("none.jsonl")
    os.mkfifo(tmp_path / "pipe")
    found = load(tmp_path, WHOLE)
    assert list(found.training["text"]) == ["a", "b"]
    assert found.warnings == (
        "gone.jsonl is a link that leads nowhere: left out",
        "pipe is a pipe or a device: left out",
        "self is a link that leads nowhere: left out",
    )


@pytest.mark.parametrize("kind", ["a file", "a folder"])
def test_a_link_out_of_the_data_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.jsonl").write_text('{"text": "never"}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.jsonl").symlink_to(tmp_path / "secret" / ("key.jsonl" if kind == "a file" else ""))
    with pytest.raises(DatasetInvalid) as refused:
        load(tmp_path / "data", WHOLE)
    assert str(refused.value) == f"x.jsonl is a link that leads out of {tmp_path / 'data'}; put the file itself there"


def test_a_name_that_no_file_system_takes_is_refused() -> None:
    with pytest.raises(DatasetInvalid, match="is longer than a file system takes"):
        load(Path("/mnt"), DatasetConfig(dataset_path="x" * 300))


TEXTS = ["one", "two", "three"]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def texts(data: Data) -> list[str]:
    return [row["text"] for row in data.training]


def table() -> pa.Table:
    return pa.table({"text": TEXTS})


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(), sink)
    return sink.getvalue()


def arrow(new: Callable[[io.BytesIO, pa.Schema], pa.RecordBatchWriter]) -> bytes:
    sink = io.BytesIO()
    with new(sink, table().schema) as writer:
        writer.write_table(table())
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def zipped(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(LINES, id="json lines"),
        pytest.param(b"\xef\xbb\xbf" + LINES, id="json lines with a byte order mark"),
        pytest.param(LINES.replace(b"\n", b"\r\n"), id="json lines of Windows"),
        pytest.param(b"\n\n" + LINES + b"\n", id="json lines with empty lines"),
        pytest.param(LINES.decode().encode("utf-16"), id="json lines in UTF-16"),
        pytest.param(json.dumps([{"text": t} for t in TEXTS]).encode(), id="one list"),
        pytest.param(json.dumps([{"text": t} for t in TEXTS], indent=2).encode(), id="one list, pretty"),
        pytest.param(json.dumps({"data": [{"text": t} for t in TEXTS]}).encode(), id="a list in an object"),
        pytest.param(
            json.dumps({"version": "1", "data": [{"text": t} for t in TEXTS], "n": [1]}, indent=1).encode(),
            id="a list in a pretty object",
        ),
        pytest.param("\n".join(json.dumps({"text": t}, indent=2) for t in TEXTS).encode(), id="pretty objects"),
        pytest.param(("text\n" + "\n".join(TEXTS)).encode(), id="csv of one column"),
        pytest.param(("id,text\n" + "\n".join(f"1,{t}" for t in TEXTS)).encode(), id="csv"),
        pytest.param(("id\ttext\n" + "\n".join(f"1\t{t}" for t in TEXTS)).encode(), id="parted by tabs"),
        pytest.param(("id;text\n" + "\n".join(f"1;{t}" for t in TEXTS)).encode("utf-16"), id="Excel's csv in UTF-16"),
        pytest.param(parquet(), id="parquet"),
        pytest.param(arrow(pa.ipc.new_file), id="arrow file"),
        pytest.param(arrow(pa.ipc.new_stream), id="arrow stream"),
    ],
)
@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(lambda content: content, id="plain"),
        pytest.param(gzip.compress, id="gz"),
        pytest.param(lambda content: gzip.compress(content[:20]) + gzip.compress(content[20:]), id="gz in two parts"),
        pytest.param(bz2.compress, id="bz2"),
        pytest.param(lzma.compress, id="xz"),
        pytest.param(zstd, id="zst"),
        pytest.param(lambda content: zstd(content[:20]) + zstd(content[20:]), id="zst in two frames"),
        pytest.param(lambda content: zipped({"inner/rows": content, "__MACOSX/rows": b"\x00"}), id="zip"),
    ],
)
def test_content_decides_what_a_file_without_an_ending_is(
    tmp_path: Path, content: bytes, packed: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "resolve_main_data_download_true").write_bytes(packed(content))
    assert texts(load(tmp_path, WHOLE)) == TEXTS


@pytest.mark.parametrize("ends_at", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_lines_end_at_line_feeds_alone(tmp_path: Path, ends_at: str) -> None:
    text = f"one{ends_at}two"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=ends_at in "\x0b\x0c\x1c\r") + "\n")
    assert texts(load(tmp_path, WHOLE)) == [text]


def test_several_files_of_one_kind_are_read_together_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps({"text": text}))
    data = load(tmp_path, WHOLE)
    assert texts(data) == TEXTS
    assert [path.name for path in data.files] == ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"]
    assert data.digest == hashlib.sha256(b"".join(path.read_bytes() for path in data.files)).hexdigest()
    assert data.warnings == ()


@pytest.mark.parametrize(
    ("training", "evaluation"),
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"),
        ("boxes_train", "boxes_eval"),
        ("train/0", "dev/0"),
        ("chats.jsonl", "chats_val.jsonl"),
    ],
)
def test_a_test_file_beside_others_is_the_evaluation_split_and_said_so(
    tmp_path: Path, training: str, evaluation: str
) -> None:
    for name, text in ((training, "learn"), (evaluation, "judge")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": text}))
    data = load(tmp_path, WHOLE)
    assert texts(data) == ["learn"]
    assert data.evaluation is not None
    assert data.evaluation.to_list() == [{"text": "judge"}]
    assert data.warnings == (f"held back for evaluation, by its name: {evaluation}",)


def test_with_validation_and_test_the_validation_split_is_used_and_the_test_split_named(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    data = load(tmp_path, WHOLE)
    assert data.evaluation is not None
    assert (texts(data), data.evaluation["text"][:]) == (["train"], ["validation"])
    assert any("test.jsonl" in sentence and "left out" in sentence for sentence in data.warnings)


def test_a_test_file_alone_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_bytes(LINES)
    data = load(tmp_path, WHOLE)
    assert (texts(data), data.evaluation) == (TEXTS, None)


def test_another_kind_is_left_out_and_named_unless_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "json"}))
    (tmp_path / "b.parquet").write_bytes(parquet())
    data = load(tmp_path, WHOLE)
    assert texts(data) == ["json"]
    assert any("b.parquet" in sentence and "parquet is left out" in sentence for sentence in data.warnings)
    asked = DatasetConfig(train_test_split=1, shuffle_dataset=False, dataset_extension="parquet")
    assert texts(load(tmp_path, asked)) == TEXTS


def test_what_describes_a_data_set_is_not_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<div>a, b</div>\n")
    (tmp_path / "dataset_infos.json").write_text(json.dumps({"default": {"features": {"text": {"dtype": "string"}}}}))
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "x.arrow"}]}, indent=2))
    (tmp_path / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (tmp_path / "train.parquet").write_bytes(parquet())
    assert texts(load(tmp_path, WHOLE)) == TEXTS


def test_a_file_below_mnt_is_named_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match=r"there is no file /mnt/data/none.json"):
        load(tmp_path, DatasetConfig(dataset_path="data/none.json"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        pytest.param("x.csv", b"", "x.csv is empty", id="empty"),
        pytest.param("x.jsonl", b" \n \n", "x.jsonl is empty", id="blank"),
        pytest.param("notes.txt", b"Dear diary, ...", "plain text; put each text to train on into a column", id="text"),
        pytest.param("x.pdf", b"%PDF-1.7", "x.pdf is a PDF", id="pdf"),
        pytest.param("x", b"\x80\x04\x95abc", "x is a pickle, which can run code", id="pickle"),
        pytest.param("x.tar", bytes(257) + b"ustar\x00", "x.tar is a tar archive", id="tar"),
        pytest.param("x.tgz", gzip.compress(bytes(257) + b"ustar\x00"), "x.tgz is a tar archive", id="tar.gz"),
        pytest.param("x.gz", gzip.compress(gzip.compress(LINES)), "compressed twice", id="gz in gz"),
        pytest.param("x.gz", gzip.compress(LINES * 999)[:60], "x.gz is damaged", id="a cut gz"),
        pytest.param("x.xlsx", zipped({"[Content_Types].xml": b"<a/>"}), "an Excel or Word file", id="Excel"),
        pytest.param("x.zip", zipped({"a/README.md": b"hi"}), "x.zip/a/README.md is a document", id="zip of none"),
        pytest.param("x.zip", zipped({"a": LINES})[:-30], "x.zip is a damaged zip archive", id="a cut zip"),
        pytest.param("x.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", id="lfs"),
        pytest.param("x.parquet", parquet()[:-9], "x.parquet cannot be read as parquet", id="a cut parquet"),
        pytest.param("x.json", "[{}]".encode("utf-16-le"), "save it as UTF-8", id="UTF-16 without its mark"),
        pytest.param("x.json", b'{"error": "Access denied"}', "a server's answer, not data", id="an error"),
        pytest.param("x", b"<?xml version='1.0'?><Error/>", "a web page or XML, not data", id="xml"),
        pytest.param("x.json", b'{"a": 1, "b": 2}', "has the columns a, b", id="an object without rows"),
        pytest.param("x.csv", b"a,a\n1,2\n", "two columns named 'a'", id="two columns of one name"),
    ],
)
def test_what_is_no_data_is_said_to_be_what_it_is(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetInvalid) as refused:
        load(tmp_path, WHOLE)
    assert sentence in str(refused.value)


def test_only_so_much_is_read_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "x" * 1000}) + "\n" for _ in range(5000)))
    data = load(tmp_path, WHOLE, max_bytes=1 << 20)
    assert len(data.training) == pytest.approx(1049, abs=1)
    assert data.cut
    assert "only the first 1 MiB of the data were read" in data.warnings


def test_a_name_that_is_not_utf_8_is_escaped_wherever_it_is_told(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/b\xf6xes.jsonl")).write_bytes(LINES)
    Path(os.fsdecode(bytes(tmp_path) + b"/t\xe4st.pdf")).write_bytes(b"%PDF-1.7")
    data = load(tmp_path, WHOLE)
    assert data.file_names == ("b\\udcf6xes.jsonl",)
    assert data.names == "b\\udcf6xes.jsonl"
    assert data.warnings[0].startswith("t\\udce4st.pdf is a PDF")


@pytest.mark.parametrize("path", ["../etc/passwd", "/mnt/../etc/passwd", "data/../../etc", "a\0b"])
def test_a_path_that_leaves_mnt_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DatasetInvalid, match=r"dataset_path must be a file or a folder below /mnt, got "):
        load(tmp_path, DatasetConfig(dataset_path=path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_in_an_archive_are_both_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for text in TEXTS:
            archive.writestr("rows.jsonl", json.dumps({"text": text}))
    assert texts(load(tmp_path, WHOLE)) == TEXTS


def test_an_archive_that_takes_the_place_of_another_is_read_anew(tmp_path: Path) -> None:
    for text in TEXTS:
        (tmp_path / "x.zip").write_bytes(zipped({f"{text}.jsonl": json.dumps({"text": text * 9}).encode()}))
        assert texts(load(tmp_path, WHOLE)) == [text * 9]


def test_an_input_that_later_rows_have_is_read_from_each(tmp_path: Path) -> None:
    plain = {"instruction": "Sing.", "output": "La"}
    rows = [plain] * 150 + [plain | {"input": "Low."}, plain | {"context": "High."}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = [row["prompt"][0]["content"] for row in load(tmp_path, WHOLE).training]
    assert asked == ["Sing."] * 150 + ["Sing.\n\nLow.", "Sing.\n\nHigh."]
