"""One request in the engine: its tokens, its place in the cache, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kaito_serving.engine.base import Request, TokenLogprobs
from kaito_serving.engine.torch.arena import Span
from kaito_serving.engine.torch.sampling import Sampler
from kaito_serving.engine.torch.stops import StopStrings


@dataclass(slots=True, eq=False)
class Row:
    """`tokens` are those of the prompt and of the answer; the first `span.used` of them are in the cache.

    `mix` is the adapters' vector s [R], None for the base model alone. `came` and `admitted` are moments of the
    engine's clock, in seconds.
    """

    request: Request
    arrival: int
    sampler: Sampler
    came: float
    admitted: float = 0.0
    stops: StopStrings | None = None
    mix: Tensor | None = None
    span: Span | None = None
    cache: Any = None  # transformers' own, where rows are computed one by one
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """Tokens of the prompt and of the answer."""
        return self.sampler.tokens

    @property
    def reservation(self) -> int:
        """Positions of the cache that the request needs at most."""
        return len(self.request.prompt_ids) + self.request.params.max_tokens

    def prompt_logits(self, count: int) -> int:
        """How many of its next `count` tokens are followed by a token of the prompt whose logprobs were asked for."""
        if self.request.params.prompt_logprobs is None or self.span is None:
            return 0
        return max(0, min(count, len(self.request.prompt_ids) - 1 - self.span.used))

    @property
    def pending(self) -> int:
        """Tokens that passes must take in before the next one can be chosen."""
        return len(self.tokens) - (self.span.used if self.span is not None else 0)
