"""Continuous batching over torch: a thread that runs one packed forward pass after the other.

Requests join and leave between two passes; a pass takes in one token of each answering row and parts of new prompts.
The event loop hands requests over through a queue and gets what each pass gave in one call, so that neither ever waits
for the other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch

from kaito_serving.detokenizer import Detokenizer
from kaito_serving.engine.base import Chunk, EngineStats, Limits, Request, State, TokenLogprobs
from kaito_serving.engine.torch.arena import Arena
from kaito_serving.engine.torch.budget import cache_tokens
from kaito_serving.engine.torch.forward import PackedForward, Scores, forward_of
from kaito_serving.engine.torch.guide import Guides, SchemaGuide
from kaito_serving.engine.torch.row import Row
from kaito_serving.engine.torch.sampling import Sampler, choose, logprobs
from kaito_serving.engine.torch.scheduler import Scheduler
from kaito_serving.engine.torch.stops import StopStrings
from kaito_serving.errors import (
    AdapterError,
    EngineUnavailable,
    RequestError,
    RequestFailed,
    RequestTimeout,
    TooManyRequests,
    UnknownModel,
)
from kaito_serving.lora.layer import AdapterSet
from kaito_serving.lora.read import read
from kaito_serving.model.load import LoadedModel

_LOG = logging.getLogger(__name__)

_FAILURE_WINDOW = 60.0  # seconds; a second failed pass within it calls for a new process
_LOOK_EVERY = 0.05  # seconds
_RESTARTING = "The engine is restarting; try again in a few seconds."


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request on its way through the engine: where its chunks go, and its row once the thread has taken it."""

    request: Request
    outputs: asyncio.Queue[Chunk | RequestError]
    came: float
    guide: SchemaGuide | None = None
    row: Row | None = None


class TorchEngine:
    """Implements `Engine`.

    `kv_cache_tokens` 0 means what memory allows; `memory` is how many bytes the container may have, for engines on a
    CPU. `monotonic` is the clock of deadlines. `die` ends this process: a GPU that failed once answers nothing more.
    """

    def __init__(
        self,
        model: LoadedModel,
        adapters: AdapterSet,
        *,
        kv_cache_tokens: int,
        max_batch_tokens: int,
        max_waiting: int,
        memory: int,
        monotonic: Callable[[], float],
        die: Callable[[str], object],
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._monotonic = monotonic
        self._die = die
        self._max_waiting = max_waiting
        self._forward, layers = forward_of(model.network, adapters)
        allowed = cache_tokens(self._forward, layers, max_batch_tokens=max_batch_tokens, memory=memory)
        most = max_batch_tokens // 2 * model.context
        packed = isinstance(self._forward, PackedForward)
        self._arena = Arena(layers if packed else {}, tokens=min(kv_cache_tokens or allowed, most))
        _LOG.info("Cache: %d tokens", self._arena.tokens)
        self._scheduler = Scheduler(self._arena, max_batch_tokens=max_batch_tokens)
        if self._arena.tokens < model.context:
            _LOG.warning(
                "The cache holds %d tokens, so the context is %d instead of the model's %d.",
                self._arena.tokens,
                self._arena.tokens,
                model.context,
            )
        self._guides = Guides(model.tokenizer, vocabulary=model.vocabulary, ends=model.end_tokens)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._tickets: dict[Row, _Ticket] = {}  # of the thread
        self._open: set[_Ticket] = set()  # of the event loop
        self._leaving: set[str] = set()  # adapters that are being unloaded
        self._arrivals = 0
        self._failures: deque[float] = deque(maxlen=2)
        self._restarts = 0
        self._state = State.LOADING
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def limits(self) -> Limits:
        """Vocabulary, and the context that both the model and the cache can hold."""
        return Limits(vocabulary=self._model.vocabulary, context=min(self._model.context, self._arena.tokens))

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters, sorted."""
        return tuple(name for name in self._adapters.names if name not in self._leaving)

    async def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        # A daemon: a process that fails must not wait for it.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._state = State.READY

    async def stop(self) -> None:
        """Fail what runs and end the thread."""
        self._state = State.DRAINING
        thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(self._end)
            await asyncio.to_thread(thread.join)

    async def submit(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Generate; see `Engine.submit`."""
        # An unknown name is refused before anything is queued.
        for name in request.adapters or ():
            if name not in self.adapters:
                loaded = ", ".join(self.adapters) or "none"
                raise UnknownModel(f"Unknown adapter {name}; loaded adapters: {loaded}.", param="adapters")
        if self._state is not State.READY:
            raise EngineUnavailable("The server is stopping." if self._state is State.DRAINING else _RESTARTING)
        if len(self._open) - len(self._scheduler.running) >= self._max_waiting:
            raise TooManyRequests(f"{self._max_waiting} requests are waiting already; try again later.")
        ticket = _Ticket(request, asyncio.Queue(), self._monotonic())
        self._open.add(ticket)
        finished = False
        try:
            if request.params.json_schema is not None:
                ticket.guide = await asyncio.to_thread(self._guides.make, request.params.json_schema)
            self._inbox.put(partial(self._add, ticket))
            while not finished:
                output = await ticket.outputs.get()
                finished = isinstance(output, RequestError) or output.finish_reason is not None
                if isinstance(output, RequestError):
                    raise output
                yield output
        finally:
            self._open.discard(ticket)
            if not finished:
                self._inbox.put(partial(self._cancel, ticket))

    async def load_adapter(self, name: str, path: Path) -> None:
        """Read an adapter and put it beside the model's layers, between two passes."""
        adapter = await asyncio.to_thread(read, path, name)
        await self._between_passes(lambda: self._adapters.add(adapter))
        self._leaving.discard(name)

    async def unload_adapter(self, name: str) -> None:
        """Take an adapter away once nothing that runs uses it; new requests find it gone at once."""
        if name not in self.adapters:
            raise UnknownModel(f"There is no adapter {name}.", param="lora_name")
        self._leaving.add(name)
        while any(name in self._mix(ticket.request) for ticket in self._open):
            await asyncio.sleep(_LOOK_EVERY)
        await self._between_passes(lambda: self._adapters.remove(name))
        self._leaving.discard(name)

    def _mix(self, request: Request) -> Mapping[str, float]:
        return self._adapters.default_mix if request.adapters is None else request.adapters

    async def _between_passes(self, work: Callable[[], None]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def run() -> None:
            try:
                work()
            except AdapterError as error:
                done.get_loop().call_soon_threadsafe(done.set_exception, error)
            else:
                done.get_loop().call_soon_threadsafe(done.set_result, None)

        self._inbox.put(run)
        await done

    def state(self) -> State:
        """What the engine does at the moment."""
        return self._state

    def check(self) -> None:
        """Raise when two passes failed within a minute: what is wrong then outlives the requests."""
        if self._state is State.FAILED:
            raise EngineUnavailable("Two forward passes failed within a minute.")

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        running = len(self._scheduler.running)
        return EngineStats(
            waiting=max(0, len(self._open) - running),
            running=running,
            kv_used=self._arena.used,
            kv_total=self._arena.tokens,
            restarts=self._restarts,
        )

    # ---------------------------------------------------------------- the thread
    @torch.inference_mode()
    def _run(self) -> None:
        self._ended = False
        while not self._ended:
            self._take_in(wait=not (self._scheduler.running or self._scheduler.waiting))
            if self._ended or not (self._scheduler.running or self._scheduler.waiting):
                continue
            try:
                self._step()
            except torch.OutOfMemoryError:
                self._shed()
            except torch.AcceleratorError as error:
                self._lose_gpu(error)
                return
            except Exception:  # whatever a model's code raises: its requests fail, the next ones may not
                _LOG.exception("A forward pass failed")
                self._restarts += 1
                self._failures.append(self._monotonic())
                if len(self._failures) == 2 and self._failures[1] - self._failures[0] < _FAILURE_WINDOW:
                    self._state = State.FAILED
                self._fail_all(EngineUnavailable("The engine could not finish this request; try again."))

    def _lose_gpu(self, error: torch.AcceleratorError) -> None:
        self._die(f"The GPU failed: {str(error).splitlines()[0]}")

    def _take_in(self, *, wait: bool) -> None:
        """Do what the event loop asks; with `wait`, at least one thing."""
        if wait:
            self._inbox.get()()
        while True:
            try:
                self._inbox.get_nowait()()
            except Empty:
                return

    def _add(self, ticket: _Ticket) -> None:
        try:
            row = self._row(ticket)
        except torch.AcceleratorError as error:
            self._lose_gpu(error)
        except Exception:  # the thread must go on for the others, whatever a surface let through
            _LOG.exception("A request could not be taken in")
            self._deliver([(ticket, RequestFailed("The request could not be taken in; the server's log says why."))])
        else:
            ticket.row = row
            self._tickets[row] = ticket
            self._scheduler.add(row)

    def _row(self, ticket: _Ticket) -> Row:
        request = ticket.request
        params = request.params
        sampler = Sampler(
            params,
            list(request.prompt_ids),
            vocabulary=self._model.vocabulary,
            device=self._model.device,
            guide=ticket.guide,
        )
        stops = None
        if params.stop:
            stops = StopStrings(params.stop, Detokenizer(self._model.decode, request.prompt_ids))
        self._arrivals += 1
        mix = self._adapters.vector(request.adapters)
        return Row(request, self._arrivals, sampler, ticket.came, stops=stops, mix=mix)

    def _cancel(self, ticket: _Ticket) -> None:
        if ticket.row is not None and ticket.row in self._tickets:
            self._forget(ticket.row)

    def _end(self) -> None:
        self._ended = True
        self._fail_all(EngineUnavailable("The server is stopping."))

    def _step(self) -> None:
        self._expire()
        now = self._monotonic()
        for row in self._scheduler.admit():
            row.admitted = now
        steps = self._scheduler.plan()
        if not steps:
            return
        scores = self._forward.run(self._arena, steps)
        _note_prompts(scores)
        self._deliver(self._answers(scores))

    def _answers(self, scores: Scores) -> list[tuple[_Ticket, Chunk | RequestError]]:
        rows = scores.rows
        if not rows:
            return []
        asked = [at for at, row in enumerate(rows) if row.request.params.logprobs is not None]
        kept = scores.next[asked].clone() if asked else None
        sound = torch.isfinite(scores.next.sum(dim=-1)).tolist()
        tokens = choose(scores.next, [row.sampler for row in rows])
        told: dict[int, TokenLogprobs] = {}
        if kept is not None:
            top = max(rows[at].request.params.logprobs or 0 for at in asked)
            told = dict(zip(asked, logprobs(kept, [max(0, tokens[at]) for at in asked], top), strict=True))
        outputs: list[tuple[_Ticket, Chunk | RequestError]] = []
        for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            ticket = self._tickets[row]
            if not sound[at]:
                outputs.append((ticket, RequestFailed("The model computed numbers that are not finite.")))
                self._forget(row)
            elif token < 0:
                outputs.append((ticket, RequestFailed("The settings of the request leave no token to choose.")))
                self._forget(row)
            else:
                chunk = _advance(row, token, told.get(at))
                outputs.append((ticket, chunk))
                if chunk.finish_reason is not None:
                    self._forget(row)
        return outputs

    def _expire(self) -> None:
        timed = [row for row in self._tickets if row.request.deadline is not None]
        if not timed:
            return
        now = self._monotonic()
        late = [row for row in timed if row.request.deadline is not None and row.request.deadline <= now]
        self._fail(late, RequestTimeout("The answer took longer than the server allows; ask for fewer tokens."))

    def _shed(self) -> None:
        newest = self._scheduler.running[-1]
        _LOG.warning("Out of memory with %d requests; the newest is refused.", len(self._scheduler.running))
        self._arena.shrink(newest.reservation)
        too_large = [row for row in self._scheduler.waiting if row.reservation > self._arena.tokens]
        self._fail([newest, *too_large], EngineUnavailable("There is not enough memory for this request."))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _fail_all(self, reason: RequestError) -> None:
        self._fail(list(self._tickets), reason)

    def _fail(self, rows: Sequence[Row], reason: RequestError) -> None:
        outputs: list[tuple[_Ticket, Chunk | RequestError]] = [(self._tickets[row], reason) for row in rows]
        for row in rows:
            self._forget(row)
        self._deliver(outputs)

    def _forget(self, row: Row) -> None:
        self._scheduler.remove(row)
        del self._tickets[row]

    def _deliver(self, outputs: Sequence[tuple[_Ticket, Chunk | RequestError]]) -> None:
        if outputs and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_hand_out, outputs)


def _hand_out(outputs: Sequence[tuple[_Ticket, Chunk | RequestError]]) -> None:
    for ticket, output in outputs:
        ticket.outputs.put_nowait(output)


def _note_prompts(scores: Scores) -> None:
    """Keep the logprobs of prompts until their first chunk."""
    for row, logits in scores.prompts:
        assert row.request.params.prompt_logprobs is not None
        first = max(1, len(row.prompt_logprobs))
        if not row.prompt_logprobs:
            row.prompt_logprobs.append(None)
        tokens = row.request.prompt_ids[first : first + len(logits)]
        row.prompt_logprobs += logprobs(logits, tokens, row.request.params.prompt_logprobs)


def _advance(row: Row, token: int, told: TokenLogprobs | None) -> Chunk:
    """The chunk of a row's next token."""
    params = row.request.params
    row.sampler.add(token)
    reason: Any = None
    ended = False
    if token in params.stop_token_ids:
        reason, ended = token, True
    if not ended and row.sampler.guide is not None:
        ended = row.sampler.guide.accept(token)
    if not ended and row.stops is not None:
        reason = row.stops.push(token)
        ended = reason is not None
    shown: tuple[TokenLogprobs, ...] = ()
    if told is not None:
        shown = (TokenLogprobs(told.token_id, told.logprob, told.top[: params.logprobs]),)
    first = row.sampler.answered == 1
    return Chunk(
        (token,),
        finish_reason="stop" if ended else "length" if row.sampler.answered == params.max_tokens else None,
        stop_reason=reason,
        logprobs=shown,
        prompt_logprobs=tuple(row.prompt_logprobs) if first else (),
        queued=row.admitted - row.came if first else 0.0,
    )
