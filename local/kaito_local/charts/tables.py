"""Tables of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with one line per row; cells are Markdown already, but for bars and ends of lines."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def code(value: Any) -> str:
    """``value`` as code; "" for an empty one. A backtick of it is kept by a longer fence (CommonMark, 6.1)."""
    written = str(value)
    if not written:
        return ""
    return f"`` {written} ``" if "`" in written else f"`{written}`"


def text(words: str) -> str:
    """``words`` as Markdown: what looks like a tag of HTML outside of code is none."""
    parts = words.split("`")
    return "`".join(part if index % 2 else part.replace("<", r"\<") for index, part in enumerate(parts))


def _cell(words: str) -> str:
    return re.sub(r"\s+", " ", words).strip().replace("|", r"\|")
