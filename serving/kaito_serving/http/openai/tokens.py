"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kaito_serving.engine.base import Limits
from kaito_serving.errors import InvalidRequest
from kaito_serving.http.openai import params
from kaito_serving.http.openai.contract import DetokenizeRequest, TokenizeRequest
from kaito_serving.http.text import Text


class Tokens:
    """The endpoints over the tokenizer of a model with `limits`."""

    def __init__(self, text: Text, limits: Limits) -> None:
        self._text = text
        self._limits = limits

    async def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        """POST /tokenize."""
        if (request.prompt is None) == (request.messages is None):
            raise InvalidRequest("Give either prompt or messages.", param="prompt")
        if request.messages is not None:
            text, special = self._text.render(params.plain(request.messages)), False
        else:
            text, special = request.prompt or "", True
        if request.add_special_tokens is not None:
            special = request.add_special_tokens
        ids = await self._text.encode(text, special=special)
        return {"count": len(ids), "max_model_len": self._limits.context, "tokens": ids}

    def detokenize(self, request: DetokenizeRequest) -> dict[str, Any]:
        """POST /detokenize."""
        check_ids(request.tokens, self._limits, field="tokens")
        return {"prompt": self._text.decode(request.tokens, special=True)}


def check_ids(ids: Sequence[int], limits: Limits, *, field: str) -> None:
    """InvalidRequest when `field` holds a token that the model does not have."""
    beyond = [token for token in ids if token >= limits.vocabulary]
    if beyond:
        raise InvalidRequest(f"{field} holds token {beyond[0]}; the model has {limits.vocabulary}.", param=field)
