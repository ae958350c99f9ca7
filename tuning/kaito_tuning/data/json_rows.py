"""JSON as rows, a piece at a time: one object per line, one list, one object, or an object that holds the list."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, TextIO

from kaito_tuning.data.forms import KNOWN_COLUMNS
from kaito_tuning.data.turns import looks_like_a_turn
from kaito_tuning.json_names import Decoder

LONGEST_VALUE = 256 << 20
"""Characters of one row, one line or one field; more is taken for a quote that nobody closed."""

_KEPT = 1000
"""Objects of a list that are held back until it is clear that the list is the rows and not a part of one."""

_PIECE = 1 << 20
_NEAR_END = 16
_NUMBER_GOES_ON = 3
"""Characters behind a number that may yet be a part of it, as in 1e+ before its digits."""
_MARKS = re.compile(r'\\.|["{}\[\]]', re.DOTALL)


_MARK = "\ufeff"
"""A byte order mark, where several files with one were put together."""


class Broken(Exception):
    """The rest of the file cannot be read; the text says where and why."""


class Line(str):
    """Why a line, or an object, is no row."""


def rows(opened: Callable[[], TextIO]) -> Iterator[Any]:
    """Every value that should be a row, in order; a Line in the place of one that is no JSON. Raises Broken.

    The file is opened twice: how it is laid out shows only where its first line ends, which may be its whole length.
    """
    with opened() as text:
        lines = _has_lines(text)
    with opened() as text:
        yield from _lines(text) if lines else _Document(text).rows()


def _has_lines(text: TextIO) -> bool:
    """Whether each line is an object, not all of them together; one of the first two may be a mistake."""
    first = text.readline(_PIECE)
    while first and not first.strip():
        first = text.readline(_PIECE)
    if _is_long(first) and first.lstrip().startswith("["):
        return False
    one = _is_object(first, text)
    second = text.readline(_PIECE)
    return bool(one and second.strip()) or _is_object(second, text)


def _is_long(begin: str) -> bool:
    return len(begin) == _PIECE and not begin.endswith("\n")


def _is_object(begin: str, text: TextIO) -> bool:
    """Whether a line that begins so is an object and nothing else; the cursor is behind it then.

    Of a long line only the brackets are counted.
    """
    if _is_long(begin):
        return _is_balanced(begin, text) and begin.lstrip().startswith("{")
    if not begin.lstrip().startswith("{"):
        return False
    try:
        json.loads(begin)
    except (ValueError, RecursionError):
        return False
    return True


def _is_balanced(piece: str, text: TextIO) -> bool:
    depth, quoted, escaped = 0, False, False
    while piece:
        for mark in _MARKS.finditer(piece, int(escaped)):
            if mark[0] == '"':
                quoted = not quoted
            elif not quoted:
                depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(mark[0], 0)
        rest = piece[int(escaped) :]
        escaped = (len(rest) - len(rest.rstrip("\\"))) % 2 == 1
        if piece.endswith("\n"):
            break
        piece = text.readline(_PIECE)
    return depth == 0 and not quoted


def _lines(text: TextIO) -> Iterator[Any]:
    decoder = Decoder()
    for number, line in enumerate(iter(lambda: text.readline(LONGEST_VALUE), ""), start=1):
        if not line.endswith("\n") and len(line) >= LONGEST_VALUE:
            raise Broken(f"line {number} is longer than {LONGEST_VALUE >> 20} MiB")
        yield from _line(line, number, decoder)


def _line(line: str, number: int, decoder: Decoder) -> Iterator[Any]:
    line = line.removeprefix(_MARK)
    if not line.strip():
        return
    try:
        value = decoder.decode(line)
        yield value if not decoder.twice else _twice(number, decoder.twice)
    except ValueError as error:
        yield Line(f"line {number} is not JSON: {error}")
    except RecursionError:
        yield Line(f"line {number} is nested too deeply")


def _twice(line: int, name: str) -> Line:
    return Line(f"line {line} holds an object that has {name} twice")


def _may_be_a_row(value: object) -> bool:
    return isinstance(value, Line) or (isinstance(value, dict) and not looks_like_a_turn(value))


class _Document:
    """A cursor over JSON text that is read as it is needed."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._read = ""
        self._at = 0
        self._line = 1
        self._decoder = Decoder()

    def rows(self) -> Iterator[Any]:
        """The elements of lists and of lists in objects; an object without such a list is a row itself."""
        while (start := self._next()) != "":
            if start == "[":
                self._take("[")
                yield from self._elements()
            elif start == "{":
                yield from self._object()
            else:
                raise Broken(f"line {self._line} is not JSON: {self._ahead()!r} is neither an object nor a list")

    def _object(self) -> Iterator[Any]:
        """A row, or what the object's only list of objects holds; a row is known by the name of a column."""
        self._take("{")
        found: dict[str, Any] = {}
        lists: list[str] = []
        passed_on, twice = "", ""
        while self._next() != "}":
            name = self._value()
            if not isinstance(name, str):
                raise Broken(f"line {self._line} is not JSON: the name of a value must be a text in double quotes")
            if name in found or (passed_on and name == passed_on):
                twice = twice or _twice(self._line, repr(name))
            self._take(":")
            if self._next() == "[" and not KNOWN_COLUMNS & {name, *found}:
                self._take("[")
                elements = self._elements()
                found[name] = list(islice(elements, _KEPT))
                if found[name] and _may_be_a_row(found[name][0]):
                    lists.append(name)
                    if len(found[name]) == _KEPT and len(lists) == 1:
                        passed_on = name
                        yield from found.pop(name)
                        yield from elements
                found.get(name, []).extend(elements)
            else:
                found[name] = self._value()
            if self._next() != "}":
                self._take(",")
        self._take("}")
        if (KNOWN_COLUMNS & found.keys() and not passed_on) or not lists:
            held = chain.from_iterable(value if isinstance(value, list) else [value] for value in found.values())
            yield twice or next((value for value in held if isinstance(value, Line)), found)
        elif twice:
            raise Broken(twice)
        elif len(lists) > 1:
            raise Broken(f"it holds several lists of rows ({', '.join(lists)}); put each into its own file")
        elif not passed_on:
            yield from found[lists[0]]

    def _elements(self) -> Iterator[Any]:
        if self._next() == "]":
            self._take("]")
            return
        yield self._value()
        yield from self._more()

    def _more(self) -> Iterator[Any]:
        while self._next() == ",":
            self._take(",")
            yield self._value()
        self._take("]")

    def _value(self) -> Any:
        """The next value, or a Line in its place if an object in it has a name twice."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._read, self._at)
            except RecursionError:
                raise Broken(f"line {self._line} is nested too deeply") from None
            except ValueError as error:
                if not isinstance(error, json.JSONDecodeError):  # a number of more digits than Python takes
                    raise Broken(f"line {self._line} holds a value that cannot be read: {error}") from None
                line = self._line + self._read.count("\n", self._at, error.pos)
                # A value that ends with what is read so far may go on; any other mistake is one.
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self._read) - _NEAR_END
                if unfinished and len(self._read) - self._at < LONGEST_VALUE and self._fill():
                    continue
                if error.msg.startswith("Unterminated") or not self._read[error.pos :].strip():
                    raise Broken(f"the file ends too early, in line {line}; is it cut off?") from None
                raise Broken(f"line {line} is not JSON: {error.msg}") from None
            if end + _NUMBER_GOES_ON < len(self._read) or not self._fill():
                self._line += self._read.count("\n", self._at, end)
                self._at = end
                return value if not self._decoder.twice else _twice(self._line, self._decoder.twice)

    def _next(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            while self._at < len(self._read):
                character = self._read[self._at]
                if character not in " \t\r\n":
                    return character
                self._line += character == "\n"
                self._at += 1
            if not self._fill():
                return ""

    def _take(self, expected: str) -> None:
        if self._next() != expected:
            found = self._ahead()
            raise Broken(
                f"line {self._line} is not JSON: {expected!r} must follow, not {found!r}"
                if found
                else "the file ends too early; is it cut off?"
            )
        self._at += 1

    def _ahead(self) -> str:
        return self._read[self._at : self._at + 20]

    def _fill(self) -> bool:
        """Reads on, twice as much as is held, so that a long value is not decoded again for every piece."""
        piece = self._text.read(max(_PIECE, len(self._read) - self._at))
        if not piece:
            return False
        # The lines before the cursor are counted already, so what is behind it can go.
        self._read, self._at = self._read[self._at :] + piece, 0
        return True
