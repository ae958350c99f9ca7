"""In which floating point type a device trains: bfloat16 needs compute capability 8.0 (CUDA C++ Programming Guide).

V100 (7.0) and T4 (7.5) emulate it, several times slower than float16, so there it is never used, whether somebody asked
for it or left the choice open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kaito_tuning.config import TuningConfig
from kaito_tuning.errors import ConfigInvalid

BFLOAT16_CAPABILITY = (8, 0)
INT8_CAPABILITY = (7, 5)

Dtype = Literal["float32", "float16", "bfloat16", "auto"]


@dataclass(frozen=True, slots=True)
class Device:
    """What trains: a GPU with its name and compute capability (major, minor), or a CPU, whose capability is None."""

    name: str
    capability: tuple[int, int] | None

    @classmethod
    def here(cls) -> Device:
        """This process's own."""
        import torch

        if not torch.cuda.is_available():
            return cls(name="CPU", capability=None)
        return cls(name=torch.cuda.get_device_name(), capability=torch.cuda.get_device_capability())

    @property
    def is_gpu(self) -> bool:
        """Whether it has CUDA."""
        return self.capability is not None

    @property
    def emulates_bfloat16(self) -> bool:
        """Whether bfloat16 would be slower than float16."""
        return self.capability is not None and self.capability < BFLOAT16_CAPABILITY


@dataclass(frozen=True, slots=True)
class Precision:
    """``weights``: of the base model, ``auto`` as its files have them. ``compute``: of 4-bit weights' products."""

    weights: Dtype
    compute: Dtype
    said: str | None = None


def precision(config: TuningConfig, device: Device) -> Precision:
    """The types for this configuration on this device. Raises ConfigInvalid where int8 cannot be trained."""
    if config.load_in_8bit and device.capability is not None and device.capability < INT8_CAPABILITY:
        raise ConfigInvalid(
            f"QuantizationConfig.load_in_8bit needs compute capability 7.5, but {device.name} has "
            f"{'.'.join(map(str, device.capability))}; use load_in_4bit"
        )
    weights = _asked(config.model.get("dtype"))
    compute = _asked(config.quantization.get("bnb_4bit_compute_dtype")) if config.load_in_4bit else weights
    if compute == "auto":
        compute = weights
    if not device.emulates_bfloat16:
        return Precision(weights, compute)
    changed = {"bfloat16", "auto"} & {weights, compute}
    return Precision(
        weights=_emulated(weights),
        compute=_emulated(compute),
        said=f"{device.name} has no bfloat16: training in float16" if changed else None,
    )


def mixed(given: Mapping[str, Any], dtype: str, device: Device) -> tuple[dict[str, bool], str | None]:
    """``bf16`` and ``fp16`` of the trainer for a model in ``dtype``, and a sentence where the user's are not taken.

    float16 is only mixed with float32 on a GPU: its gradients need the scaling that CPUs have not.
    """
    chosen = {key: bool(given[key]) for key in ("bf16", "fp16") if given.get(key) is not None}
    if device.emulates_bfloat16 and chosen.get("bf16"):
        return {"bf16": False, "fp16": True}, f"TrainingArguments.bf16: {device.name} has no bfloat16, fp16 is used"
    if any(chosen.values()):
        return {"bf16": False, "fp16": False} | chosen, None
    return {"bf16": dtype == "bfloat16", "fp16": dtype == "float16" and device.is_gpu} | chosen, None


def _asked(value: object) -> Dtype:
    name = re.sub(r"^torch\.", "", str(value or "auto"))
    return name if name in ("float32", "float16", "bfloat16") else "auto"  # type: ignore[return-value]


def _emulated(dtype: Dtype) -> Dtype:
    return dtype if dtype == "float32" else "float16"
