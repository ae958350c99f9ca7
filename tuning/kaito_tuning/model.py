"""The base model: loaded from a folder of safetensors, quantised if asked, with the modules that LoRA adapts.

Facts: bfloat16 needs compute capability 8.0, so V100 and T4 train in float16; bitsandbytes' CPU kernel repacks 4-bit
weights in place for AVX512-BF16 on the first forward without gradients, after which training loses gradients
silently, so that kernel is off here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaito_tuning.config import TuningConfig
from kaito_tuning.errors import ConfigInvalid, ModelInvalid

_SPLIT_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TARGETS: Mapping[str, tuple[str, ...]] = {
    "phi3": ("down_proj", "gate_up_proj", "o_proj", "qkv_proj"),
    "phi": ("dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"),
    "falcon": ("dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"),
    "mistral": tuple(sorted(_SPLIT_ATTENTION)),
    "llama": tuple(sorted(_SPLIT_ATTENTION)),
}
_FUSED: Mapping[str, Mapping[str, str]] = {
    "phi3": {
        "q_proj": "qkv_proj",
        "k_proj": "qkv_proj",
        "v_proj": "qkv_proj",
        "gate_proj": "gate_up_proj",
        "up_proj": "gate_up_proj",
    }
}
_PICKLES = (".bin", ".pt", ".pth", ".pkl")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A loaded model with its tokenizer; ``dtype`` names the compute type, ``warnings`` are sentences for the user."""

    model: Any
    tokenizer: Any
    dtype: str
    model_type: str
    warnings: tuple[str, ...]


def check_folder(folder: Path) -> str:
    """The config's model_type. Raises ModelInvalid without safetensors, with pickles, or for an unknown type."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelInvalid(f"{folder} holds no readable config.json: {error}") from None
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickled:
        raise ModelInvalid(f"{folder} holds pickled weights ({', '.join(pickled[:3])}); only safetensors are loaded")
    if not any(folder.glob("*.safetensors")):
        raise ModelInvalid(f"{folder} holds no *.safetensors")
    model_type = str(config.get("model_type"))
    if model_type not in _TARGETS:
        raise ModelInvalid(f"models of type {model_type} cannot be tuned; known are {', '.join(sorted(_TARGETS))}")
    return model_type


def load(folder: Path, config: TuningConfig) -> BaseModel:
    """The model in the compute type of this machine, frozen, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_type = check_folder(folder)
    warnings: list[str] = []
    cuda = torch.cuda.is_available()
    dtype = _compute_dtype(config, cuda=cuda, warnings=warnings)
    if config.load_in_8bit and cuda and torch.cuda.get_device_capability() < (7, 5):
        raise ConfigInvalid(
            f"QuantizationConfig.load_in_8bit needs compute capability 7.5, but {torch.cuda.get_device_name()} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability()))}; use load_in_4bit"
        )
    options: dict[str, Any] = {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "local_files_only": True,
        "use_safetensors": True,
        "attn_implementation": config.model.get("attn_implementation", "sdpa"),
        "device_map": config.model.get("device_map") if cuda else None,
    }
    quantization = _quantization(config, dtype)
    if quantization is not None:
        options["quantization_config"] = quantization
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelInvalid(f"{folder} cannot be loaded: {' '.join(str(error).split())[:500]}") from error
    model.config.use_cache = False
    _keep_gradients_on_cpu(model)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch.") if dtype == "auto" else dtype,
        model_type=model_type,
        warnings=tuple(warnings),
    )


def target_modules(given: object, *, model_type: str, module_names: Iterable[str]) -> tuple[list[str], str | None]:
    """Sorted name suffixes to adapt, and a sentence if names were translated.

    Phi-3 fuses q, k, v into qkv_proj and gate, up into gate_up_proj: the split names that many files carry are
    mapped, because they would match nothing. "all-linear" becomes the model's own list, so that the same run saves
    the same file. Raises ConfigInvalid for a name that matches no module.
    """
    if given is None or given == "all-linear":
        return list(_TARGETS[model_type]), None
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigInvalid(f"LoraConfig.target_modules must be a list of module names, got {given!r}")
    fused = _FUSED.get(model_type, {})
    wanted = sorted({fused.get(name, name) for name in names})
    present = {name.rsplit(".", 1)[-1] for name in module_names}
    for name in wanted:
        if name not in present:
            raise ConfigInvalid(
                f"LoraConfig.target_modules: the model has no module {name}; it has {', '.join(_TARGETS[model_type])}"
            )
    translated = sorted(name for name in names if name in fused)
    said = (
        f"target modules {', '.join(translated)} are fused in this model: adapting {', '.join(wanted)}"
        if translated
        else None
    )
    return wanted, said


def _compute_dtype(config: TuningConfig, *, cuda: bool, warnings: list[str]) -> str:
    import torch

    asked = str(config.model.get("dtype", "auto"))
    compute = config.quantization.get("bnb_4bit_compute_dtype")
    if config.load_in_4bit and compute:
        asked = re.sub(r"^torch\.", "", str(compute))
    if asked == "bfloat16" and cuda and torch.cuda.get_device_capability() < (8, 0):
        warnings.append(f"{torch.cuda.get_device_name()} has no bfloat16: training in float16")
        return "float16"
    return asked


def _quantization(config: TuningConfig, dtype: str) -> Any:
    if not (config.load_in_4bit or config.load_in_8bit):
        return None
    import torch
    from transformers import BitsAndBytesConfig

    options = {key: value for key, value in config.quantization.items() if value is not None}
    if config.load_in_4bit:
        options["bnb_4bit_compute_dtype"] = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    return BitsAndBytesConfig(**options)


def _keep_gradients_on_cpu(model: Any) -> None:
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
