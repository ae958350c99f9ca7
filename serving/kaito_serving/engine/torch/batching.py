"""The continuous batch of transformers: a generation loop in its own thread, guarded against what would end it.

transformers' `ContinuousBatchingManager` computes one token for every running request per pass; new requests join
between passes. Its loop dies with all its requests on input that it does not check (a request larger than its cache,
a token id or a top-k beyond the vocabulary, a temperature of 0). The rules that prevent this are in `generation.plan`
(values) and in `Batch.add` (sizes); when it dies all the same, `Batch.dead` says so and a new `Batch` takes less than
a second.

Private parts of transformers in use, pinned by constraints.txt: `manager.logit_processor.logits_processor`,
`manager.batch_processor` with its scheduler, cache and `inputs_and_outputs.requests_in_batch`,
`output_router.result_handlers`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingTopKLogitsWarper

from kaito_serving.engine.base import GenRequest
from kaito_serving.errors import EngineUnavailable
from kaito_serving.lora.adapters import AdapterSet

_LOG = logging.getLogger(__name__)

PAGE = 32  # tokens per block of the cache


class _GreedyTopK(ContinuousBatchingTopKLogitsWarper):  # type: ignore[misc]
    """Top-k where k = 1 keeps exactly one token:

    In 16 bits several often share the highest score, and argmax takes the first.
    """

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        kept: Tensor = super().__call__(scores, tensor_arg)
        first = scores.argmax(dim=-1, keepdim=True)
        only = torch.full_like(scores, self.filter_value).scatter(-1, first, scores.gather(-1, first))
        return torch.where((tensor_arg[: scores.size(0)] == 1).unsqueeze(-1), only, kept)


class Batch:
    """One generation loop over `network`; `kv_tokens` is rounded down to whole blocks."""

    def __init__(
        self, network: Any, *, kv_tokens: int, max_batch_tokens: int, vocabulary: int, adapters: AdapterSet
    ) -> None:
        self._network = network
        self._vocabulary = vocabulary
        self._adapters = adapters
        self._vectors: dict[str, Tensor | None] = {}
        self.kv_tokens = kv_tokens // PAGE * PAGE
        # Per-request temperature, top-k and top-p exist only if the manager is made with values that do something.
        config = GenerationConfig(do_sample=True, temperature=0.7, top_k=20, top_p=0.9, eos_token_id=-1, pad_token_id=0)
        self._manager = network.init_continuous_batching(
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=self.kv_tokens // PAGE,
                max_batch_tokens=max_batch_tokens,
                use_async_batching=False,
                use_cuda_graph=False,
                allow_block_sharing=False,  # cached keys and values depend on the adapters
                auto_switch_to_flash=False,  # would fetch kernels from the hub
                per_request_processors=True,
                max_queue_size=0,
            ),
        )
        processors = self._manager.logit_processor.logits_processor
        for position, processor in enumerate(processors):
            if isinstance(processor, ContinuousBatchingTopKLogitsWarper):
                processors[position] = _GreedyTopK(processor)
        self._hook = network.register_forward_pre_hook(self._set_scales, with_kwargs=True)
        self._paused = False
        # As start() does, but as a daemon: a process that fails must not wait for this loop for ever.
        self._manager.background_thread_status.clear()
        self._manager._generation_thread = threading.Thread(
            target=self._manager._run_generation_loop, name="generation-loop", daemon=True
        )
        self._manager._generation_thread.start()

    def add(self, request_id: str, request: GenRequest, deliver: Callable[[Any], None]) -> None:
        """Queue a request; `deliver` gets its outputs in the running event loop.

        EngineUnavailable when the loop is dead.
        """
        if len(request.prompt_ids) + request.max_new_tokens > self.kv_tokens:
            raise AssertionError("a request larger than the cache must not get here: the loop would die of it")
        sampling = request.sampling
        self._vectors[request_id] = self._adapters.vector(request.adapters)
        self._manager.register_result_handler(request_id, deliver)
        accepted = self._manager.add_request(
            list(request.prompt_ids),
            request_id=request_id,
            max_new_tokens=request.max_new_tokens,
            streaming=request.stream,
            eos_token_id=sorted(request.eos_token_ids) or -1,
            temperature=float(sampling.temperature) if sampling else 1.0,
            top_k=(sampling.top_k or self._vocabulary) if sampling else 1,
            top_p=float(sampling.top_p) if sampling else 1.0,
        )
        if accepted is None:
            self.forget(request_id)
            raise EngineUnavailable("The engine is restarting; try again in a few seconds.")

    def cancel(self, request_id: str) -> None:
        """Take a request out of the batch; its outputs are no longer delivered."""
        self._manager.cancel_request(request_id)
        self.forget(request_id)

    def forget(self, request_id: str) -> None:
        """Drop what is kept about a request that has ended."""
        self._vectors.pop(request_id, None)
        self._manager.output_router.result_handlers.pop(request_id, None)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Hold the loop between two passes, so that the calling thread may use the network.

        Requests stay as they are.
        """
        with self._manager.pause():
            self._paused = True
            try:
                yield
            finally:
                self._paused = False

    @property
    def dead(self) -> bool:
        """Whether the loop has ended or is ending."""
        return (
            not self._manager.is_running()
            or self._manager.background_thread_status.can_accept_new_requests() is not None
        )

    @property
    def running(self) -> int:
        """Requests that take part in the passes."""
        processor = self._manager.batch_processor
        return len(processor.scheduler.active_requests) if processor is not None else 0

    @property
    def kv_used(self) -> int:
        """Tokens whose keys and values are kept."""
        processor = self._manager.batch_processor
        if processor is None:
            return 0
        return sum(state.current_len() for state in list(processor.scheduler.active_requests.values()))

    def close(self) -> None:
        """End the loop; running requests get an error output."""
        self._hook.remove()
        if self._manager.is_running():
            self._manager.stop(block=True, timeout=10.0, hard_stop=True)

    def _set_scales(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each pass: one vector s for all packed tokens, or one row per token when requests differ."""
        if self._paused or not self._adapters.columns:
            return
        batch = self._manager.batch_processor.inputs_and_outputs.requests_in_batch
        vectors = [self._vectors.get(future.state.request_id) for future in batch]
        first = vectors[0]
        if all(
            vector is first or (vector is not None and first is not None and torch.equal(vector, first))
            for vector in vectors
        ):
            self._adapters.scales.active = first
            return
        width = next(vector for vector in vectors if vector is not None).shape[0]
        tokens = kwargs["input_ids"].shape[-1]
        rows = torch.zeros(tokens, width, device=self._adapters.device, dtype=self._adapters.dtype)
        start = 0
        for future, vector in zip(batch, vectors, strict=True):
            if vector is not None:
                rows[start : start + future.query_length] = vector
            start += future.query_length
        self._adapters.scales.active = rows
