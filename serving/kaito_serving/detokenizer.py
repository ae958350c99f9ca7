"""Text of a growing list of tokens, piece by piece.

A token's text depends on its neighbours: SentencePiece drops the space at the start of what is decoded, and a character
may be spread over several tokens. So each piece is the difference between two decodings of a short window, and it is
held back while it ends in the middle of a character (the replacement character U+FFFD).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BEFORE = 6  # tokens of context in front of a piece
_LONGEST_CHARACTER = 8  # tokens; what is longer is no character that will ever be complete

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """`decode` turns token ids into text; `before` are the tokens that the text follows, such as the prompt's."""

    def __init__(self, decode: Decode, before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(before[-_BEFORE:])
        self._given = len(self._window)  # tokens of the window whose text was given out

    def push(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` add and that no further token can change."""
        pieces = []
        for token in tokens:
            self._window.append(token)
            pieces.append(self._advance(final=False))
        return "".join(pieces)

    def flush(self) -> str:
        """What was held back, at the end of the tokens."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        whole = self._decode(self._window)
        held = len(self._window) - self._given
        if whole.endswith("\ufffd") and held < _LONGEST_CHARACTER and not final:
            return ""
        piece = whole[len(self._decode(self._window[: self._given])) :]
        self._window = self._window[max(0, len(self._window) - _BEFORE) :]
        self._given = len(self._window)
        return piece
