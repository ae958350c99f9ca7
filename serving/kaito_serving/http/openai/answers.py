"""The text of an answer as it grows: whole characters only, nothing of a stop string, with logprobs when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kaito_serving.detokenizer import Detokenizer
from kaito_serving.engine.base import Chunk, TokenLogprobs
from kaito_serving.http.text import Text


class Answer:
    """The text of one choice. What may be the start of a stop string is held back until it is clear."""

    def __init__(self, text: Text, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(text.decode, prompt_ids)
        self._stop = stop
        self._held = ""
        self.tokens = 0
        self.given = 0  # characters

    def push(self, chunk: Chunk) -> str:
        """What `chunk` adds."""
        text = self._next(chunk)
        self.given += len(text)
        return text

    def _next(self, chunk: Chunk) -> str:
        self.tokens += len(chunk.token_ids)
        text = self._held + self._detokenizer.push(chunk.token_ids)
        if chunk.finish_reason is None:
            keep = self._possible_stop(text)
            self._held = text[len(text) - keep :]
            return text[: len(text) - keep]
        text += self._detokenizer.flush()
        self._held = ""
        if isinstance(chunk.stop_reason, str):
            text = text[: text.find(chunk.stop_reason)] if chunk.stop_reason in text else text
        return text

    def _possible_stop(self, text: str) -> int:
        """How many characters at the end of `text` may begin a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-size:]) for string in self._stop):
                return size
        return 0


def chat_logprobs(text: Text, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """The logprobs object of /v1/chat/completions."""

    def shown(token: int, logprob: float) -> dict[str, Any]:
        string = text.decode([token], special=True)
        return {"token": string, "logprob": logprob, "bytes": list(string.encode())}

    return {
        "content": [
            {**shown(entry.token_id, entry.logprob), "top_logprobs": [shown(*each) for each in entry.top]}
            for entry in entries
        ]
    }


def completion_logprobs(
    text: Text, entries: Sequence[TokenLogprobs | None], ids: Sequence[int], *, start: int
) -> dict[str, Any]:
    """The logprobs object of /v1/completions; `start` is the place of the first token in the choice's text."""
    tokens = [text.decode([token], special=True) for token in ids]
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
        "top_logprobs": [
            None if entry is None else {text.decode([token], special=True): value for token, value in entry.top}
            for entry in entries
        ],
        "text_offset": offsets,
    }
