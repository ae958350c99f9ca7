"""The seam between the HTTP surfaces and whatever computes tokens, in the vocabulary of vLLM's SamplingParams.

A surface turns what a client sent into a `Request` (token ids and plain numbers, already checked against `Limits`),
hands it to an `Engine` and reads `Chunk`s. Engines know nothing of HTTP and of chat templates.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

import httpx


class State(StrEnum):
    """What an engine does at the moment; requests are taken in READY alone."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How an answer is chosen and where it ends. Names and meanings are vLLM's; where they are not, the line says so.

    Lengths are in tokens of the answer. The values given here as defaults change nothing.
    """

    max_tokens: int
    min_tokens: int = 0  # until then no stop token is chosen
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0  # transformers': locally typical sampling (Meister et al. 2022)
    epsilon_cutoff: float = 0.0  # transformers': tokens below this probability are never drawn (Hewitt et al. 2022)
    eta_cutoff: float = 0.0  # transformers': the same with a threshold that follows the entropy
    presence_penalty: float = 0.0  # of the answer's tokens
    frequency_penalty: float = 0.0  # of the answer's tokens
    repetition_penalty: float = 1.0  # of the prompt's and the answer's tokens (Keskar et al. 2019)
    no_repeat_ngram_size: int = 0  # transformers': no sequence of so many tokens occurs twice, prompt included
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # transformers': sequences that never occur
    suppress_tokens: tuple[int, ...] = ()  # transformers': tokens that never occur
    begin_suppress_tokens: tuple[int, ...] = ()  # transformers': tokens that are never the first
    forced_bos_token_id: int | None = None  # transformers': the first token
    forced_eos_token_ids: tuple[int, ...] = ()  # transformers': one of them is the last token at max_tokens
    length_decay: tuple[int, float] | None = None  # transformers' exponential_decay_length_penalty: start, factor
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()  # the answer ends with the token that completes one of them
    stop_token_ids: frozenset[int] = frozenset()  # the model's end-of-text tokens included
    seed: int | None = None
    logprobs: int | None = None  # of so many most likely tokens beside the chosen one
    prompt_logprobs: int | None = None  # the same for the tokens of the prompt
    json_schema: str | None = None  # JSON Schema text that the answer must satisfy


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to continue.

    `adapters` None means the deployment's mix, {} the base model. `deadline` is in seconds of the engine's monotonic
    clock. Waiting requests are taken by falling `priority`, then fairly among `client`s, then by arrival.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    adapters: Mapping[str, float] | None = None
    deadline: float | None = None
    priority: int = 0
    client: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities by the model alone, before any setting: of one token and of the likeliest."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of an answer; `finish_reason` is set in the last chunk.

    `stop_reason` is the stop string or the stop token that ended the answer; the token is among `token_ids`.
    `logprobs` holds one entry per token when they were asked for; `prompt_logprobs`, in the first chunk, one per token
    of the prompt, None for the first. `queued`, in the first chunk, is how many seconds the request waited.
    """

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    queued: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for; the engine relies on it, so surfaces check it first. Tokens."""

    vocabulary: int
    context: int  # prompt and answer together


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for metrics: requests, cache tokens, and restarts since the start."""

    waiting: int = 0
    running: int = 0
    kv_used: int = 0
    kv_total: int = 0
    restarts: int = 0


class Upstream(Protocol):
    """A server of OpenAI's API behind an engine, for surfaces that hand requests on as they are."""

    @property
    def client(self) -> httpx.AsyncClient:
        """Builds requests for it."""
        ...

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send one; the answer's body is still to be read. EngineUnavailable when nobody answers."""
        ...

    def place(self, answers: int = 1) -> AbstractContextManager[None]:
        """Places for so many; TooManyRequests when too few are free, EngineUnavailable when the server does not run."""
        ...

    def mix(self, adapters: Mapping[str, float] | None) -> AbstractAsyncContextManager[str]:
        """What the server calls the model with these adapters, None being the deployment's mix.

        The name holds while the context is open. UnknownModel or InvalidRequest when there is no such mix.
        """
        ...

    async def metrics(self) -> str:
        """The server's exposition text for Prometheus; "" when it does not answer."""
        ...


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

    async def start(self) -> None:
        """Make ready to take requests."""
        ...

    async def stop(self) -> None:
        """End the running requests and free what is held."""
        ...

    def submit(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Generate. Closing the generator cancels within one step.

        TooManyRequests, EngineUnavailable and an unknown adapter's InvalidRequest come at the first step;
        RequestTimeout when the deadline passes, RequestFailed when the model computes no numbers for this request.
        """
        ...

    async def load_adapter(self, name: str, path: Path) -> None:
        """Make an adapter known while requests run; AdapterError when it cannot be served."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter once no request uses it; UnknownAdapter when there is none of that name."""
        ...

    def state(self) -> State:
        """What the engine does at the moment."""
        ...

    def check(self) -> None:
        """Raise when only a new process can help."""
        ...

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        ...
