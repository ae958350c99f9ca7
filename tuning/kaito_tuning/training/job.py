"""What goes into a training and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaito_tuning.config import TuningConfig
from kaito_tuning.data import Data
from kaito_tuning.training.model import BaseModel


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What to train. ``key`` identifies configuration, data and base model; checkpoints of others are not resumed.

    ``context_length``: the most tokens that the model is served with, if that is known.
    ``load_base`` gives the base model, without any adapter, each time anew: it is called once to train, once more after
    memory ran out, and once to prove the result. ``processes`` train together, each on a GPU of its own, and this is
    number ``rank`` of them, from 0.
    """

    load_base: Callable[[], BaseModel]
    config: TuningConfig
    data: Data
    output_dir: Path
    key: str
    context_length: int | None = None
    rank: int = 0
    processes: int = 1


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The trained adapter and what was measured.

    ``weights``: the adapter's tensors on the CPU, named as in its file. ``lora``: its peft.LoraConfig. ``dtype``: what
    was computed in. ``history``: the trainer's log lines. ``chat_template``: what conversations were rendered by, if
    it is not the base model's own.
    """

    weights: Mapping[str, Any]
    lora: Any
    dtype: str
    model_type: str
    steps: int
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
