"""Tiny models of every architecture that can be tuned, with random weights and the tiny model's tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_SPLIT = _SIZES | {"intermediate_size": 128, "num_key_value_heads": 2}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "phi3": _SPLIT | {"original_max_position_embeddings": 512, "pad_token_id": 3},
    "phi": _SIZES | {"intermediate_size": 128},
    "falcon": _SIZES | {"num_kv_heads": 1, "multi_query": True, "parallel_attn": True, "bias": False},
    "mistral": _SPLIT | {"head_dim": 16},
    "llama": _SPLIT,
    "qwen2": _SPLIT,
    "qwen3": _SPLIT | {"head_dim": 16},
    "gemma3_text": _SPLIT | {"head_dim": 16, "pad_token_id": 3, "query_pre_attn_scalar": 16},
}
FAMILIES = tuple(SETTINGS)


def make(family: str, folder: Path, *, tokenizer: Path, seed: int = 0) -> Path:
    """Writes a model of that ``model_type`` into ``folder``; its tokenizer comes from the folder ``tokenizer``.

    Only Phi-3 has a chat template of its own: the others are base models.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    words = AutoTokenizer.from_pretrained(folder)
    if family != "phi3":
        words.chat_template = None
        (folder / "chat_template.jinja").unlink()
        words.save_pretrained(folder)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        **SETTINGS[family],
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, safe_serialization=True)
    return folder
