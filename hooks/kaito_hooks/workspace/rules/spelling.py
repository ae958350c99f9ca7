"""What a misspelt name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 253
"""No name of the API is longer; comparing longer ones would only take time."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that names what was probably meant, in any case, "" if nothing is near."""
    in_lower_case = {other.lower(): other for other in sorted(known)}
    close = difflib.get_close_matches(name[:_LONGEST].lower(), in_lower_case, n=1, cutoff=0.6)
    return f"; did you mean {in_lower_case[close[0]]}?" if close else ""
