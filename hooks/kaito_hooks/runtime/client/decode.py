"""JSON from an API server, in which a user may have nested an object deeper than Python's decoder goes.

An API server takes ten thousand levels (``maxNestingDepth`` of Go's encoding/json), Python's decoder ends at its
recursion limit; and one object that cannot be read would keep a whole list, and so everybody's objects, from a cache.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 200
"""Levels of one answer that are kept where not all can be: those of a list and of any object that means something."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_OPEN, _CLOSE = frozenset(b"[{"), frozenset(b"]}")


def decode(data: bytes) -> Any:
    """The value; if it is nested too deep, what lies below ``MAX_DEPTH`` levels is null. Raises ValueError."""
    try:
        return json.loads(data)
    except RecursionError:
        return json.loads(_cut(data))


def _cut(data: bytes) -> bytes:
    kept: list[bytes] = []
    depth, start = 0, 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        if first in _OPEN:
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += [data[start : token.start()], b"null"]
        elif first in _CLOSE:
            if depth == MAX_DEPTH + 1:
                start = token.end()
            depth -= 1
    return b"".join([*kept, data[start:]])
