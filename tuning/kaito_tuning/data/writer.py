"""An Arrow stream on disk, written some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from kaito_tuning.data.turns import Row

_ROWS_A_BATCH = 1000
_BYTES_A_BATCH = 8 << 20


class Table:
    """A table being written; ``rows`` so far. Errors of the disk are raised as OSError."""

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._schema: pa.Schema | None = None
        self._held: list[Row] = []
        self._bytes = 0
        self.rows = 0

    def __enter__(self) -> Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()
        self._file.close()

    def add(self, row: Row, schema: pa.Schema) -> int:
        """Takes a row; returns about how many bytes it has."""
        self._schema = schema
        self._held.append(row)
        self.rows += 1
        size = _size(row)
        self._bytes += size
        if len(self._held) >= _ROWS_A_BATCH or self._bytes >= _BYTES_A_BATCH:
            self._flush()
        return size

    def _flush(self) -> None:
        if self._schema is None or not self._held:
            return
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._file, self._schema)
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._held, schema=self._schema))
        self._held.clear()
        self._bytes = 0


def _size(row: Mapping[str, Any]) -> int:
    """Characters of all texts of a row."""
    return sum(
        len(value) if isinstance(value, str) else sum(len(message["content"]) + 8 for message in value)
        for value in row.values()
    )
