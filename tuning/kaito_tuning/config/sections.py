"""What a checked configuration is: its sections and their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SECTIONS = ("ModelConfig", "QuantizationConfig", "LoraConfig", "TrainingArguments", "DataCollator", "DatasetConfig")
DEFAULT_OUTPUT = "/mnt/output"
MOUNT = "/mnt"
DTYPES = ("float32", "float16", "bfloat16", "auto")


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """How the data set is found, shuffled and split.

    ``max_bad_rows`` is the share of all rows that ``on_bad_rows: skip`` may leave out; with ``fail`` it is none.
    """

    shuffle_dataset: bool = True
    shuffle_seed: int = 42
    train_test_split: float = 0.8
    dataset_path: str | None = None
    dataset_extension: str | None = None
    context_column: str | None = None
    response_column: str | None = None
    messages_column: str | None = None
    on_bad_rows: Literal["fail", "skip"] = "skip"
    max_bad_rows: float = 0.01


@dataclass(frozen=True, slots=True)
class TuningConfig:
    """A checked configuration; ``warnings`` are sentences to show the user."""

    model: Mapping[str, Any]
    quantization: Mapping[str, Any]
    lora: Mapping[str, Any]
    training: Mapping[str, Any]
    dataset: DatasetConfig
    output_dir: str
    warnings: tuple[str, ...] = field(default=())

    @property
    def load_in_4bit(self) -> bool:
        """Whether the base model is loaded as nf4 or fp4."""
        return bool(self.quantization.get("load_in_4bit"))

    @property
    def load_in_8bit(self) -> bool:
        """Whether the base model is loaded as int8."""
        return bool(self.quantization.get("load_in_8bit"))
