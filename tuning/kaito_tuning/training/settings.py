"""What TRL's SFTConfig gets: our defaults, then the user's values, then what no value may change.

Defaults are those that a user of transformers knows (learning rate 5e-5, seed 42) where TRL moved them, and what makes
a LoRA fit a small GPU: gradient checkpointing without re-entrance, and evaluation in batches no larger than training's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaito_tuning.config.bounds import MEASURING_SCHEDULERS
from kaito_tuning.training.precision import Device, mixed

FEWEST_CHECKPOINTS = 2
"""The one being written and a whole one before it, besides the best, which the trainer keeps where it looks for it."""
DEFAULT_BATCH = 8
"""Rows in a micro-batch where TrainingArguments says nothing: transformers' own default."""

_FORCED: Mapping[str, tuple[Any, str]] = {
    "report_to": ("none", "nothing leaves the Pod"),
    "disable_tqdm": (True, "progress is served on /progress"),
    "packing_strategy": ("bfd", "only with it packed documents do not see each other"),
    "logging_nan_inf_filter": (False, "a loss that is not finite has to be seen"),
    "save_only_model": (False, "a restart continues from a whole checkpoint"),
    "enable_jit_checkpoint": (False, "the job saves its own checkpoint when it is stopped"),
    "auto_find_batch_size": (False, "rows that do not fit are halved by the job, which keeps how many make a step"),
    "load_best_model_at_end": (False, "the losses that are reported are those of the last step"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments for SFTConfig, and a sentence for each value of the user's that was replaced."""

    arguments: Mapping[str, Any]
    warnings: tuple[str, ...]


def settings(
    given: Mapping[str, Any], *, device: Device, dtype: str, evaluates: bool, defaults: Mapping[str, Any] | None = None
) -> Settings:
    """``given``: the user's TrainingArguments. ``dtype``: the model's. ``evaluates``: rows are held back.

    ``defaults``: of this data set and this model, below the user's values.
    """
    warnings: list[str] = []
    best = given.get("save_strategy") == "best" or given.get("lr_scheduler_type") in MEASURING_SCHEDULERS
    fewest = FEWEST_CHECKPOINTS + best
    precise, said = mixed(given, dtype, device)
    if said:
        warnings.append(said)
    arguments: dict[str, Any] = {
        "learning_rate": 5e-5,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_total_limit": fewest,
        "seed": 42,
        "eval_strategy": "epoch" if evaluates else "no",
        "per_device_eval_batch_size": given.get("per_device_train_batch_size", DEFAULT_BATCH),
        **(defaults or {}),
        **given,
        **precise,
    }
    forced = {**_FORCED, "use_cpu": (not device.is_gpu, f"the training runs on {device.name}")}
    if not best:
        forced["metric_for_best_model"] = (None, "neither save_strategy nor lr_scheduler_type asks for it")
    for name, (value, why) in forced.items():
        if given.get(name) not in (None, value):
            warnings.append(f"TrainingArguments.{name}: {given[name]!r} is replaced by {value!r}: {why}")
        arguments[name] = value
    limit = arguments["save_total_limit"]
    if limit is not None and limit < fewest:
        warnings.append(
            f"TrainingArguments.save_total_limit: {limit} is replaced by {fewest}: "
            f"a crash while one checkpoint is written needs the one before{', besides the best' if best else ''}"
        )
        arguments["save_total_limit"] = fewest
    for name, nothing in (("eval_strategy", "no"), ("eval_on_start", False)):
        if not evaluates and arguments.get(name, nothing) != nothing:
            warnings.append(f"TrainingArguments.{name} needs DatasetConfig.train_test_split below 1; no evaluation")
            arguments[name] = nothing
    return Settings(arguments, tuple(warnings))


def halved(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same rows in each optimizer step with half of them, or fewer, at a time. None where it is one already."""
    rows = batch(arguments)
    if rows < 2:
        return None
    fewer = max(size for size in range(1, rows // 2 + 1) if rows % size == 0)
    return dict(arguments) | {
        "per_device_train_batch_size": fewer,
        "per_device_eval_batch_size": max(1, int(arguments.get("per_device_eval_batch_size") or DEFAULT_BATCH) // 2),
        "gradient_accumulation_steps": accumulation(arguments) * (rows // fewer),
    }


def batch(arguments: Mapping[str, Any]) -> int:
    """Rows that one process has on its device at a time."""
    return int(arguments.get("per_device_train_batch_size") or DEFAULT_BATCH)


def accumulation(arguments: Mapping[str, Any]) -> int:
    """Micro-batches of an optimizer step."""
    return int(arguments.get("gradient_accumulation_steps") or 1)
