"""training_config.yaml: what is taken, translated, dropped and refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import BitsAndBytesConfig, Trainer, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.training_args import OptimizerNames
from trl import SFTConfig

from kaito_tuning.config import KnownFields, load, output_directory, parse
from kaito_tuning.errors import ConfigInvalid

QLORA: dict[str, Any] = yaml.safe_load(
    """
training_config:
  ModelConfig: {torch_dtype: bfloat16, local_files_only: true, device_map: auto}
  QuantizationConfig: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: bfloat16,
    bnb_4bit_use_double_quant: true}
  LoraConfig: {r: 8, lora_alpha: 8, lora_dropout: 0.0}
  TrainingArguments: {output_dir: /mnt/results, ddp_find_unused_parameters: false, save_strategy: epoch,
    per_device_train_batch_size: 1}
  DataCollator: {mlm: true}
  DatasetConfig: {shuffle_dataset: true, train_test_split: 1}
"""
)


@pytest.fixture(scope="session")
def known() -> KnownFields:
    return KnownFields.installed()


def changed(section: str, **values: Any) -> dict[str, Any]:
    document = copy.deepcopy(QLORA)
    document["training_config"].setdefault(section, {}).update(values)
    return document


def in_float32(document: dict[str, Any]) -> dict[str, Any]:
    """Computed in the type that CPUs are fast in."""
    document["training_config"]["ModelConfig"]["torch_dtype"] = "float32"
    document["training_config"]["QuantizationConfig"]["bnb_4bit_compute_dtype"] = "float32"
    return document


def test_the_default_template_is_taken_as_it_is(known: KnownFields) -> None:
    config = parse(QLORA, known=known)
    assert config.load_in_4bit
    assert not config.load_in_8bit
    assert config.output_dir == "/mnt/results"
    assert config.model["dtype"] == "bfloat16"
    assert config.dataset.train_test_split == 1
    assert [w for w in config.warnings if "mlm" in w]


@pytest.mark.parametrize(
    ("section", "old", "value", "attribute", "new"),
    [
        ("TrainingArguments", "evaluation_strategy", "epoch", "training", "eval_strategy"),
        ("TrainingArguments", "warmup_ratio", 0.1, "training", "warmup_steps"),
        ("TrainingArguments", "no_cuda", True, "training", "use_cpu"),
        ("TrainingArguments", "max_seq_length", 512, "training", "max_length"),
    ],
)
def test_a_field_that_was_renamed_is_translated(
    known: KnownFields, section: str, old: str, value: object, attribute: str, new: str
) -> None:
    config = parse(changed(section, **{old: value}), known=known)
    assert getattr(config, attribute)[new] == value


@pytest.mark.parametrize("name", ["overwrite_output_dir", "logging_dir", "group_by_length", "per_gpu_train_batch_size"])
def test_a_field_that_is_gone_is_ignored_with_a_warning(known: KnownFields, name: str) -> None:
    config = parse(changed("TrainingArguments", **{name: 1}), known=known)
    assert name not in config.training
    assert any(name in warning for warning in config.warnings)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        pytest.param(changed("Nonsense", x=1), "Unrecognized section: Nonsense", id="unknown section"),
        pytest.param(changed("LoRaConfig", r=1), "did you mean LoraConfig?", id="misspelt section"),
        pytest.param(changed("LoraConfig", lora_alfa=1), "did you mean lora_alpha?", id="misspelt field"),
        pytest.param(
            changed("TrainingArguments", learning_rat=1), "TrainingArguments has no field learning_rat", id="field"
        ),
        pytest.param(
            changed("QuantizationConfig", load_in_4bit="yes"),
            "value must be either nil or a boolean",
            id="4bit is no boolean",
        ),
        pytest.param(
            changed("QuantizationConfig", load_in_8bit=True),
            "Cannot set both 'load_in_4bit' and 'load_in_8bit' to true",
            id="both",
        ),
        pytest.param(
            changed("TrainingArguments", output_dir="../../etc/passwd"),
            "Invalid output_dir specified: '../../etc/passwd', must be a directory",
            id="output_dir outside",
        ),
        pytest.param(
            changed("DatasetConfig", train_test_split=0), "Train/Test split needs to be between 0 and 1", id="split"
        ),
        pytest.param(changed("ModelConfig", trust_remote_code=True), "is not allowed", id="remote code"),
        pytest.param(changed("TrainingArguments", push_to_hub=True), "is not allowed", id="push to hub"),
        pytest.param(changed("TrainingArguments", hub_token="x"), "is not allowed", id="hub token"),
        pytest.param(changed("TrainingArguments", report_to="wandb"), "only none is allowed", id="report_to"),
        pytest.param(
            changed("TrainingArguments", chat_template_path="/mnt/data/chat.jinja"),
            "TrainingArguments.chat_template_path: '/mnt/data/chat.jinja' is not taken; set ModelConfig.chat_template",
            id="template elsewhere",
        ),
        pytest.param({"training_config": None}, "needs one top-level key, training_config", id="empty"),
        pytest.param([1, 2], "needs one top-level key, training_config", id="a list"),
    ],
)
def test_a_mistake_is_refused_with_a_sentence_that_names_it(
    known: KnownFields, document: object, sentence: str
) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        parse(document, known=known)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("TrainingArguments", {"num_train_epochs": 0}),
        ("TrainingArguments", {"num_train_epochs": float("inf")}),
        ("TrainingArguments", {"num_train_epochs": -1, "max_steps": -1}),
        ("TrainingArguments", {"gradient_accumulation_steps": 0}),
        ("TrainingArguments", {"per_device_train_batch_size": 0}),
        ("TrainingArguments", {"learning_rate": 0.0}),
        ("TrainingArguments", {"learning_rate": float("nan")}),
        ("TrainingArguments", {"max_length": 1}),
        ("LoraConfig", {"r": 0}),
        ("LoraConfig", {"lora_alpha": 0}),
        ("LoraConfig", {"lora_dropout": 1.0}),
        ("LoraConfig", {"lora_dropout": -0.1}),
        ("LoraConfig", {"target_modules": []}),
        ("LoraConfig", {"target_modules": ""}),
        ("DatasetConfig", {"shuffle_seed": -1}),
        ("TrainingArguments", {"per_device_eval_batch_size": 0}),
        ("TrainingArguments", {"warmup_steps": -1}),
        ("TrainingArguments", {"torch_empty_cache_steps": 0}),
        ("TrainingArguments", {"logging_steps": 0}),
        ("TrainingArguments", {"logging_steps": float("inf")}),
        ("TrainingArguments", {"save_steps": float("inf")}),
        ("TrainingArguments", {"num_train_epochs": 1e9}),
        ("TrainingArguments", {"max_steps": 0}),
        ("TrainingArguments", {"max_steps": -5}),
        ("TrainingArguments", {"max_steps": 10**12}),
        ("TrainingArguments", {"dataloader_num_workers": -1}),
        ("TrainingArguments", {"seed": -1}),
        ("TrainingArguments", {"seed": 2**32}),
        ("TrainingArguments", {"adam_beta1": 1.5}),
        ("TrainingArguments", {"adam_beta2": 1.0}),
        ("TrainingArguments", {"adam_epsilon": -1e-8}),
        ("TrainingArguments", {"weight_decay": -0.1}),
        ("TrainingArguments", {"neftune_noise_alpha": -5.0}),
        ("TrainingArguments", {"label_smoothing_factor": 2.0}),
        ("TrainingArguments", {"pad_to_multiple_of": 0}),
        ("TrainingArguments", {"use_liger_kernel": True}),
        ("TrainingArguments", {"bf16": True, "fp16": True}),
        ("TrainingArguments", {"save_strategy": "best"}),
        ("TrainingArguments", {"metric_for_best_model": "eval_accuracy", "save_strategy": "best"}),
        ("TrainingArguments", {"metric_for_best_model": "nope", "lr_scheduler_type": "reduce_lr_on_plateau"}),
        ("TrainingArguments", {"dataloader_prefetch_factor": 2}),
        ("TrainingArguments", {"dataloader_persistent_workers": True, "dataloader_num_workers": 0}),
        ("TrainingArguments", {"lr_scheduler_type": "cosine_with_min_lr"}),
        ("TrainingArguments", {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"min_lr_ratio": 0}}),
        ("LoraConfig", {"layers_pattern": "layers"}),
        ("TrainingArguments", {"logging_steps": 1.5}),
        ("TrainingArguments", {"save_steps": 2.5, "save_strategy": "steps"}),
        ("TrainingArguments", {"eval_steps": 2.5, "eval_strategy": "steps"}),
        ("TrainingArguments", {"bf16_full_eval": True, "fp16_full_eval": True}),
        ("TrainingArguments", {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"}),
        ("TrainingArguments", {"lr_scheduler_type": "greedy", "eval_strategy": "no"}),
        ("TrainingArguments", {"lr_scheduler_kwargs": "min_lr=0"}),
        ("TrainingArguments", {"lr_scheduler_kwargs": "{min_lr"}),
        ("TrainingArguments", {"lr_scheduler_kwargs": '{"num_cycles": 1, "num_cycles": 2}'}),
        ("TrainingArguments", {"gradient_checkpointing_kwargs": '{"use_reentrant": true, "use_reentrant": false}'}),
        ("TrainingArguments", {"dataset_kwargs": {"skip_prepare_dataset": True}}),
        ("TrainingArguments", {"dataset_kwargs": '{"skip_prepare_dataset": true}'}),
        ("ModelConfig", {"attn_implementation": "flash_attention_2"}),
    ],
    ids=lambda value: "-".join(f"{key} {given}" for key, given in value.items()) if isinstance(value, dict) else value,
)
def test_a_value_that_nothing_can_be_trained_with_is_refused(
    known: KnownFields, section: str, values: dict[str, Any]
) -> None:
    name, value = next(iter(values.items()))
    with pytest.raises(ConfigInvalid) as refused:
        parse(changed(section, **values), known=known)
    assert str(refused.value).startswith(f"{section}.{name} must ")
    assert f"got {value!r}; " in str(refused.value)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("TrainingArguments", {"num_train_epochs": 0, "max_steps": 4}),
        ("TrainingArguments", {"max_steps": -1}),
        ("TrainingArguments", {"num_train_epochs": 0.5, "max_length": 2, "learning_rate": "1e-7"}),
        ("TrainingArguments", {"max_length": None, "gradient_accumulation_steps": 1}),
        ("LoraConfig", {"r": 1, "lora_alpha": 1, "lora_dropout": 0, "target_modules": None}),
        ("LoraConfig", {"target_modules": "all-linear", "lora_dropout": 0.99}),
        ("DatasetConfig", {"shuffle_seed": 0}),
        (
            "TrainingArguments",
            {"warmup_steps": 0, "seed": 0, "adam_beta1": 0.0, "weight_decay": 0, "logging_steps": 0.5},
        ),
        ("TrainingArguments", {"bf16": True, "fp16": False, "save_strategy": "best", "metric_for_best_model": "loss"}),
        ("TrainingArguments", {"metric_for_best_model": "eval_mean_token_accuracy", "save_strategy": "best"}),
        ("TrainingArguments", {"metric_for_best_model": "nobody looks at it"}),
        ("TrainingArguments", {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2}),
        ("TrainingArguments", {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.0}}),
        ("TrainingArguments", {"logging_strategy": "no", "logging_steps": 0}),
        ("LoraConfig", {"layers_pattern": "layers", "layers_to_transform": [0]}),
        ("TrainingArguments", {"eval_steps": 2.5, "save_steps": 2.0, "logging_steps": 0.5}),
        ("TrainingArguments", {"dataset_kwargs": {"skip_prepare_dataset": False}}),
        ("ModelConfig", {"attn_implementation": "eager"}),
        ("ModelConfig", {"attn_implementation": None}),
    ],
)
def test_the_smallest_values_are_taken(known: KnownFields, section: str, values: dict[str, Any]) -> None:
    assert parse(changed(section, **values), known=known)


def numbers(known: KnownFields) -> Iterator[tuple[str, str, float]]:
    """Every field of the libraries that takes a number, with numbers that few of them mean."""
    for section in ("TrainingArguments", "LoraConfig", "QuantizationConfig"):
        for name, kinds in known.by_section()[section].items():
            if {"integer", "number"} & kinds:
                for value in (0, -1, 1, 2, *((0.5, -0.5, math.nan, math.inf) if "number" in kinds else ())):
                    yield section, name, value


def test_no_number_passes_that_the_libraries_refuse(known: KnownFields) -> None:
    passed = []
    for section, name, value in numbers(known):
        document = copy.deepcopy(QLORA)
        document["training_config"][section][name] = value
        try:
            taken = parse(document, known=known)
        except ConfigInvalid:
            continue
        try:
            SFTConfig(output_dir="x", use_cpu=True, bf16=False, **taken.training)
            LoraConfig(task_type="CAUSAL_LM", **taken.lora)
            BitsAndBytesConfig(**{key: given for key, given in taken.quantization.items() if given is not None})
        except (ValueError, TypeError, ArithmeticError) as error:
            passed.append(f"{section}.{name} {value}: {error}")
    assert not passed


SCHEDULER_NEEDS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr": 0.0},
    "cosine_warmup_with_min_lr": {"min_lr": 0.0},
    "warmup_stable_decay": {"num_decay_steps": 1},
}
SCHEDULER_KWARGS: dict[str, Any] = {
    "num_cycles": 1,
    "lr_end": 1e-8,
    "power": 1.0,
    "timescale": 10,
    "min_lr": 0.0,
    "min_lr_rate": 0.1,
    "warmup_lr_rate": 0.1,
    "num_decay_steps": 1,
    "num_stable_steps": 1,
    "warmup_type": "linear",
    "decay_type": "cosine",
    "min_lr_ratio": 0.0,
    "mode": "min",
    "factor": 0.5,
    "patience": 1,
    "threshold": 0.1,
    "threshold_mode": "rel",
    "cooldown": 1,
    "eps": 1e-8,
    "warmup": 1,
    "max_lr": 1.0,
    "verbose": False,
    "smooth": False,
    "window_size": 5,
    "reset_start": 5,
    "last_epoch": -1,
    "num_training_steps": 9,
    "num_warmup_steps": 1,
    "optimizer": 1,
    "nobody_knows": 1,
}


@pytest.mark.parametrize("scheduler", [kind.value for kind in TYPE_TO_SCHEDULER_FUNCTION])
def test_lr_scheduler_kwargs_are_taken_that_the_scheduler_takes(known: KnownFields, scheduler: str) -> None:
    for name, value in SCHEDULER_KWARGS.items():
        kwargs = SCHEDULER_NEEDS.get(scheduler, {}) | {name: value}
        given = changed("TrainingArguments", lr_scheduler_type=scheduler, lr_scheduler_kwargs=kwargs)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        try:
            get_scheduler(scheduler, optimizer, 1, 9, scheduler_specific_kwargs=dict(kwargs))
        except (TypeError, ValueError):
            with pytest.raises(ConfigInvalid, match=r"^TrainingArguments\.lr_scheduler_(kwargs|type) must "):
                parse(given, known=known)
        else:
            assert parse(given, known=known).training["lr_scheduler_kwargs"] == kwargs


@pytest.mark.parametrize(
    "given", [yaml.safe_load("min_lr: 1e-6"), '{"min_lr": 1e-6}', '{"min_lr": "1e-6"}'], ids=["YAML", "JSON", "text"]
)
def test_lr_scheduler_kwargs_hold_numbers_however_they_are_written(known: KnownFields, given: Any) -> None:
    document = changed("TrainingArguments", lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=given)
    assert parse(document, known=known).training["lr_scheduler_kwargs"] == {"min_lr": 1e-6}


def test_an_optimizer_is_taken_that_the_libraries_have(known: KnownFields) -> None:
    for optimizer in OptimizerNames:
        arguments = SFTConfig(output_dir="x", use_cpu=True, bf16=False, optim=optimizer.value)
        given = changed("TrainingArguments", optim=optimizer.value)
        try:
            Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(1, 1))
        except (ImportError, ValueError):
            with pytest.raises(ConfigInvalid, match=r"^TrainingArguments\.optim must "):
                parse(given, known=known)
        else:
            assert parse(given, known=known).training["optim"] == optimizer.value


def test_a_whole_number_is_taken_where_the_library_wants_a_fraction(known: KnownFields) -> None:
    config = parse(changed("QuantizationConfig", llm_int8_threshold=6), known=known)
    assert type(config.quantization["llm_int8_threshold"]) is float


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("TrainingArguments", {"max_seq_length": 512}, {"max_length": 1024}),
        ("TrainingArguments", {"evaluation_strategy": "no"}, {"eval_strategy": "epoch"}),
        ("TrainingArguments", {"warmup_ratio": 0.03}, {"warmup_steps": 100}),
    ],
)
def test_two_names_of_one_field_must_not_differ(
    known: KnownFields, section: str, old: dict[str, Any], new: dict[str, Any]
) -> None:
    (name,), (today,) = old, new
    for given in (old | new, new | old):
        with pytest.raises(ConfigInvalid, match=rf"^{section}\.{name} and {section}\.{today} are one field"):
            parse(changed(section, **given), known=known)
    assert parse(changed(section, **old, **{today: old[name]}), known=known)


@pytest.mark.parametrize("order", [1, -1])
def test_no_warm_up_steps_beside_a_ratio_are_none(known: KnownFields, order: int) -> None:
    given = dict([("warmup_ratio", 0.03), ("warmup_steps", 0)][::order])
    assert parse(changed("TrainingArguments", **given), known=known).training["warmup_steps"] == 0.03


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("training_config:\n  LoraConfig: {r: 8}\n  LoraConfig: {r: 16}\n", "LoraConfig"),
        (
            "training_config:\n  TrainingArguments:\n    learning_rate: 2e-4\n    seed: 1\n    learning_rate: 1\n",
            "learning_rate",
        ),
    ],
    ids=["a section", "a field"],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, known: KnownFields, text: str, twice: str) -> None:
    path = tmp_path / "training_config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=f"{twice} is there twice, in line [35]"):
        load(path, known=known)


def test_keys_that_are_merged_into_others_are_not_there_twice(tmp_path: Path, known: KnownFields) -> None:
    path = tmp_path / "training_config.yaml"
    path.write_text(
        "shared:\n"
        "  lora:\n"
        "    small: &small {r: 8, lora_alpha: 8}\n"
        "    big: &big\n"
        "      <<: *small\n"
        "      r: 16\n"
        "more: &more {lora_dropout: 0.1}\n"
        "training_config:\n"
        "  LoraConfig:\n"
        "    <<: *big\n"
        "    <<: *more\n"
        "    lora_alpha: 32\n"
    )
    again = tmp_path / "again.yaml"
    again.write_text(
        "a: {b: {c: {big: &big {<<: &small {r: 8, lora_alpha: 8}, r: 16}}}}\n"
        "training_config: {LoraConfig: {<<: *big, lora_alpha: 32, lora_dropout: 0.1}}\n"
    )
    for written in (path, again):
        assert load(written, known=known).lora == {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1}


@pytest.mark.parametrize(
    ("given", "directory"),
    [
        (None, "/mnt/output"),
        ("", "/mnt/output"),
        ("custom/path", "/mnt/custom/path"),
        ("/mnt/output", "/mnt/output"),
        ("/mnt/a/../b", "/mnt/b"),
    ],
)
def test_the_output_directory_lies_below_mnt(given: str | None, directory: str) -> None:
    assert output_directory(given) == directory


@pytest.mark.parametrize("given", ["/mnt", "/mnt/", "../../etc/passwd", "/tmp/x", 5, ["/mnt/x"], "/mntx/y"])
def test_an_output_directory_elsewhere_is_refused(given: object) -> None:
    with pytest.raises(ConfigInvalid, match="Invalid output_dir specified"):
        output_directory(given)
