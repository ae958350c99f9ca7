"""Between text and token ids, for every surface: prompts, chat templates, answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from kaito_serving.errors import InvalidRequest

_LONG_TEXT = 20_000  # characters; tokenising more than that would hold up the event loop


class Text:
    """`tokenizer` is transformers' fast tokenizer of the model, `vocabulary` the number of tokens that it knows."""

    def __init__(self, tokenizer: Any, *, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary

    @property
    def longest(self) -> int:
        """Tokens that the tokenizer says a text may have."""
        return int(self._tokenizer.model_max_length)

    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special`: with those that the tokenizer puts around a text. InvalidRequest: not Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidRequest("The text holds half of a surrogate pair, which is no valid Unicode.") from None
        if len(text) > _LONG_TEXT:
            return await asyncio.to_thread(self._encode, text, special)
        return self._encode(text, special)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation as the model's chat template writes it, up to where the answer begins."""
        if not self._tokenizer.chat_template:
            raise InvalidRequest(
                "This model has no chat template; start the server with --chat_template or use prompt."
            )
        try:
            text: str = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template raises what it likes, besides what Jinja and its sandbox raise
            why = str(error) or type(error).__name__
            raise InvalidRequest(f"The messages do not suit the chat template: {why}") from error
        return text

    def decode(self, ids: Sequence[int], *, special: bool = False, clean_up: bool = False) -> str:
        """The text of token ids; `special`: with special tokens."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=clean_up
        )
        return text

    def _encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        beyond = [token for token in ids if token >= self._vocabulary]
        if beyond:
            raise InvalidRequest(f"The text holds the token {beyond[0]}, which the model does not know.")
        return ids
