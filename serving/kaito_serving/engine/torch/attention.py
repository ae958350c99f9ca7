"""Attention over packed rows, registered with transformers under the name `ATTENTION`.

A forward pass packs the new tokens of all rows into one sequence, input_ids [1, T]. Everything in a transformer but
attention works token by token, so packing changes nothing there; in attention each row must see its own past alone.
The model's attention layers hand their new queries [1, Hq, T, D], keys and values [1, Hk, T, D] to the function here
(transformers' AttentionInterface), which puts keys and values into the arena and computes each row by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from kaito_serving.engine.torch.arena import Arena, LayerShape, Span

ATTENTION = "kaito_packed"


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` new tokens of one row, whose first `done` tokens are in its span already."""

    span: Span
    done: int
    count: int


@dataclass(slots=True)
class Pass:
    """What the attention layers need to know of one forward pass."""

    arena: Arena
    pieces: Sequence[Piece]
    _everything: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _seen: dict[Piece, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict)
    _seen_by_ones: dict[int | None, dict[int, list[tuple[Tensor, Tensor]]]] = field(default_factory=dict)
    _targets: dict[torch.device, Tensor] = field(default_factory=dict)
    _masks: dict[tuple[int, int, int | None, torch.device], Tensor] = field(default_factory=dict)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, of all rows."""
        if not self._everything:
            self._everything = self.arena.layers()
        return self._everything[index]

    @property
    def ones(self) -> Sequence[Piece]:
        """The first pieces that have one token each."""
        return list(takewhile(lambda piece: piece.count == 1, self.pieces))

    def seen(self, piece: Piece, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer up to the last token of a piece: [1, heads, n, dim]."""
        found = self._seen.get(piece)
        if found is None:
            found = self._seen[piece] = self._views(piece, None)
        return found[index]

    def seen_by_ones(self, window: int | None, index: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a layer that each of the `ones` sees: [1, heads, n, dim]."""
        found = self._seen_by_ones.get(window)
        if found is None:
            found = self._seen_by_ones[window] = {}
            for piece in self.ones:
                for layer, view in self._views(piece, window).items():
                    found.setdefault(layer, []).append(view)
        return found.get(index, [])

    def _views(self, piece: Piece, window: int | None) -> dict[int, tuple[Tensor, Tensor]]:
        end = piece.done + piece.count
        first = max(0, end - window) if window is not None else 0
        return self.arena.layers(piece.span.start + first, piece.span.start + end)

    def targets(self, device: torch.device) -> Tensor:
        """The positions of the arena that the new tokens go to: [T]."""
        found = self._targets.get(device)
        if found is None:
            places = [
                position
                for piece in self.pieces
                for position in range(piece.span.start + piece.done, piece.span.start + piece.done + piece.count)
            ]
            found = self._targets[device] = torch.tensor(places, device=device)
        return found

    def mask(self, piece: Piece, window: int | None, device: torch.device) -> Tensor:
        """Which of a row's tokens its new tokens see: [count, done + count], True = seen."""
        key = (piece.done, piece.count, window, device)
        found = self._masks.get(key)
        if found is None:
            new = torch.arange(piece.done, piece.done + piece.count, device=device)[:, None]
            old = torch.arange(piece.done + piece.count, device=device)[None]
            found = old <= new
            if window is not None:
                found &= old > new - window
            self._masks[key] = found
        return found


@dataclass(slots=True)
class Trial:
    """A pass that only looks what each layer would keep, with plain causal attention."""

    layers: dict[int, LayerShape] = field(default_factory=dict)


_CURRENT: ContextVar[Pass | Trial] = ContextVar("kaito_serving_pass")


@contextmanager
def during(now: Pass | Trial) -> Iterator[None]:
    """Within it, forward passes of this thread are `now`."""
    token = _CURRENT.set(now)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, Hq, T, D] in, [1, T, Hq, Dv] out."""
    now = _CURRENT.get()
    index: int = module.layer_idx  # type: ignore[assignment]
    window = sliding_window or None
    scale = scaling if scaling is not None else 1.0 / math.sqrt(query.shape[-1])
    if isinstance(now, Trial):
        now.layers[index] = LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device)
        tokens = query.shape[2]
        whole = Piece(Span(0, tokens), 0, tokens)
        mask = Pass(Arena({}, tokens=0), ()).mask(whole, window, query.device)
        return _many(query, key, value, mask, scale, softcap).transpose(1, 2), None
    keys, values = now.layer(index)
    targets = now.targets(keys.device)
    keys.index_copy_(2, targets, key)
    values.index_copy_(2, targets, value)
    # What needs an operation for each row is what a pass of many rows waits for, so there is one, and no more.
    seen = now.seen_by_ones(window, index)
    at = len(seen)
    parts = [_ones(query[0, :, :at], seen, scale, softcap)] if seen else []
    for piece in now.pieces[at:]:
        end = piece.done + piece.count
        k, v = now.seen(piece, index)
        plain = piece.done == 0 and (window is None or window >= end)
        visible = None if plain else now.mask(piece, window, query.device)
        out = _many(query[:, :, at : at + piece.count], k, v, visible, scale, softcap)
        parts.append(out.transpose(1, 2))
        at += piece.count
    return torch.cat(parts, dim=1), None


def _ones(queries: Tensor, seen: Sequence[tuple[Tensor, Tensor]], scale: float, softcap: float | None) -> Tensor:
    """Rows with one new token each, which sees all of `seen`: queries [Hq, rows, D] in, [1, rows, Hq, Dv] out.

    The queries that share a key head stand beside each other, as if they were tokens of it.
    """
    heads, rows, dim = queries.shape
    shared = seen[0][0].shape[1]
    each = queries.transpose(0, 1).reshape(rows, 1, shared, heads // shared, dim).unbind()
    if softcap is not None:
        outs = [_capped(q, k, v, None, scale, softcap) for q, (k, v) in zip(each, seen, strict=True)]
    else:
        attention = functional.scaled_dot_product_attention
        outs = [attention(q, k, v, scale=scale) for q, (k, v) in zip(each, seen, strict=True)]
    return torch.stack(outs).reshape(1, rows, heads, -1)


def _many(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """Several new tokens; `seen` None is plain causal. [1, Hq, n, Dv]."""
    if softcap is not None:
        groups = q.shape[1] // k.shape[1]
        if seen is None:
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        return _capped(q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1), seen, scale, softcap)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _capped(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Attention whose scores are held within +-softcap (Gemma 2, arXiv 2408.00118, section 2)."""
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) * softcap
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers' mask function: `attend` knows by itself which tokens a row sees."""


def token_bytes(layers: Mapping[int, LayerShape]) -> dict[torch.device, int]:
    """Bytes of one token in all layers of each device."""
    result: dict[torch.device, int] = {}
    for shape in layers.values():
        result[shape.device] = result.get(shape.device, 0) + shape.token_bytes
    return result


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)
