"""What a tuning takes of a GPU's memory, counted on models of the real shapes that have no numbers in them.

Weights are counted parameter by parameter on torch's device ``meta``. Activations are what is alive at the worst moment
of a forward and a backward with gradient checkpointing: a depth of two and of three layers is run on ``meta``, and what
a layer adds, to them and to the adapter, is added for the others. Attention is counted as a kernel that keeps its
inputs, its output and a float per head and token.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM, FalconConfig, MistralConfig, Phi3Config, PhiConfig, PretrainedConfig

from kaito_tuning.config.targets import TARGETS

GIB = 2**30
TOKENS = 2048
RANK = 8
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: four bits, a byte for each block of 64, a float for each 256 of these (double quantisation)."""
OPTIMIZER_BYTES = 16
"""Of a trained weight in float32: itself, its gradient, two moments of Adam."""
CONTEXT_GIB = 1.3
"""Not counted but assumed: the CUDA context, and what the allocator cannot use."""
HEAD_TOKENS, HEAD_VOCABULARY = 4096, 32768
"""The tile in which TRL computes the loss from hidden states."""

Layers = Callable[[int], PretrainedConfig]


def _phi3(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> Layers:
    return lambda depth: Phi3Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=depth or layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=32064,
        tie_word_embeddings=False,
    )


def _falcon(hidden: int, layers: int, heads: int, *, kv_heads: int | None) -> Layers:
    return lambda depth: FalconConfig(
        hidden_size=hidden,
        num_hidden_layers=depth or layers,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        vocab_size=65024,
        multi_query=True,
        parallel_attn=True,
        bias=False,
        alibi=False,
        new_decoder_architecture=kv_heads is not None,
    )


def _phi2(depth: int) -> PretrainedConfig:
    return PhiConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=depth or 32,
        num_attention_heads=32,
        vocab_size=51200,
        partial_rotary_factor=0.4,
        hidden_act="gelu_new",
        tie_word_embeddings=False,
    )


def _mistral(depth: int) -> PretrainedConfig:
    return MistralConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=depth or 32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32768,
        sliding_window=None,
        tie_word_embeddings=False,
    )


_MINI, _MEDIUM = _phi3(3072, 8192, 32, 32, 32), _phi3(5120, 17920, 40, 40, 10)
# What of their config.json decides about memory; depth 0 is the model's own.
SHAPES: dict[str, Layers] = {
    "phi-2": _phi2,
    "phi-3-mini-4k-instruct": _MINI,
    "phi-3-mini-128k-instruct": _MINI,
    "phi-3.5-mini-instruct": _MINI,
    "phi-3-medium-4k-instruct": _MEDIUM,
    "phi-3-medium-128k-instruct": _MEDIUM,
    "mistral-7b": _mistral,
    "falcon-7b": _falcon(4544, 32, 71, kv_heads=None),
    "falcon-40b": _falcon(8192, 60, 128, kv_heads=8),
}


@dataclass(frozen=True, slots=True)
class Counted:
    """Weights by what becomes of them, and bytes of activations. ``largest``: weights of the largest linear layer."""

    linear: int
    other: int
    adapter: int
    largest: int
    activations: int

    def gib(self, method: str) -> float:
        """What one process of a tuning takes, with TOKENS a step."""
        if method == "qlora":
            # A layer's weights are brought into 16 bits while it computes.
            weights = self.linear * NF4_BYTES + self.other * 2 + self.largest * 2
        else:
            weights = (self.linear + self.other) * 2.0
        return (weights + self.adapter * OPTIMIZER_BYTES + self.activations) / GIB + CONTEXT_GIB


@lru_cache
def counted(layers: Layers) -> Counted:
    """One model, with the adapter that is trained by default."""
    model = _on_meta(layers(0))
    linears = [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    (adapter, activations), more = (_measured(layers(depth)) for depth in (2, 3))
    others = layers(0).num_hidden_layers - 2
    return Counted(
        linear=sum(linears),
        other=parameters - sum(linears),
        adapter=adapter + (more[0] - adapter) * others,
        largest=max(linears),
        activations=activations + (more[1] - activations) * others,
    )


def _on_meta(config: PretrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def _measured(config: PretrainedConfig) -> tuple[int, int]:
    """Weights that are trained, and bytes alive at the worst moment besides all weights."""
    targets = list(TARGETS[config.model_type])
    model = get_peft_model(_on_meta(config), LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules=targets))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    base = model.get_base_model()
    body = getattr(base, base.base_model_prefix)
    tokens = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool, device="meta")
    with _attention_counted(), _Alive(model.parameters()) as alive:
        hidden = body(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=torch.arange(TOKENS, device="meta")[None],
            use_cache=False,
        ).last_hidden_state
        kept = alive.now
        hidden.backward(torch.empty_like(hidden))
    tile = min(TOKENS, HEAD_TOKENS) * HEAD_VOCABULARY * 2
    gradient = TOKENS * config.hidden_size * 4
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trained, max(alive.peak, kept + tile + gradient)


class _Alive(TorchDispatchMode):
    """Adds up the storages that operations make, as long as each lives."""

    def __init__(self, known: Iterator[torch.Tensor]) -> None:
        super().__init__()
        self._seen = WeakIdKeyDictionary({tensor.untyped_storage(): None for tensor in known})
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in self._seen:
                self._seen[storage] = None
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._remove, storage.nbytes())
        return made

    def _remove(self, size: int) -> None:
        self.now -= size


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def _attention_counted() -> Iterator[None]:
    kept = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]

    torch.nn.functional.scaled_dot_product_attention = counted
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = kept
