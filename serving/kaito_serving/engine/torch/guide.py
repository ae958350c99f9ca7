"""Answers that satisfy a JSON schema: llguidance says before each token which ones can follow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from torch import Tensor

from kaito_serving.errors import InvalidRequest

# A weak model would otherwise fill its answer with blanks, which JSON allows anywhere.
_BLANKS = r"[ \n\t]{0,16}"


class SchemaGuide:
    """One answer's way through its schema."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends

    def forbid(self, scores: Tensor) -> None:
        """Set the scores [V] of tokens that cannot follow to -inf, in place."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        scores[: allowed.shape[0]].masked_fill_((allowed == 0).to(scores.device), -math.inf)
        scores[allowed.shape[0] :] = -math.inf

    def accept(self, token: int) -> bool:
        """Go on by one token; True when nothing can follow."""
        if token in self._ends:
            return True
        self._matcher.consume_token(token)
        stopped: bool = self._matcher.is_stopped()
        return stopped


class Guides:
    """Makes guides for one tokenizer, a fast one of transformers; `vocabulary` is the width of the model's scores."""

    def __init__(self, tokenizer: Any, *, vocabulary: int, ends: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = sorted(ends)

    @cached_property
    def _words(self) -> Any:
        return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._ends)

    def make(self, schema: str) -> SchemaGuide:
        """A guide for a JSON Schema text; InvalidRequest when it cannot be followed. Takes up to a second."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _BLANKS})
        except ValueError as error:
            raise InvalidRequest(f"The JSON schema cannot be read: {error}") from error
        matcher = LLMatcher(self._words, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise InvalidRequest(f"The JSON schema cannot be followed: {reason}")
        return SchemaGuide(matcher, frozenset(self._ends))
