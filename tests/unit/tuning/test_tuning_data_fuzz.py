"""Whatever a file holds, it is read or refused with a sentence: never another error, never a row that is half there."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import load
from kaito_tuning.errors import DatasetInvalid

WHOLE = DatasetConfig(train_test_split=1, shuffle_dataset=False)
NAMES = st.sampled_from(["x", "x.csv", "x.json", "x.jsonl", "x.parquet", "x.arrow", "x.zip", "x.gz", "x.txt", "README"])
TEXTS = [f"text {number}" for number in range(20)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), sink)
    return sink.getvalue()


def arrow() -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


WHOLE_FILES = [
    LINES,
    json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
    ("id,text\n" + "".join(f'{number},"{text}"\n' for number, text in enumerate(TEXTS))).encode(),
    parquet(),
    arrow(),
    gzip.compress(LINES),
    bz2.compress(LINES),
    bytes(pa.compress(LINES, codec="zstd", asbytes=True)),
]


def read(name: str, content: bytes) -> list[str] | None:
    """The texts, or None for a refusal."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        try:
            return [str(row) for row in load(Path(folder), WHOLE).training]
        except DatasetInvalid:
            return None


@settings(deadline=None, max_examples=150)
@given(NAMES, st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(name: str, content: bytes) -> None:
    read(name, content)


@settings(deadline=None, max_examples=150)
@given(NAMES, st.text(alphabet='{}[]",:abc \n\t\\u0e-1', max_size=60))
def test_anything_like_json_or_csv_is_read_or_refused(name: str, content: str) -> None:
    read(name, content.encode())


@settings(deadline=None, max_examples=150)
@given(NAMES, st.sampled_from(WHOLE_FILES), st.floats(0, 1), st.binary(max_size=3), st.booleans())
def test_a_damaged_file_is_read_or_refused(name: str, whole: bytes, where: float, patch: bytes, cut: bool) -> None:
    at = int(len(whole) * where)
    read(name, whole[:at] + patch + (b"" if cut else whole[at + len(patch) :]))
