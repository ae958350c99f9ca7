"""The rows of one file, a few at a time, whatever its format."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kaito_tuning.data import json_rows
from kaito_tuning.data.content import DAMAGED, Source, delimiter
from kaito_tuning.errors import DatasetInvalid

_ROWS_AT_ONCE = 1000
_BYTES_AT_ONCE = 16 << 20
_ROWS_ASKED = 100
"""Rows of JSON, which has no header, whose names are asked about."""


_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


class BadRow(str):
    """In the place of a row that cannot be read: where it is and why."""


Columns = Callable[[Sequence[str]], Sequence[str]]
"""Told the columns of a file, says which of them to read."""


def rows(source: Source, choose: Columns, scratch: Path) -> Iterator[Mapping[str, Any] | BadRow]:
    """Every row in order. ``choose`` is asked once, before the first row; ``scratch`` takes what must be unpacked.

    Raises DatasetInvalid when the rest of the file cannot be read.
    """
    read = {"json": _json, "csv": _csv, "parquet": _parquet, "arrow": _arrow}[source.kind]
    try:
        yield from read(source, choose, scratch)
    except json_rows.Broken as error:
        raise DatasetInvalid(f"{source.name}: {error}") from None
    except (ValueError, OverflowError, csv.Error, pa.ArrowException, *DAMAGED) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        what = " ".join(str(error).split())[:300]
        raise DatasetInvalid(f"{source.name} cannot be read as {source.kind}: {what}") from error


def _json(source: Source, choose: Columns, scratch: Path) -> Iterator[Mapping[str, Any] | BadRow]:
    held: list[Mapping[str, Any] | BadRow] = []
    chosen = False
    for number, value in enumerate(json_rows.rows(source.text), start=1):
        held.append(_object(value, number))
        if not chosen and len(held) < _ROWS_ASKED:
            continue
        if not chosen:
            chosen = _ask(choose, held)
        yield from held
        held.clear()
    if held:
        if not chosen:
            _ask(choose, held)
        yield from held


def _object(value: Any, number: int) -> Mapping[str, Any] | BadRow:
    if isinstance(value, json_rows.Line):
        return BadRow(value)
    if isinstance(value, dict):
        return value
    return BadRow(f"row {number} is {type(value).__name__}, not an object with named columns")


def _ask(choose: Columns, held: Sequence[Mapping[str, Any] | BadRow]) -> bool:
    """Of the first rows that are objects, all names: rows need not have the same ones."""
    objects = [row for row in held if not isinstance(row, BadRow)]
    if objects:
        choose(list(dict.fromkeys(name for row in objects for name in row)))
    return True


def _csv(source: Source, choose: Columns, scratch: Path) -> Iterator[Mapping[str, Any] | BadRow]:
    csv.field_size_limit(json_rows.LONGEST_VALUE)
    with source.text() as text:
        first = next(filter(str.strip, iter(lambda: text.readline(json_rows.LONGEST_VALUE), "")), "")
        if "\r" in first.rstrip("\r\n"):
            raise DatasetInvalid(f"{source.name} ends its lines with carriage returns alone; save it with line feeds")
        between = delimiter(first)
        lines = csv.reader(chain([first], text), delimiter=between, strict=True)
        header = next(lines, [])
        _once(header, source)
        if len(header) == 1 and "|" in header[0]:
            raise DatasetInvalid(
                f"{source.name} has one column, {header[0]}; part columns with a comma, a semicolon or a tab"
            )
        choose(header)
        number = 0
        while True:
            try:
                fields = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                raise DatasetInvalid(
                    f"{source.name}, row {number + 1} is not CSV: {error}; is a quote not closed or not doubled?"
                ) from None
            if not fields:
                continue
            number += 1
            if len(fields) == len(header):
                yield dict(zip(header, fields, strict=True))
            else:
                plural = "" if len(fields) == 1 else "s"
                many = f"; a text with {_DELIMITERS[between]} in it needs double quotes"
                more = many if len(fields) > len(header) else ""
                yield BadRow(f"row {number} has {len(fields)} field{plural}, the header has {len(header)}{more}")


def _parquet(source: Source, choose: Columns, scratch: Path) -> Iterator[Mapping[str, Any] | BadRow]:
    with _on_disk(source, scratch) as path, pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        names = file.schema_arrow.names
        _once(names, source)
        columns = list(choose(names))
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        listed = _Listed()
        at_once = _at_once(sum(group.total_byte_size for group in groups), file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=at_once, columns=columns, use_threads=False):
            yield from listed.rows(batch)


def _arrow(source: Source, choose: Columns, scratch: Path) -> Iterator[Mapping[str, Any] | BadRow]:
    with _on_disk(source, scratch) as path, pa.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
        names = reader.schema.names
        _once(names, source)
        columns = list(choose(names))
        listed = _Listed()
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in batches:
            batch = batch.select(columns)
            batch.validate(full=True)  # a damaged file's offsets may point outside of its memory
            at_once = _at_once(batch.nbytes, batch.num_rows)
            for start in range(0, batch.num_rows, at_once):
                yield from listed.rows(batch.slice(start, at_once))


class _Listed:
    """Rows of record batches, one after the other, whose maps are mappings."""

    def __init__(self) -> None:
        self._before = 0

    def rows(self, batch: pa.RecordBatch) -> Iterator[Mapping[str, Any] | BadRow]:
        """A BadRow in the place of one with a map that has a key twice."""
        try:
            yield from batch.to_pylist(maps_as_pydicts="strict")
        except KeyError:
            yield from (self._row(batch, at) for at in range(batch.num_rows))
        self._before += batch.num_rows

    def _row(self, batch: pa.RecordBatch, at: int) -> Mapping[str, Any] | BadRow:
        try:
            row: Mapping[str, Any] = batch.slice(at, 1).to_pylist(maps_as_pydicts="strict")[0]
        except KeyError:
            return BadRow(f"row {self._before + at + 1} holds a map that has a key twice")
        return row


def _once(names: Sequence[str], source: Source) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DatasetInvalid(f"{source.name} has two columns named {twice!r}")


def _at_once(size: int, rows: int) -> int:
    """How many rows to hold in memory, when so many rows have so many bytes."""
    return max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE * rows // max(size, 1)))


def _on_disk(source: Source, scratch: Path) -> AbstractContextManager[Path]:
    if source.compression is None and source.member is None:
        return nullcontext(source.path)
    return _unpacked(source, scratch)


@contextmanager
def _unpacked(source: Source, scratch: Path) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(dir=scratch) as file:
        with source.open() as packed:
            shutil.copyfileobj(packed, file, 1 << 20)
        file.flush()
        yield Path(file.name)
