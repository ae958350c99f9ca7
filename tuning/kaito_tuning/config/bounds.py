"""Numbers of training_config.yaml that no training can be done with, refused before a node is bought for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kaito_tuning.errors import ConfigInvalid


class _Bound(NamedTuple):
    """``must`` and ``way_out`` complete the sentence; ``holds`` gets every value but null."""

    section: str
    name: str
    must: str
    holds: Callable[[Any], bool]
    way_out: str


def _positive(value: Any) -> bool:
    return bool(0 < value < math.inf)


def _ranks(pattern: Mapping[str, Any]) -> bool:
    return all(type(rank) is int and rank >= 1 for rank in pattern.values())


def _alphas(pattern: Mapping[str, Any]) -> bool:
    return all(type(alpha) in (int, float) and _positive(alpha) for alpha in pattern.values())


_BOUNDS = (
    _Bound("TrainingArguments", "num_train_epochs", "be above 0 and finite", _positive, "or set max_steps instead"),
    _Bound(
        "TrainingArguments", "gradient_accumulation_steps", "be 1 or more", lambda v: v >= 1, "1 accumulates nothing"
    ),
    _Bound("TrainingArguments", "per_device_train_batch_size", "be 1 or more", lambda v: v >= 1, "leave it out for 8"),
    _Bound("TrainingArguments", "learning_rate", "be above 0 and finite", _positive, "leave it out for 5e-5"),
    _Bound("TrainingArguments", "max_length", "be 2 or more", lambda v: v >= 2, "leave it out for what the rows need"),
    _Bound("LoraConfig", "r", "be 1 or more", lambda v: v >= 1, "leave it out for 8"),
    _Bound("LoraConfig", "lora_alpha", "be above 0", _positive, "leave it out for 8"),
    _Bound("LoraConfig", "lora_dropout", "be from 0 to below 1", lambda v: 0 <= v < 1, "0 drops nothing"),
    _Bound("LoraConfig", "rank_pattern", "hold ranks of 1 or more", _ranks, "leave out what has the rank r"),
    _Bound("LoraConfig", "alpha_pattern", "hold numbers above 0", _alphas, "leave out what has lora_alpha"),
    _Bound("LoraConfig", "target_modules", "name modules", lambda v: len(v) > 0, "leave it out for the model's own"),
    _Bound("DatasetConfig", "shuffle_seed", "be 0 or more", lambda v: v >= 0, "leave it out for 42"),
)


def check(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Of sections whose values have their kinds. Raises ConfigInvalid with one sentence."""
    for bound in _BOUNDS:
        given = sections[bound.section]
        value = given.get(bound.name)
        # A word, such as a batch size of auto, is compared with nothing.
        if value is None or (isinstance(value, str) and value):
            continue
        if bound.name == "num_train_epochs" and (given.get("max_steps") or 0) > 0:
            continue
        if not bound.holds(value):
            raise ConfigInvalid(f"{bound.section}.{bound.name} must {bound.must}, got {value!r}; {bound.way_out}")
