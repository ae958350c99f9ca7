"""Values of training_config.yaml that no training can be done with, refused before a node is bought for it.

Some are the libraries' own refusals, which would come on the node. A test holds the numbers against the libraries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kaito_tuning.config import lora
from kaito_tuning.config.lora import Refusals
from kaito_tuning.errors import ConfigInvalid

MOST_EPOCHS = 10_000
MOST_STEPS = 100_000_000
"""More would take a GPU years; they are slips of a key."""


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
    _Bound(
        "TrainingArguments",
        "num_train_epochs",
        f"be above 0 and at most {MOST_EPOCHS:,}",
        lambda v: 0 < v <= MOST_EPOCHS,
        "or set max_steps instead",
    ),
    _Bound(
        "TrainingArguments",
        "max_steps",
        f"be from 1 to {MOST_STEPS:,}, or -1",
        lambda v: v == -1 or 1 <= v <= MOST_STEPS,
        "leave it out for num_train_epochs",
    ),
    _Bound(
        "TrainingArguments", "gradient_accumulation_steps", "be 1 or more", lambda v: v >= 1, "1 accumulates nothing"
    ),
    _Bound("TrainingArguments", "per_device_train_batch_size", "be 1 or more", lambda v: v >= 1, "leave it out for 8"),
    _Bound("TrainingArguments", "learning_rate", "be above 0 and finite", _positive, "leave it out for 5e-5"),
    _Bound("TrainingArguments", "max_length", "be 2 or more", lambda v: v >= 2, "leave it out for what the rows need"),
    _Bound("TrainingArguments", "per_device_eval_batch_size", "be 1 or more", lambda v: v >= 1, "leave it out"),
    *(
        _Bound("TrainingArguments", name, "be 0 or more", lambda v: 0 <= v < math.inf, "leave it out")
        for name in ("warmup_steps", "dataloader_num_workers", "adam_epsilon", "weight_decay", "neftune_noise_alpha")
    ),
    *(
        _Bound("TrainingArguments", name, "be finite", math.isfinite, "leave it out")
        for name in ("logging_steps", "save_steps", "eval_steps")
    ),
    *(
        _Bound("TrainingArguments", name, "be from 0 to below 1", lambda v: 0 <= v < 1, "leave it out")
        for name in ("adam_beta1", "adam_beta2", "label_smoothing_factor")
    ),
    *(
        _Bound("TrainingArguments", name, "be 1 or more", lambda v: v >= 1, "leave it out")
        for name in ("torch_empty_cache_steps", "pad_to_multiple_of", "dataloader_prefetch_factor")
    ),
    _Bound("TrainingArguments", "seed", "be from 0 to 2**32 - 1", lambda v: 0 <= v < 1 << 32, "leave it out for 42"),
    _Bound("LoraConfig", "r", "be 1 or more", lambda v: v >= 1, "leave it out for 8"),
    _Bound("LoraConfig", "lora_alpha", "be above 0", _positive, "leave it out for 8"),
    _Bound("LoraConfig", "lora_dropout", "be from 0 to below 1", lambda v: 0 <= v < 1, "0 drops nothing"),
    _Bound("LoraConfig", "rank_pattern", "hold ranks of 1 or more", _ranks, "leave out what has the rank r"),
    _Bound("LoraConfig", "alpha_pattern", "hold numbers above 0", _alphas, "leave out what has lora_alpha"),
    _Bound("LoraConfig", "target_modules", "name modules", lambda v: len(v) > 0, "leave it out for the model's own"),
    _Bound("DatasetConfig", "shuffle_seed", "be 0 or more", lambda v: v >= 0, "leave it out for 42"),
)


_METRICS = ("loss", "entropy", "mean_token_accuracy", "num_tokens")
MEASURING_SCHEDULERS = ("reduce_lr_on_plateau", "greedy")
"""Those that follow what an evaluation measures."""
_MIN_LR = ("min_lr", "min_lr_rate")
_PLATEAU = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
_SCHEDULER_TAKES: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": ("num_cycles", *_MIN_LR),
    "cosine_warmup_with_min_lr": ("num_cycles", *_MIN_LR, "warmup_lr_rate"),
    "warmup_stable_decay": (
        *("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"),
    ),
    "reduce_lr_on_plateau": _PLATEAU,
    "greedy": (*_PLATEAU, "warmup", "max_lr", "verbose", "smooth", "window_size", "reset_start"),
}
"""Names of lr_scheduler_kwargs, besides last_epoch of most; the schedulers that are not here look at none."""
_SCHEDULER_NEEDS: Mapping[str, tuple[str, ...]] = {
    "cosine_with_min_lr": _MIN_LR,
    "cosine_warmup_with_min_lr": _MIN_LR,
    "warmup_stable_decay": ("num_decay_steps",),
}
"""One of these has to be among lr_scheduler_kwargs, and not two."""
_OPTIMIZER_PACKAGES: Mapping[str, str] = {
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "galore_": "galore_torch",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free_": "schedulefree",
    "apollo_": "apollo_torch",
    "stable_adamw": "torch-optimi",
}
"""What the image has not, by how the names of the optimizers begin that need it."""
_ATTENTION = ("eager", "sdpa", "flex_attention")


def mapping(value: object) -> Mapping[str, Any] | None:
    """A field that the libraries take as a mapping or as JSON; None for what is neither."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, Mapping) else None


def _arguments(given: Mapping[str, Any]) -> Refusals:
    if given.get("logging_steps") == 0 and given.get("logging_strategy", "steps") == "steps":
        yield "logging_steps", "be above 0", "leave it out for every 10 steps"
    for what, strategy in (("logging", "steps"), ("save", "steps"), ("eval", "epoch")):
        steps = given.get(f"{what}_steps") or 0
        if steps > 1 and steps != int(steps) and given.get(f"{what}_strategy", strategy) == "steps":
            yield f"{what}_steps", "be whole where it is above 1", "a number below 1 is a share of all steps"
    for precise, other in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if given.get(precise) and given.get(other):
            yield precise, f"not be true beside {other}", "leave both out for what the model and the device have"
    if given.get("use_liger_kernel"):
        yield "use_liger_kernel", "not be true", "the image has no liger-kernel"
    optimizer = str(given.get("optim") or "")
    for begin, package in _OPTIMIZER_PACKAGES.items():
        if optimizer.startswith(begin):
            yield "optim", f"not need {package}, which the image has not", "leave it out for adamw_torch_fused"
    if (mapping(given.get("dataset_kwargs")) or {}).get("skip_prepare_dataset"):
        yield "dataset_kwargs", "not skip_prepare_dataset", "leave it out: no row is tokenised yet"
    best, scheduler = given.get("save_strategy") == "best", given.get("lr_scheduler_type")
    metric = str(given.get("metric_for_best_model") or "loss").removeprefix("eval_")
    if best and not given.get("metric_for_best_model"):
        yield "save_strategy", "not be best without metric_for_best_model", "set that to loss"
    elif metric not in _METRICS and (best or scheduler in MEASURING_SCHEDULERS):
        yield "metric_for_best_model", f"be one of {', '.join(_METRICS)}", "nothing else is measured"
    if not given.get("dataloader_num_workers"):
        for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
            if given.get(name):
                yield name, "not be set without dataloader_num_workers", "leave it out"
    yield from _scheduler(given, str(scheduler or "linear"))


def _scheduler(given: Mapping[str, Any], scheduler: str) -> Refusals:
    if scheduler in MEASURING_SCHEDULERS and given.get("eval_strategy") == "no":
        yield "lr_scheduler_type", "not follow evaluations where eval_strategy is no", "leave one of them out"
    kwargs = mapping(given.get("lr_scheduler_kwargs") or {})
    if kwargs is None:
        yield "lr_scheduler_kwargs", "be a mapping", "leave it out"
        return
    needed = _SCHEDULER_NEEDS.get(scheduler, ())
    found = [name for name in needed if kwargs.get(name) is not None]
    if needed and not found:
        yield "lr_scheduler_type", f"have {' or '.join(needed)} in lr_scheduler_kwargs", "or choose another"
    if len(found) > 1:
        yield "lr_scheduler_kwargs", f"not have both {' and '.join(found)}", "leave one of them out"
    taken = _SCHEDULER_TAKES.get(scheduler)
    if taken is not None:
        for name in kwargs.keys() - {*taken, "" if scheduler in MEASURING_SCHEDULERS else "last_epoch"}:
            knows = ", ".join(taken) or "none"
            yield "lr_scheduler_kwargs", f"not have {name}", f"lr_scheduler_type {scheduler} knows {knows}"


def dropped(rows: int, batch: int, processes: int = 1) -> str:
    """That no row is left to train on where a batch that is not full is dropped."""
    together = f" on each of {processes} GPUs" if processes > 1 else ""
    return (
        f"TrainingArguments.dataloader_drop_last leaves out all of {rows} row{'s' if rows != 1 else ''}, which are "
        f"fewer than the per_device_train_batch_size of {batch}{together}; leave it out"
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
    arguments, adapter, quantization = (
        sections[name] for name in ("TrainingArguments", "LoraConfig", "QuantizationConfig")
    )
    for name, must, way_out in _arguments(arguments):
        raise ConfigInvalid(f"TrainingArguments.{name} must {must}, got {arguments[name]!r}; {way_out}")
    quantized = bool(quantization.get("load_in_4bit") or quantization.get("load_in_8bit"))
    for name, must, way_out in lora.refusals(adapter, quantized=quantized):
        raise ConfigInvalid(f"LoraConfig.{name} must {must}, got {adapter.get(name)!r}; {way_out}")
    if (attention := sections["ModelConfig"].get("attn_implementation") or _ATTENTION[0]) not in _ATTENTION:
        raise ConfigInvalid(
            f"ModelConfig.attn_implementation must be one of {', '.join(_ATTENTION)}, got {attention!r}; the image has "
            "no other"
        )
