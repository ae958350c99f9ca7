"""JSON of whose objects it is known whether they have a name twice: RFC 8259 leaves open what that means, and Python's
reader keeps the last value without a word.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any


class Decoder:
    """``twice``: a name that an object in the value decoded last has more than once; "" if there is none."""

    def __init__(self) -> None:
        self.twice = ""
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        """The value that a text is. Raises ValueError or RecursionError, as json.loads does."""
        self.twice = ""
        return self._decoder.decode(text)

    def raw_decode(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at ``at``, and where it ends. Raises what json.JSONDecoder.raw_decode does."""
        self.twice = ""
        return self._decoder.raw_decode(text, at)

    def _object(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            self.twice = repr(name)
        return found
