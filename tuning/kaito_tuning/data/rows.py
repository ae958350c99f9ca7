"""Rows of all files, those that can be trained on written to tables of one form, and the others counted and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import forms, readers
from kaito_tuning.data.content import Source
from kaito_tuning.data.forms import Form, Reading
from kaito_tuning.data.turns import Row, Unusable
from kaito_tuning.data.writer import Table
from kaito_tuning.errors import DatasetInvalid

LISTED_ROWS = 20
"""Rows that cannot be trained on and are listed by number and cause; more are only counted."""

_TURN = [("role", pa.string()), ("content", pa.string())]
_MESSAGES = pa.list_(pa.struct(_TURN))
_WEIGHTED = pa.list_(pa.struct([*_TURN, ("weight", pa.int8())]))

Refusal = Callable[[Sequence[Mapping[str, str]]], str]
"""Why a conversation cannot be rendered, such as templates.refused_by_roles; "" when it can."""


class Weighted(Exception):
    """A message has a weight, for which the tables have no column: they are written again with one."""


class Rows:
    """Reads sources into tables of one form; counts what cannot be used."""

    def __init__(
        self,
        config: DatasetConfig,
        scratch: Path,
        refusal: Refusal,
        *,
        several: bool,
        max_bytes: int | None,
        weighted: bool,
    ) -> None:
        self._config = config
        self._scratch = scratch
        self._refusal = refusal
        self._several = several
        self._left = max_bytes
        self._reading: Reading | None = None
        self._of: str = ""
        self._schema: pa.Schema | None = None
        self._texts: dict[str, bool] = {}
        self._listed: list[str] = []
        self._left_out: list[str] = []
        self._seen = 0
        self.bad = 0
        self.cut = False
        self.weighted = weighted

    @property
    def form(self) -> Form:
        """Of all rows; there must have been one."""
        assert self._reading is not None
        return self._reading.form

    def write(self, name: str, sources: Sequence[Source]) -> tuple[Path, int]:
        """The table's path and its number of rows."""
        path = self._scratch / f"{name}.arrow"
        with Table(path) as table:
            for source in sources:
                for row in self._good(source):
                    assert self._schema is not None
                    size = table.add(row, self._schema)
                    if self._left is not None:
                        self._left -= size
                        if self._left <= 0:
                            self.cut = True
                            return path, table.rows
        return path, table.rows

    def judge(self) -> list[str]:
        """What is said about columns that are not read, and rows that cannot be used.

        Raises DatasetInvalid when there are too many such rows.
        """
        if not self.bad:
            return self._left_out
        share, allowed = self.bad / self._seen, self._config.max_bad_rows
        counted = f"{self.bad:,} of {self._seen:,} rows cannot be trained on"
        first = self._listed[0]
        if self._config.on_bad_rows == "fail":
            only = self.bad == 1
            way_out = "; DatasetConfig.on_bad_rows: skip leaves such rows out" if share <= allowed else ""
            raise DatasetInvalid(f"{first}{'' if only else f'; {counted}'}{way_out}", rows=tuple(self._listed))
        if share > allowed:
            raise DatasetInvalid(
                f"{first}; {counted} ({share:.1%}), more than DatasetConfig.max_bad_rows allows ({allowed:.1%})",
                rows=tuple(self._listed),
            )
        more = self.bad - len(self._listed)
        listed = "; ".join(self._listed) + (f"; and {more:,} more" if more else "")
        return [*self._left_out, f"left out {self.bad:,} of {self._seen:,} rows: {listed}"]

    def _good(self, source: Source) -> Iterator[Row]:
        """The rows of one file that can be trained on."""
        reading: Reading | None = None

        def choose(columns: Sequence[str]) -> Sequence[str]:
            nonlocal reading
            reading = self._agreed(source, columns)
            return reading.columns

        for number, given in enumerate(readers.rows(source, choose, self._scratch), start=1):
            self._seen += 1
            if isinstance(given, readers.BadRow):
                self._refuse(source, given)
            elif reading is not None:
                try:
                    row = reading.row(given)
                    self._fit(row)
                    messages = forms.conversation(row)
                    if messages and (refused := self._refusal(messages)):
                        raise Unusable(refused)
                except Unusable as why:
                    self._refuse(source, f"row {number}: {why}")
                else:
                    yield row

    def _agreed(self, source: Source, columns: Sequence[str]) -> Reading:
        reading = forms.reading(columns, self._config)
        if reading.left_out and reading.left_out not in self._left_out:
            self._left_out.append(reading.left_out)
        if self._reading is None:
            self._reading, self._of = reading, source.name
        if reading.form != self._reading.form:
            raise DatasetInvalid(
                f"{source.name} holds rows of the form {reading.form} and {self._of} of the form {self._reading.form}; "
                "choose one with DatasetConfig.dataset_path"
            )
        return reading

    def _fit(self, row: Row) -> None:
        """Makes the tables' schema of the first row. Raises Unusable for a row of another one."""
        texts = {name: isinstance(value, str) for name, value in row.items()}
        if self._schema is None:
            self._texts = texts
            messages = _WEIGHTED if self.weighted else _MESSAGES
            self._schema = pa.schema({name: pa.string() if text else messages for name, text in texts.items()})
        elif texts != self._texts:
            raise Unusable("prompt and completion are texts here and lists of messages in other rows, or the reverse")
        if not self.weighted and any("weight" in message for message in row.get("messages", ())):
            raise Weighted

    def _refuse(self, source: Source, sentence: str) -> None:
        self.bad += 1
        if len(self._listed) < LISTED_ROWS:
            self._listed.append(f"{source.name}, {sentence}" if self._several else sentence)
