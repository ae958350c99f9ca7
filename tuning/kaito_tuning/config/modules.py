"""The modules of each family that hold weights, by their names in transformers, for where no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MOST_LAYERS = 256
"""More than any model has: where nobody says how many there are."""
EMBEDDINGS = ("embed_tokens", "word_embeddings")
HEAD = "lm_head"

_ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_AROUND_MLP = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True, slots=True)
class Modules:
    """Of one family: paths ``within`` each of the ``layers``, and ``outside`` of them."""

    within: tuple[str, ...]
    outside: tuple[str, ...] = ("model.embed_tokens", "model.norm", HEAD)
    layers: str = "model.layers"

    def names(self, layers: int) -> Iterator[str]:
        """Of a model with so many layers."""
        yield from self.outside
        for layer in range(layers):
            yield from (f"{self.layers}.{layer}.{path}" for path in self.within)

    @property
    def ends(self) -> frozenset[str]:
        """The last parts of all names."""
        return frozenset(path.rsplit(".", 1)[-1] for path in (*self.within, *self.outside))


_SPLIT = Modules((*_ATTENTION, *_MLP, *_NORMS))
FAMILIES: Mapping[str, Modules] = {
    "phi3": Modules(("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj", *_NORMS)),
    "phi": Modules(
        (*_ATTENTION[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2", "input_layernorm"),
        ("model.embed_tokens", "model.final_layernorm", HEAD),
    ),
    "falcon": Modules(
        (
            *("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            *(*_NORMS, "ln_attn", "ln_mlp"),
        ),
        ("transformer.word_embeddings", "transformer.ln_f", HEAD),
        "transformer.h",
    ),
    "mistral": _SPLIT,
    "llama": _SPLIT,
    "qwen2": _SPLIT,
    "qwen3": Modules((*_ATTENTION, *_HEAD_NORMS, *_MLP, *_NORMS)),
    "gemma3_text": Modules((*_ATTENTION, *_HEAD_NORMS, *_MLP, *_NORMS, *_AROUND_MLP)),
}
"""By the model's type. Falcon's norms are those of all its sizes, of which each has some."""
