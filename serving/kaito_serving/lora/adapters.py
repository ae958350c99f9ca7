"""LoRA adapters as one masked, concatenated layer: any mix of any strengths, exact, in one batch.

A LoRA adapter i of rank r_i adds s_i c_i B_i A_i x to the answer W x of a linear layer (Hu et al. 2021), where s_i is
the strength and c_i = lora_alpha / r_i (rsLoRA: lora_alpha / sqrt(r_i)). All adapters of a layer are put side by side
on the rank axis,

    A = [A_1; A_2; ...]          [R, in]          R = sum of r_i
    B = [c_1 B_1, c_2 B_2, ...]  [out, R]
    y = W x + B (s * (A x))      s: [R] for all tokens, or [tokens, R] when requests of a batch differ

so a mix is nothing but a vector, and 0 switches an adapter off. Nothing is merged into W: sums of merged weights are
not exact in 16 or 4 bits, and PEFT's per-request routing both leaks between threads and is ignored by continuous
batching.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from kaito_serving.errors import AdapterError, InvalidRequest, WeightsError
from kaito_serving.model.folder import refuse_pickles, tensor_bytes

_PREFIX = "base_model.model."
# Keys of adapter_config.json that change nothing of how a finished adapter is applied. Any other key must be neutral
# (null, false, empty), so that a kind of adapter that this layer cannot express is refused instead of served wrong.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "peft_version",
        "r",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
_NEUTRAL = {
    "bias": "none",
    "init_lora_weights": True,
    "runtime_config": {"ephemeral_gpu_offload": False},
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
_HARMLESS_STARTS = (
    True,
    False,
    "gaussian",
    "eva",
    "orthogonal",
)  # of init_lora_weights; others change the base weights


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter as read from its folder: per module name the pair A [r, in] and B [out, r], B already times c."""

    name: str
    rank: int
    layers: Mapping[str, tuple[Tensor, Tensor]]


class AdapterScales:
    """The vector s, shared by all layers: set before each forward pass. None = no adapter acts."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active: Tensor | None = None


class AdaptedLinear(nn.Module):
    """A linear layer (of any kind, quantised too) plus all adapters of it."""

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor, scales: AdapterScales) -> None:
        super().__init__()
        self.base = base
        self.scales = scales
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y: Tensor = self.base(x)
        s = self.scales.active
        if s is not None:
            assert isinstance(self.a, Tensor)
            assert isinstance(self.b, Tensor)
            y = y + functional.linear(functional.linear(x.to(self.a.dtype), self.a) * s, self.b).to(y.dtype)
        return y


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """The adapters of a model: their columns on the rank axis, and the mix that acts when a request names none."""

    scales: AdapterScales
    columns: Mapping[str, slice]
    default_mix: Mapping[str, float]
    device: torch.device
    dtype: torch.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """All adapters, sorted."""
        return tuple(sorted(self.columns))

    def vector(self, mix: Mapping[str, float] | None) -> Tensor | None:
        """The vector s [R] of a mix (None = the deployment's).

        None when no adapter acts. InvalidRequest: unknown name.
        """
        mix = self.default_mix if mix is None else mix
        unknown = sorted(set(mix) - set(self.columns))
        if unknown:
            loaded = ", ".join(self.names) or "none"
            raise InvalidRequest(f"Unknown adapter {unknown[0]}; loaded adapters: {loaded}.")
        if not any(mix.values()):
            return None
        s = torch.zeros(max(c.stop for c in self.columns.values()), device=self.device, dtype=self.dtype)
        for name, value in mix.items():
            s[self.columns[name]] = value
        return s


def find(directory: Path) -> list[Path]:
    """The adapter folders below `directory`, by name: those that hold an adapter_config.json."""
    if not directory.is_dir():
        return []
    return sorted(folder for folder in directory.iterdir() if (folder / "adapter_config.json").is_file())


def read(folder: Path) -> Adapter:
    """Read one adapter on the CPU; AdapterError when this layer cannot express it exactly."""
    name = folder.name
    refuse_pickles(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"The adapter {name} has no readable adapter_config.json with r and lora_alpha.") from error
    if str(config.get("peft_type")).upper() != "LORA":
        raise AdapterError(f"The adapter {name} is of type {config.get('peft_type')}; only LORA is served.")
    for key, value in config.items():
        if key not in _WITHOUT_EFFECT and not _neutral(key, value):
            raise AdapterError(f"The adapter {name} uses {key}={json.dumps(value)}, which cannot be served exactly.")
    if rank < 1:
        raise AdapterError(f"The adapter {name} has rank {rank}.")
    file = folder / "adapter_model.safetensors"
    try:
        tensor_bytes(file)
        tensors = load_file(file)
    except (WeightsError, SafetensorError) as error:
        raise AdapterError(f"The adapter {name} cannot be read: {error}") from error
    factor = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Adapter(name=name, rank=rank, layers=_pairs(name, rank, factor, tensors))


def attach(
    model: nn.Module, adapters: Sequence[Adapter], strengths: Mapping[str, float], *, dtype: torch.dtype
) -> AdapterSet:
    """Put the adapters beside the linear layers of `model`, in place; names without a strength get 1.0.

    Raises AdapterError when a strength names no adapter, or when a tensor fits no linear layer of the model.
    """
    unknown = sorted(set(strengths) - {adapter.name for adapter in adapters})
    if unknown:
        raise AdapterError(f"--adapter_strengths names {unknown[0]}, but there is no such adapter.")
    columns: dict[str, slice] = {}
    total = 0
    for adapter in adapters:
        columns[adapter.name] = slice(total, total + adapter.rank)
        total += adapter.rank
    scales = AdapterScales()
    for module_name in sorted({name for adapter in adapters for name in adapter.layers}):
        parent_name, _, attribute = module_name.rpartition(".")
        try:
            parent = model.get_submodule(parent_name)
            base = parent.get_submodule(attribute)
        except AttributeError:
            base = None
        users = [adapter for adapter in adapters if module_name in adapter.layers]
        if not isinstance(base, nn.Linear):
            raise AdapterError(
                f"The adapter {users[0].name} changes {module_name}, which is no linear layer of the model."
            )
        shape = (base.in_features, base.out_features)
        device = base.weight.device
        a = torch.zeros(total, shape[0], device=device, dtype=dtype)
        b = torch.zeros(shape[1], total, device=device, dtype=dtype)
        for adapter in users:
            down, up = adapter.layers[module_name]
            if (down.shape[1], up.shape[0]) != shape:
                raise AdapterError(
                    f"The adapter {adapter.name} does not fit the model: {module_name} is {shape[0]} x {shape[1]}, "
                    f"the adapter is for {down.shape[1]} x {up.shape[0]}."
                )
            a[columns[adapter.name]] = down.to(device, dtype)
            b[:, columns[adapter.name]] = up.to(device, dtype)
        setattr(parent, attribute, AdaptedLinear(base, a, b, scales))
    return AdapterSet(
        scales=scales,
        columns=columns,
        default_mix={adapter.name: strengths.get(adapter.name, 1.0) for adapter in adapters},
        device=next(model.parameters()).device,
        dtype=dtype,
    )


def _neutral(key: str, value: Any) -> bool:
    if key == "init_lora_weights":
        return value in _HARMLESS_STARTS
    return not value or value == _NEUTRAL.get(key)


def _pairs(name: str, rank: int, factor: float, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, kind = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not key.startswith(_PREFIX) or not key.endswith(".weight") or kind not in ("A", "B") or tensor.ndim != 2:
            raise AdapterError(f"The adapter {name} holds {key}, which is no LoRA matrix of a linear layer.")
        if tensor.shape[0 if kind == "A" else 1] != rank:
            raise AdapterError(
                f"The adapter {name} says rank {rank}, but {key} is {' x '.join(map(str, tensor.shape))}."
            )
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"The adapter {name} holds numbers that are not finite in {key}.")
        (downs if kind == "A" else ups)[module] = tensor
    if not downs or downs.keys() != ups.keys():
        raise AdapterError(f"The adapter {name} is incomplete: its lora_A and lora_B matrices do not pair up.")
    return {module: (downs[module], factor * ups[module].float()) for module in downs}
