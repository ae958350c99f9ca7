"""LoRA adapters as one masked, concatenated layer: any mix of any strengths, exact, in one batch.

A LoRA adapter i of rank r_i adds s_i c_i B_i A_i x to the answer W x of a linear layer (Hu et al. 2021), where s_i is
the strength and c_i = lora_alpha / r_i (rsLoRA: lora_alpha / sqrt(r_i)). All adapters of a layer are put side by side
on the rank axis,

    A = [A_1; A_2; ...]          [R, in]
    B = [c_1 B_1, c_2 B_2, ...]  [out, R]
    y = W x + B (s * (A x))      s: [R] for all tokens, or [tokens, R] when requests of a batch differ

so a mix is nothing but a vector, and 0 switches an adapter off. R is fixed; columns that belong to no adapter are 0.
Nothing is merged into W: sums of merged weights are not exact in 16 or 4 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from kaito_serving.errors import AdapterError, UnknownModel
from kaito_serving.lora.deployment import deployment, log_adapters
from kaito_serving.lora.read import Adapter

_MOST_MIXES = 256  # vectors that are kept


class AdapterScales:
    """The vector s, shared by all layers: set before each forward pass. None = no adapter acts."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active: Tensor | None = None


class AdaptedLinear(nn.Module):
    """A linear layer (of any kind, quantised too) plus all adapters of it."""

    def __init__(self, base: nn.Linear, *, ranks: int, dtype: torch.dtype, scales: AdapterScales) -> None:
        super().__init__()
        self.base = base
        self.scales = scales
        device = base.weight.device
        self.register_buffer("a", torch.zeros(ranks, base.in_features, device=device, dtype=dtype), persistent=False)
        self.register_buffer("b", torch.zeros(base.out_features, ranks, device=device, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]. Strengths act in float32."""
        y: Tensor = self.base(x)
        s = self.scales.active
        if s is not None:
            a, b = self.buffer("a"), self.buffer("b")
            inner = functional.linear(x.to(a.dtype), a) * s.to(a.device)
            y = y + functional.linear(inner.to(b.dtype), b).to(y.dtype)
        return y

    def buffer(self, name: str) -> Tensor:
        """The matrix `a` [R, in] or `b` [out, R]."""
        found = getattr(self, name)
        assert isinstance(found, Tensor)
        return found


class AdapterSet:
    """The adapters of `model`: their columns on the rank axis of `ranks`, and the mix that acts by default.

    `add` and `remove` change layers in place: only between two forward passes.
    """

    def __init__(self, model: nn.Module, *, ranks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.scales = AdapterScales()
        self.default_mix: dict[str, float] = {}
        self._model = model
        self._ranks = ranks
        self._dtype = dtype
        self._device = device
        self._layers: dict[str, AdaptedLinear] = {}
        self._columns: dict[str, list[int]] = {}
        self._vectors: dict[frozenset[tuple[str, float]], Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All adapters, sorted."""
        return tuple(sorted(self._columns))

    def add(self, adapter: Adapter) -> None:
        """Put an adapter beside the model's layers; AdapterError, and nothing changed, when it does not fit."""
        if adapter.name in self._columns:
            raise AdapterError(f"There is an adapter {adapter.name} already.")
        taken = {column for columns in self._columns.values() for column in columns}
        free = [column for column in range(self._ranks) if column not in taken]
        if adapter.rank > len(free):
            raise AdapterError(
                f"The adapter {adapter.name} has rank {adapter.rank}, and {len(free)} of "
                f"--max_lora_rank_total {self._ranks} are free."
            )
        bases = {name: self._base(adapter, name) for name in adapter.layers}
        columns = free[: adapter.rank]
        for name, base in bases.items():
            layer = self._layers.get(name)
            if layer is None:
                layer = self._layers[name] = AdaptedLinear(
                    base, ranks=self._ranks, dtype=self._dtype, scales=self.scales
                )
                parent, _, attribute = name.rpartition(".")
                setattr(self._model.get_submodule(parent), attribute, layer)
            down, up = adapter.layers[name]
            used = columns[: down.shape[0]]
            layer.buffer("a")[used] = down.to(layer.buffer("a"))
            layer.buffer("b")[:, used] = up.to(layer.buffer("b"))
        self._columns[adapter.name] = columns

    def remove(self, name: str) -> None:
        """Take an adapter away; its columns are free again."""
        columns = self._columns.pop(name)
        self.default_mix.pop(name, None)
        for layer in self._layers.values():
            layer.buffer("a")[columns] = 0
            layer.buffer("b")[:, columns] = 0
        self._vectors = {mix: vector for mix, vector in self._vectors.items() if name not in dict(mix)}

    def vector(self, mix: Mapping[str, float] | None) -> Tensor | None:
        """The vector s [R] of a mix (None = the deployment's), the same object for equal mixes.

        None when no adapter acts. UnknownModel: a name that is not loaded.
        """
        mix = self.default_mix if mix is None else mix
        unknown = sorted(set(mix) - set(self._columns))
        if unknown:
            loaded = ", ".join(self.names) or "none"
            raise UnknownModel(f"Unknown adapter {unknown[0]}; loaded adapters: {loaded}.", param="adapters")
        acting = frozenset((name, value) for name, value in mix.items() if value)
        if not acting:
            return None
        found = self._vectors.get(acting)
        if found is None:
            found = torch.zeros(self._ranks, device=self._device)
            for name, value in acting:
                found[self._columns[name]] = value
            if len(self._vectors) >= _MOST_MIXES:
                self._vectors.clear()
            self._vectors[acting] = found
        return found

    def _base(self, adapter: Adapter, name: str) -> nn.Linear:
        known = self._layers.get(name)
        try:
            base = known.base if known is not None else self._model.get_submodule(name)
        except AttributeError:
            base = None
        if not isinstance(base, nn.Linear):
            raise AdapterError(f"The adapter {adapter.name} changes {name}, which is no linear layer of the model.")
        down, up = adapter.layers[name]
        if (down.shape[1], up.shape[0]) != (base.in_features, base.out_features):
            raise AdapterError(
                f"The adapter {adapter.name} does not fit the model: {name} is {base.in_features} x "
                f"{base.out_features}, the adapter is for {down.shape[1]} x {up.shape[0]}."
            )
        return base


def attach(
    model: nn.Module,
    directory: Path,
    *,
    strengths: Mapping[str, float],
    environment: Mapping[str, str],
    ranks: int = 0,
    dtype: torch.dtype,
    device: torch.device,
) -> AdapterSet:
    """The adapters of a folder beside the model's layers; AdapterError or OptionError with a sentence.

    `deployment` says which mix acts by default. `ranks` is how many columns are kept at least; adapters that are there
    now always have room.
    """
    deployed = deployment(directory, strengths=strengths, environment=environment)
    total = max(ranks, sum(adapter.rank for adapter in deployed.adapters))
    adapters = AdapterSet(model, ranks=total, dtype=dtype, device=device)
    for adapter in deployed.adapters:
        adapters.add(adapter)
    adapters.default_mix |= deployed.mix
    log_adapters(adapters.names, directory)
    return adapters
