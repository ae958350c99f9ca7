"""The base model: loaded from a folder of safetensors, quantised if asked.

bitsandbytes' CPU kernel repacks 4-bit weights in place for AVX512-BF16 on the first forward without gradients, after
which training loses gradients silently, so that kernel is off here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaito_tuning.config import TuningConfig
from kaito_tuning.config.targets import TARGETS
from kaito_tuning.errors import ModelInvalid
from kaito_tuning.reading import raise_passing
from kaito_tuning.training.precision import Device, Precision, precision

_PICKLES = (".bin", ".pt", ".pth", ".pkl")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A loaded model with its tokenizer; ``dtype``: what it computes in; ``warnings``: sentences for the user."""

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
        raise_passing(error)
        raise ModelInvalid(f"{folder} holds no readable config.json: {error}") from None
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickled:
        raise ModelInvalid(f"{folder} holds pickled weights ({', '.join(pickled[:3])}); only safetensors are loaded")
    if not any(folder.glob("*.safetensors")):
        raise ModelInvalid(f"{folder} holds no *.safetensors")
    model_type = str(config.get("model_type"))
    if model_type not in TARGETS:
        raise ModelInvalid(f"models of type {model_type} cannot be tuned; known are {', '.join(sorted(TARGETS))}")
    return model_type


def load(folder: Path, config: TuningConfig, *, device: Device, gpu: int | None = None) -> BaseModel:
    """The model in the types of this device, frozen, with its tokenizer. ``gpu``: the only one to use, of several.

    Raises ModelInvalid for files that cannot be loaded, OSError where that is not about the files, and what the
    libraries raise for options that they refuse.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_type = check_folder(folder)
    chosen = precision(config, device)
    options: dict[str, Any] = {
        "dtype": chosen.weights if chosen.weights == "auto" else getattr(torch, chosen.weights),
        "local_files_only": True,
        "use_safetensors": True,
        "attn_implementation": config.model.get("attn_implementation", "sdpa"),
        "device_map": _device_map(config, device, gpu),
    }
    quantization = _quantization(config, chosen)
    if quantization is not None:
        options["quantization_config"] = quantization
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise_passing(error)
        raise ModelInvalid(f"{folder} cannot be loaded: {' '.join(str(error).split())[:500]}") from error
    model.config.use_cache = False
    _keep_gradients_on_cpu(model)
    compute = chosen.compute if config.load_in_4bit else chosen.weights
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch.") if compute == "auto" else compute,
        model_type=model_type,
        warnings=(chosen.said,) if chosen.said else (),
    )


def _device_map(config: TuningConfig, device: Device, gpu: int | None) -> Any:
    if not device.is_gpu:
        return None
    return {"": gpu} if gpu is not None else config.model.get("device_map")


def _quantization(config: TuningConfig, chosen: Precision) -> Any:
    if not (config.load_in_4bit or config.load_in_8bit):
        return None
    import torch
    from transformers import BitsAndBytesConfig

    options = {key: value for key, value in config.quantization.items() if value is not None}
    if config.load_in_4bit:
        options["bnb_4bit_compute_dtype"] = getattr(torch, chosen.compute if chosen.compute != "auto" else "float32")
    return BitsAndBytesConfig(**options)


def _keep_gradients_on_cpu(model: Any) -> None:
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
