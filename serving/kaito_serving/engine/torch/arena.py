"""The key-value cache: every running request has a span of its own, the same positions in all layers.

A request gets room for its prompt and its longest answer when it is admitted, so nothing is ever evicted, and no step
allocates. Each layer's keys and values lie on that layer's device; those of layers of one shape are one buffer, so that
a request's part of all of them is one view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer keeps per token: `heads` keys of `key_dim` and values of `value_dim` numbers."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes per token."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class Span:
    """Positions `start` to `start + size` of every layer's buffers. `used` of them, from the start, hold tokens."""

    start: int
    size: int
    used: int = 0


class Arena:
    """For layers of one shape, keys [layers, heads, tokens, key_dim] and values [layers, heads, tokens, value_dim]."""

    def __init__(self, layers: Mapping[int, LayerShape], *, tokens: int) -> None:
        self.tokens = tokens
        self._spans: list[Span] = []  # by start
        self._indices: dict[LayerShape, list[int]] = {}
        for index, shape in layers.items():
            self._indices.setdefault(shape, []).append(index)

        def buffer(shape: LayerShape, dim: int) -> Tensor:
            size = (len(self._indices[shape]), shape.heads, tokens, dim)
            return torch.empty(size, dtype=shape.dtype, device=shape.device)

        # Pages that were never written cost no memory.
        self._buffers = {
            shape: (buffer(shape, shape.key_dim), buffer(shape, shape.value_dim)) for shape in self._indices
        }

    def layers(self, start: int = 0, end: int | None = None) -> dict[int, tuple[Tensor, Tensor]]:
        """Of each layer, keys and values of the n positions from `start` to `end`: [1, heads, n, dim]."""
        result: dict[int, tuple[Tensor, Tensor]] = {}
        for shape, (keys, values) in self._buffers.items():
            parts = zip(keys[:, None, :, start:end].unbind(), values[:, None, :, start:end].unbind(), strict=True)
            result.update(zip(self._indices[shape], parts, strict=True))
        return result

    @property
    def reserved(self) -> int:
        """Positions that belong to spans."""
        return sum(span.size for span in self._spans)

    @property
    def used(self) -> int:
        """Positions that hold tokens."""
        return sum(span.used for span in self._spans)

    def allocate(self, size: int) -> Span | None:
        """A span of `size` positions; None when fewer are free. May move other spans."""
        if size > self.tokens - self.reserved:
            return None
        start = self._gap(size)
        if start is None:
            self._compact()
            start = self.reserved
        span = Span(start, size)
        self._spans.append(span)
        self._spans.sort(key=lambda each: each.start)
        return span

    def free(self, span: Span) -> None:
        """Give a span back."""
        self._spans.remove(span)

    def shrink(self, positions: int) -> None:
        """Use `positions` fewer from now on, but never fewer than half of them at once."""
        self.tokens = max(self.tokens // 2, self.tokens - positions)

    def _gap(self, size: int) -> int | None:
        start = 0
        for span in self._spans:
            if span.start - start >= size:
                return start
            start = span.start + span.size
        return start if self.tokens - start >= size else None

    def _compact(self) -> None:
        """Move all spans to the front, in their order."""
        start = 0
        for span in self._spans:
            if span.start != start:
                for keys, values in self._buffers.values():
                    for buffer in (keys, values):
                        # Source and target may overlap, so the part is copied out first.
                        part = buffer[:, :, span.start : span.start + span.used].clone()
                        buffer[:, :, start : start + span.used] = part
                span.start = start
            start += span.size
