"""One step of all rows: new tokens in, logits out where a token is to be chosen.

`PackedForward` takes the rows' tokens in as one sequence. `SeparateForward` is for models whose attention cannot be
packed, as Falcon's, which does not go through transformers' attention interface: one pass for each row, one after the
other, with transformers' own cache.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from kaito_serving.engine.torch.arena import Arena, LayerShape
from kaito_serving.engine.torch.attention import ATTENTION, Pass, Piece, Trial, during
from kaito_serving.engine.torch.row import Row
from kaito_serving.errors import WeightsError
from kaito_serving.lora.layer import AdapterSet

_LOG = logging.getLogger(__name__)

_FEW = 8  # tokens that show what layers keep; positions whose logits a trial looks at


@dataclass(frozen=True, slots=True)
class Scores:
    """Logits in float32 after a pass.

    `next` [rows, V] belongs to `rows`, whose next token can be chosen; `prompts` holds, for rows that asked for the
    logprobs of their prompt, the logits [n, V] of the n prompt tokens that come after those of the pass.
    """

    rows: Sequence[Row]
    next: Tensor
    prompts: Sequence[tuple[Row, Tensor]]


class Forward(Protocol):
    """What takes tokens in."""

    def trial(self, tokens: int) -> Mapping[int, LayerShape]:
        """Take `tokens` tokens in and forget them; what each layer would have kept.

        WeightsError when the model computes no numbers.
        """
        ...

    def run(self, arena: Arena, steps: Sequence[tuple[Row, int]]) -> Scores:
        """Take the next `count` pending tokens of each row in."""
        ...


class PackedForward:
    """Packed passes through `network`, a causal language model of transformers whose attention is registered there."""

    def __init__(self, network: Any, adapters: AdapterSet) -> None:
        self._network = network
        self._adapters = adapters
        network.set_attn_implementation(ATTENTION)

    @torch.inference_mode()
    def trial(self, tokens: int) -> Mapping[int, LayerShape]:
        """See `Forward.trial`. Empty when the model's attention does not use the interface."""
        trial = Trial()
        vocabulary = int(self._network.get_input_embeddings().weight.shape[0])
        ids = torch.arange(tokens, device=self._network.device)[None] % vocabulary
        self._adapters.scales.active = self._adapters.vector(None)
        try:
            with during(trial):
                logits = self._network(
                    input_ids=ids, position_ids=_places([(0, tokens)], ids.device), use_cache=False, logits_to_keep=_FEW
                ).logits
        finally:
            self._adapters.scales.active = None
        _refuse_nonsense(logits)
        return trial.layers

    def run(self, arena: Arena, steps: Sequence[tuple[Row, int]]) -> Scores:
        """See `Forward.run`."""
        device = self._network.device
        ids: list[int] = []
        pieces: list[Piece] = []
        wanted: list[int] = []  # positions of the packed sequence whose logits are needed
        complete: list[Row] = []
        prompts: list[tuple[Row, int]] = []
        for row, count in steps:
            assert row.span is not None
            done = row.span.used
            ids += row.tokens[done : done + count]
            pieces.append(Piece(row.span, done, count))
            asked = row.prompt_logits(count)
            if asked:
                wanted += range(len(ids) - count, len(ids) - count + asked)
                prompts.append((row, asked))
            if done + count == len(row.tokens):
                complete.append(row)
                wanted.append(len(ids) - 1)
        self._adapters.scales.active = self._mix(steps)
        try:
            with during(Pass(arena, pieces)):
                logits = self._network(
                    input_ids=torch.tensor([ids], device=device),
                    position_ids=_places([(piece.done, piece.count) for piece in pieces], device),
                    use_cache=False,
                    # On the CPU: where layers lie on several GPUs, the last one is not the first one's.
                    logits_to_keep=torch.tensor(wanted, dtype=torch.long),
                ).logits[0]
        finally:
            self._adapters.scales.active = None
        for piece in pieces:
            piece.span.used = piece.done + piece.count
        return _scores(logits.float(), steps, complete, prompts)

    def _mix(self, steps: Sequence[tuple[Row, int]]) -> Tensor | None:
        """The adapters' scales: one vector [R] for all packed tokens, or one row per token [T, R] when rows differ."""
        first = steps[0][0].mix
        if all(row.mix is first for row, _ in steps):
            return first
        none = torch.zeros_like(next(row.mix for row, _ in steps if row.mix is not None))
        rows = torch.stack([none if row.mix is None else row.mix for row, _ in steps])
        return rows.repeat_interleave(torch.tensor([count for _, count in steps], device=rows.device), dim=0)


class SeparateForward:
    """A pass for each row through `network`; the arena only counts."""

    def __init__(self, network: Any, adapters: AdapterSet) -> None:
        self._network = network
        self._adapters = adapters
        network.set_attn_implementation("sdpa")

    @torch.inference_mode()
    def trial(self, tokens: int) -> Mapping[int, LayerShape]:
        """See `Forward.trial`."""
        cache = DynamicCache()
        ids = torch.zeros(1, tokens, dtype=torch.long, device=self._network.device)
        logits = self._network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=_FEW).logits
        _refuse_nonsense(logits)
        return {
            index: LayerShape(
                layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3], layer.keys.dtype, layer.keys.device
            )
            for index, layer in enumerate(cache.layers)
        }

    def run(self, arena: Arena, steps: Sequence[tuple[Row, int]]) -> Scores:
        """See `Forward.run`."""
        complete: list[Row] = []
        following: list[Tensor] = []
        prompts: list[tuple[Row, Tensor]] = []
        for row, count in steps:
            assert row.span is not None
            done = row.span.used
            if row.cache is None:
                row.cache = DynamicCache()
            asked = row.prompt_logits(count)
            self._adapters.scales.active = row.mix
            try:
                logits = self._network(
                    input_ids=torch.tensor([row.tokens[done : done + count]], device=self._network.device),
                    past_key_values=row.cache,
                    use_cache=True,
                    logits_to_keep=count if asked else 1,
                ).logits[0]
            finally:
                self._adapters.scales.active = None
            row.span.used = done + count
            if asked:
                prompts.append((row, logits[:asked].float()))
            if done + count == len(row.tokens):
                complete.append(row)
                following.append(logits[-1].float())
        return Scores(complete, torch.stack(following) if following else torch.empty(0, 0), prompts)


def forward_of(network: Any, adapters: AdapterSet) -> tuple[Forward, Mapping[int, LayerShape]]:
    """Packed where the model's attention can be, else separate; and what each layer keeps, by a first trial.

    WeightsError when the model computes no numbers.
    """
    try:
        packed = PackedForward(network, adapters)
        layers = packed.trial(_FEW)
        if layers:
            return packed, layers
    except (ValueError, LookupError):  # transformers refuses the attention
        pass
    _LOG.warning("%s has an attention of its own; its requests are computed one by one.", type(network).__name__)
    separate = SeparateForward(network, adapters)
    return separate, separate.trial(_FEW)


def _refuse_nonsense(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise WeightsError(
            "The model computes numbers that are not finite; its weights are damaged or the dtype does not suit it."
        )


def _places(parts: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Position ids of parts (first position, count): [1, T]."""
    return torch.tensor([[place for start, count in parts for place in range(start, start + count)]], device=device)


def _scores(
    logits: Tensor, steps: Sequence[tuple[Row, int]], complete: Sequence[Row], prompts: Sequence[tuple[Row, int]]
) -> Scores:
    if not prompts:
        return Scores(complete, logits, ())
    asked = dict(prompts)
    finished = set(complete)
    next_rows: list[int] = []
    parts: list[tuple[Row, Tensor]] = []
    at = 0
    for row, _ in steps:
        if row in asked:
            parts.append((row, logits[at : at + asked[row]]))
            at += asked[row]
        if row in finished:
            next_rows.append(at)
            at += 1
    return Scores(complete, logits[next_rows], parts)
