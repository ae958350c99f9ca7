"""Stop strings, found as the answer grows."""

from __future__ import annotations

from collections.abc import Sequence

from kaito_serving.detokenizer import Detokenizer


class StopStrings:
    """Looks for `strings` in the text of one answer."""

    def __init__(self, strings: Sequence[str], detokenizer: Detokenizer) -> None:
        self._strings = strings
        self._detokenizer = detokenizer
        self._tail = ""
        self._overlap = max(map(len, strings)) - 1  # characters of earlier tokens that a match may begin in

    def push(self, token: int) -> str | None:
        """The stop string that `token` completes; the one that begins first when there are several."""
        text = self._tail + self._detokenizer.push((token,))
        found = [(at, string) for string in self._strings if (at := text.find(string)) >= 0]
        self._tail = text[max(0, len(text) - self._overlap) :]
        return min(found)[1] if found else None
