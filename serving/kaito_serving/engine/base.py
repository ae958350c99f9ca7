"""The seam between the HTTP surfaces and whatever computes tokens.

A surface turns a request into `GenRequest`s (token ids and plain numbers, already validated against `Limits`), hands
each to an `Engine` and reads `Chunk`s. Engines know nothing of HTTP, templates or text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen among the most likely ones.

    `temperature` > 0; `top_k` 0 and `top_p` 1 do not limit.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class GenRequest:
    """One prompt to continue.

    `sampling` None means greedy. `special` holds further settings of transformers' GenerationConfig (beams, penalties,
    seeds); a request that has any runs alone. `adapters` None means the deployment's mix, {} the base model.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    eos_token_ids: frozenset[int]
    sampling: Sampling | None = None
    special: Mapping[str, Any] = field(default_factory=dict)
    sequences: int = 1  # answers to return; more than one only together with `special`
    adapters: Mapping[str, float] | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one answer; the last chunk of each `sequence` has `finish` set."""

    token_ids: tuple[int, ...]
    finish: Literal["stop", "length"] | None = None
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for; the engine relies on it, so surfaces check it first. Tokens."""

    vocabulary: int
    context: int  # prompt and answer together


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for metrics: requests, cache tokens, and restarts of the generation loop since the start."""

    waiting: int = 0
    running: int = 0
    kv_used: int = 0
    kv_total: int = 0
    restarts: int = 0


class Engine(Protocol):
    """What computes tokens. All methods are called in the event loop of the replica."""

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters, sorted."""
        ...

    @property
    def running(self) -> bool:
        """Whether requests are taken at this moment."""
        ...

    async def start(self) -> None:
        """Make ready to take requests."""
        ...

    async def stop(self) -> None:
        """End the running requests and free what is held."""
        ...

    def submit(self, request: GenRequest) -> AsyncGenerator[Chunk, None]:
        """Generate. Closing the generator cancels. TooManyRequests and EngineUnavailable come at the first step."""
        ...

    def check(self) -> None:
        """Raise when only a new process can help."""
        ...

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        ...
