"""JSON read in pieces says what was written, wherever a piece ends."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaito_tuning.data import json_rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.fixed_dictionaries({"text": st.text(), "meta": VALUES}), min_size=1, max_size=5)
INDENT = st.sampled_from([None, 0, 2])


class Dribble(io.StringIO):
    """Text that comes a few characters at a time."""

    def __init__(self, text: str, piece: int) -> None:
        super().__init__(text, newline="\n")
        self.piece = piece

    def read(self, size: int | None = -1, /) -> str:
        return super().read(self.piece if size is None or size < 0 else min(size, self.piece))


@settings(deadline=None)
@given(ROWS, INDENT, st.booleans(), st.integers(1, 40), st.data())
def test_every_way_to_write_rows_is_read_back(
    rows: list[dict[str, Any]], indent: int | None, ascii_only: bool, piece: int, data: st.DataObject
) -> None:
    def dump(value: object) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    written = data.draw(
        st.sampled_from(
            [
                "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows),
                dump(rows),
                dump({"version": 1, "rows": rows, "more": {"a": [1, "]"]}}),
                "\n".join(map(dump, rows)),
            ]
        )
    )
    assert list(json_rows.rows(lambda: Dribble(written, piece))) == rows


@pytest.mark.parametrize("piece", range(1, 12))
def test_a_number_goes_on_in_the_next_piece(piece: int) -> None:
    written = '{"a": 0.5, "b": 1e+5, "c": -12.25E-2}'
    assert list(json_rows.rows(lambda: Dribble(written, piece))) == [{"a": 0.5, "b": 1e5, "c": -0.1225}]


@settings(deadline=None)
@given(ROWS, st.integers(1, 40), st.floats(0.05, 0.95))
def test_a_list_that_is_cut_off_never_passes_for_whole(rows: list[dict[str, Any]], piece: int, share: float) -> None:
    written = json.dumps(rows)
    cut = written[: max(1, int(len(written) * share))]
    with pytest.raises(json_rows.Broken):
        list(json_rows.rows(lambda: Dribble(cut, piece)))


@pytest.mark.parametrize("rows", [3, 2500])
@pytest.mark.parametrize("before", [True, False], ids=["after other values", "before other values"])
def test_a_list_in_an_object_may_be_long(rows: int, before: bool) -> None:
    wanted = [{"text": str(number)} for number in range(rows)]
    holder = {"version": "1", "features": ["text"], "data": wanted} if before else {"data": wanted, "license": "MIT"}
    assert list(json_rows.rows(lambda: io.StringIO(json.dumps(holder)))) == wanted


@pytest.mark.parametrize("layout", ["an object", "a list"])
def test_a_file_of_one_line_is_read_a_piece_at_a_time(tmp_path: Path, layout: str) -> None:
    rows = [{"text": f"{number} {'word ' * 50}"} for number in range(40_000)]
    written = tmp_path / "rows.json"
    written.write_text(json.dumps({"data": rows} if layout == "an object" else rows))
    count, size = len(rows), written.stat().st_size
    del rows
    tracemalloc.start()
    read = sum(1 for _ in json_rows.rows(written.open))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == count
    assert size > 10 << 20
    assert peak < size / 2


LONG = "x" * (2 << 20)


@pytest.mark.parametrize("first", [f'{{"mine": [{{"a": "{LONG}"}}]}}', f'{{"mine": "{LONG}", "b": "\\\\"}}'])
def test_long_lines_with_an_object_each_are_rows(first: str) -> None:
    """What an object on a line of its own holds is no list of rows, however long the line."""
    written = f'{first}\n{{"mine": ["b"]}}\n'
    assert list(json_rows.rows(lambda: io.StringIO(written))) == [json.loads(first), {"mine": ["b"]}]


def test_a_long_first_line_that_is_no_json_is_one_bad_row(tmp_path: Path) -> None:
    written = f'{{"text": "{LONG}" oh}}\n{{"text": "b"}}\n'
    bad, good = json_rows.rows(lambda: io.StringIO(written))
    assert isinstance(bad, json_rows.Line)
    assert good == {"text": "b"}


@pytest.mark.parametrize("between", ["", "\n", "\r\n"])
def test_a_long_first_line_may_be_the_begin_of_a_document(between: str) -> None:
    written = f'{{"data": [{{"text": "{LONG}{{"}},{between}{{"text": "b"}}]}}'
    assert list(json_rows.rows(lambda: io.StringIO(written))) == [{"text": LONG + "{"}, {"text": "b"}]


TWICE = '{"text": "a", "text": "b"}'
GOOD = '{"text": "c"}'


@pytest.mark.parametrize("piece", [1, 5, 4096])
@pytest.mark.parametrize(
    "written",
    [
        f"{GOOD}\n{TWICE}\n{GOOD}\n",
        f"[{GOOD}, {TWICE}, {GOOD}]",
        f'{{"version": 1, "rows": [{GOOD}, {TWICE}, {GOOD}]}}',
    ],
    ids=["lines", "a list", "a list in an object"],
)
def test_a_row_that_has_a_name_twice_is_one_bad_row(written: str, piece: int) -> None:
    before, bad, after = json_rows.rows(lambda: Dribble(written, piece))
    assert before == after == {"text": "c"}
    assert isinstance(bad, json_rows.Line)
    assert "'text' twice" in bad


@pytest.mark.parametrize(
    "row",
    [
        TWICE,
        '{"messages": [{"role": "user", "role": "system", "content": "hi"}]}',
        '{"text": "a", "meta": {"more": [{"id": 1, "id": 1}]}}',
        '{"tags": [{"id": 1, "id": 2}], "text": "a"}',
        '{"te\\u0078t": "a", "text": "b"}',
    ],
    ids=["a column", "a message", "what is not read", "a list before its column", "an escape"],
)
@pytest.mark.parametrize("indent", ["", "\n"], ids=["one line", "several lines"])
def test_a_name_may_be_there_twice_anywhere_in_a_row(row: str, indent: str) -> None:
    (bad,) = json_rows.rows(lambda: io.StringIO(row.replace(", ", f",{indent} ")))
    assert isinstance(bad, json_rows.Line)
    assert "twice" in bad


def test_the_first_of_the_rows_in_an_object_may_have_a_name_twice() -> None:
    bad, good = json_rows.rows(lambda: io.StringIO(f'{{"rows": [{TWICE}, {GOOD}]}}'))
    assert isinstance(bad, json_rows.Line)
    assert good == {"text": "c"}


@pytest.mark.parametrize("rows", [1, 2500])
def test_an_object_that_has_its_list_of_rows_twice_is_no_data_set(rows: int) -> None:
    many = ", ".join([GOOD] * rows)
    with pytest.raises(json_rows.Broken, match="'data' twice"):
        list(json_rows.rows(lambda: io.StringIO(f'{{"data": [{many}],\n"data": [{many}]}}')))


def test_a_name_may_be_empty_once() -> None:
    (row,) = json_rows.rows(lambda: io.StringIO('{"": 1,\n"mine": "a"}'))
    assert row == {"": 1, "mine": "a"}
