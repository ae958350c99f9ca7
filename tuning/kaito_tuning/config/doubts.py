"""TrainingArguments that can be trained with, and hardly say what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LOWEST_RATE, HIGHEST_RATE = 1e-7, 1e-2
"""Learning rates beyond these teach an adapter nothing, or destroy what the model knows."""


def of_rate(training: Mapping[str, Any]) -> Iterator[str]:
    """A sentence about a learning rate that is far from all that adapters are trained with."""
    rate = training.get("learning_rate")
    if rate is not None and not LOWEST_RATE <= rate <= HIGHEST_RATE:
        what = (
            "high that an adapter seldom learns with it"
            if rate > HIGHEST_RATE
            else "low that an adapter learns nothing"
        )
        yield f"TrainingArguments.learning_rate {rate:g} is so {what}; common are 1e-5 to 1e-3"


def of_steps(training: Mapping[str, Any], *, rows: int, steps: int) -> Iterator[str]:
    """Sentences about numbers that do not fit a training of so many rows and about so many optimizer steps."""
    together = int(training.get("per_device_train_batch_size") or 1) * int(
        training.get("gradient_accumulation_steps") or 1
    )
    if together > rows:
        yield (
            "TrainingArguments.per_device_train_batch_size and gradient_accumulation_steps make a step of "
            f"{together:,} rows, of which there are {rows:,}: an epoch is one step"
        )
    warmup = training.get("warmup_steps") or 0
    if warmup >= 1 and warmup >= steps:
        yield (
            f"TrainingArguments.warmup_steps {warmup:,g} are no fewer than the steps of the training, about {steps:,}: "
            "the learning rate is never reached"
        )
    measured = training.get("eval_steps") or 0
    if training.get("eval_strategy") == "steps" and measured > steps:
        yield (
            f"TrainingArguments.eval_steps {measured:,g} are more than the steps of the training, about {steps:,}: "
            "nothing is evaluated before its end"
        )
