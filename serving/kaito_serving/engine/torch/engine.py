"""The engine over transformers: two lanes on one model.

Lane A is the continuous batch (batching.py): every request that needs no more than temperature, top-k, top-p, lengths
and end tokens. Lane B takes one request at a time through `generate` while lane A is held between two passes: beams,
penalties, n-gram bans and the like, which the batch would silently ignore. Lane B stalls lane A, so few may wait for
it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from kaito_serving.engine.base import Chunk, EngineStats, GenRequest, Limits
from kaito_serving.engine.torch.batching import PAGE, Batch
from kaito_serving.errors import EngineUnavailable, TooManyRequests
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.model.load import LoadedModel

_LOG = logging.getLogger(__name__)

_MOST_WAITING_ALONE = 8  # lane B
_RESTART_WINDOW = 60.0  # seconds; a second death within it calls for a new process
_CPU_CACHE_TOKENS = 8192  # attention over the packed batch costs CPU time per cache token, used or not
_GPU_RESERVE = 1.5 * 2**30  # bytes for activations


class TransformersEngine:
    """Implements `Engine`. `monotonic` is the clock of the restart window."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        kv_cache_tokens: int,
        max_batch_tokens: int,
        max_waiting: int,
        monotonic: Callable[[], float],
        metrics: ServingMetrics,
    ) -> None:
        self._model = model
        self._metrics = metrics
        tokens = kv_cache_tokens or _cache_tokens(model)
        self._kv_tokens = max(2 * PAGE, tokens // PAGE * PAGE)
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting = max_waiting
        self._monotonic = monotonic
        # One block stays free: the batch needs a place for the token that it is about to compute.
        self._limits = Limits(vocabulary=model.vocabulary, context=min(model.context, self._kv_tokens - PAGE))
        if self._limits.context < model.context:
            _LOG.warning("The cache holds %d tokens; the context is cut to %d.", self._kv_tokens, self._limits.context)
        self._batch: Batch | None = None
        self._queues: dict[str, asyncio.Queue[Any]] = {}
        self._deaths: deque[float] = deque(maxlen=2)
        self._restarts = 0
        self._restarting: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._alone = asyncio.Semaphore(1)
        self._waiting_alone = 0
        self._stopping = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lane-b")

    @property
    def limits(self) -> Limits:
        """Vocabulary, and the context that both the model and the cache can hold."""
        return self._limits

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters, sorted."""
        return self._model.adapters.names

    @property
    def running(self) -> bool:
        """Whether the batch takes requests at this moment."""
        return not self._stopping and self._batch is not None and not self._batch.dead

    async def start(self) -> None:
        """Start the batch and its watch."""
        self._batch = await asyncio.to_thread(self._new_batch)
        self._watch = asyncio.create_task(self._watch_batch())

    async def stop(self) -> None:
        """Fail what runs and end the loop."""
        self._stopping = True
        for task in (self._watch, self._restarting):
            if task is not None:
                task.cancel()
        self._fail_all("The server is stopping.")
        if self._batch is not None:
            await asyncio.to_thread(self._batch.close)
        await asyncio.to_thread(self._thread.shutdown)

    async def submit(self, request: GenRequest) -> AsyncGenerator[Chunk, None]:
        """Generate; see `Engine.submit`."""
        self._model.adapters.vector(request.adapters)  # an unknown name is refused before anything is queued
        if self._stopping:
            raise EngineUnavailable("The server is stopping.")
        if request.special:
            for chunk in await self._generate_alone(request):
                yield chunk
            return
        batch = self._batch
        if batch is None or batch.dead:
            self._heal()
            raise EngineUnavailable("The engine is restarting; try again in a few seconds.")
        if len(self._queues) - batch.running >= self._max_waiting:
            raise TooManyRequests(f"{self._max_waiting} requests are waiting already; try again later.")
        self._metrics.prompt_tokens.inc(len(request.prompt_ids))
        request_id = uuid.uuid4().hex
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._queues[request_id] = outputs
        finished = False
        seen = 0
        try:
            batch.add(request_id, request, outputs.put_nowait)
            while not finished:
                output = await outputs.get()
                if isinstance(output, Exception):
                    raise output
                if output.error is not None:
                    self._heal()
                    raise EngineUnavailable("The engine could not finish this request; try again.")
                tokens = tuple(output.generated_tokens[seen:])
                seen += len(tokens)
                self._metrics.generated_tokens.inc(len(tokens))
                finished = output.is_finished()
                if finished:
                    ended = bool(output.generated_tokens) and output.generated_tokens[-1] in request.eos_token_ids
                    yield Chunk(tokens, "stop" if ended else "length")
                elif tokens:
                    yield Chunk(tokens)
        finally:
            del self._queues[request_id]
            if finished:
                batch.forget(request_id)
            else:
                batch.cancel(request_id)

    def check(self) -> None:
        """Raise when the batch died twice within a minute: what is wrong then outlives a new batch."""
        if len(self._deaths) == 2 and self._deaths[1] - self._deaths[0] < _RESTART_WINDOW:
            raise EngineUnavailable("The generation loop died twice within a minute.")

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        running = self._batch.running if self._batch is not None else 0
        return EngineStats(
            waiting=max(0, len(self._queues) - running) + self._waiting_alone,
            running=min(running, len(self._queues)),
            kv_used=self._batch.kv_used if self._batch is not None else 0,
            kv_total=self._kv_tokens,
            restarts=self._restarts,
        )

    # ------------------------------------------------------------------ lane A: healing
    def _new_batch(self) -> Batch:
        return Batch(
            self._model.network,
            kv_tokens=self._kv_tokens,
            max_batch_tokens=self._max_batch_tokens,
            vocabulary=self._model.vocabulary,
            adapters=self._model.adapters,
        )

    async def _watch_batch(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._batch is not None and self._batch.dead:
                self._heal()

    def _heal(self) -> None:
        """Replace a dead batch once; its requests fail with 503."""
        if self._stopping or self._batch is None or not self._batch.dead or self._restarting is not None:
            return
        _LOG.error("The generation loop died; starting a new one.")
        self._deaths.append(self._monotonic())
        self._restarts += 1
        self._restarting = asyncio.create_task(self._replace(self._batch))

    async def _replace(self, dead: Batch) -> None:
        try:
            self._fail_all("The engine is restarting; try again in a few seconds.")
            dead.close()
            self._batch = await asyncio.to_thread(self._new_batch)
        finally:
            self._restarting = None

    def _fail_all(self, reason: str) -> None:
        for outputs in self._queues.values():
            outputs.put_nowait(EngineUnavailable(reason))

    # ------------------------------------------------------------------ lane B
    async def _generate_alone(self, request: GenRequest) -> list[Chunk]:
        if self._waiting_alone >= _MOST_WAITING_ALONE:
            raise TooManyRequests(
                "Too many requests with special settings wait already; try again later.", retry_after=5
            )
        cancelled = threading.Event()
        self._waiting_alone += 1
        try:
            await self._alone.acquire()
        finally:
            self._waiting_alone -= 1
        try:
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._generate, request, cancelled)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                cancelled.set()
                await asyncio.wait([work])
                raise
        finally:
            self._alone.release()

    def _generate(self, request: GenRequest, cancelled: threading.Event) -> list[Chunk]:
        batch = self._batch
        if batch is None or batch.dead:
            raise EngineUnavailable("The engine is restarting; try again in a few seconds.")
        model, adapters = self._model, self._model.adapters
        prompt = torch.tensor([request.prompt_ids], device=model.device)
        self._metrics.prompt_tokens.inc(len(request.prompt_ids))
        try:
            with batch.pause(), torch.inference_mode(), self._metrics.lane_b_seconds.time():
                adapters.scales.active = adapters.vector(request.adapters)
                try:
                    rows = model.network.generate(
                        input_ids=prompt,
                        attention_mask=torch.ones_like(prompt),
                        generation_config=_generation_config(request),
                        stopping_criteria=StoppingCriteriaList([_Cancelled(cancelled)]),
                        tokenizer=model.tokenizer,
                    )
                finally:
                    adapters.scales.active = None
        except (RuntimeError, ValueError, IndexError) as error:
            _LOG.exception("A request with special generation settings failed")
            raise EngineUnavailable("The engine could not finish this request.") from error
        chunks = [_as_chunk(row[prompt.shape[1] :].tolist(), index, request) for index, row in enumerate(rows)]
        self._metrics.generated_tokens.inc(sum(len(chunk.token_ids) for chunk in chunks))
        return chunks


class _Cancelled(StoppingCriteria):  # type: ignore[misc]
    """Ends `generate` after the current token once the client is gone."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device, dtype=torch.bool)


def _generation_config(request: GenRequest) -> Any:
    sampling = request.sampling
    settings = dict(request.special)
    if sampling is not None:
        settings.update(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    ends = sorted(request.eos_token_ids)
    pad = settings.pop("pad_token_id", None)
    return GenerationConfig(
        **settings,
        do_sample=sampling is not None,
        max_new_tokens=request.max_new_tokens,
        num_return_sequences=request.sequences,
        eos_token_id=ends or [-1],
        pad_token_id=pad if pad is not None else (ends[0] if ends else 0),
        use_cache=True,
    )


def _as_chunk(tokens: list[int], sequence: int, request: GenRequest) -> Chunk:
    """Cut the padding behind the first end token."""
    for position, token in enumerate(tokens):
        if token in request.eos_token_ids:
            return Chunk(tuple(tokens[: position + 1]), "stop", sequence)
    return Chunk(tuple(tokens), "length", sequence)


def _cache_tokens(model: LoadedModel) -> int:
    """Tokens whose keys and values fit: 90 % of a GPU less the weights and a reserve; on a CPU a fixed number.

    Bytes per token = 2 (keys and values) x layers x key-value heads x head size x bytes per number.
    """
    config = model.network.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        heads = 1
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * head_size * model.adapters.dtype.itemsize
    if model.device.type == "cuda":
        free = sum(
            0.9 * torch.cuda.get_device_properties(i).total_memory - torch.cuda.memory_allocated(i) - _GPU_RESERVE
            for i in range(torch.cuda.device_count())
        )
        return int(max(free, 0) // per_token)
    return int(min(_CPU_CACHE_TOKENS, max(0.5 * psutil.virtual_memory().available // per_token, 2 * PAGE)))
