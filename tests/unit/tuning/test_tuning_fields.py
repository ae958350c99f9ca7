"""The controller refuses what the trainer would refuse, in the same words, from a list made of the same libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.tuning.field_list import PATHS, generate
from tests.unit.tuning.test_tuning_config import changed

from kaito_hooks.workspace.tuning.config import problems
from kaito_tuning.config import KnownFields, parse
from kaito_tuning.errors import ConfigInvalid

TRAINING = "TrainingArguments"
TEMPLATES = Path(__file__).parents[3] / "presets" / "tuning"


@pytest.fixture(scope="module")
def known() -> KnownFields:
    return KnownFields.installed()


def controller(document: dict[str, Any]) -> str:
    data = {"training_config.yaml": yaml.safe_dump(document)}
    return next((problem.message for problem in problems("mine", data, method="qlora")), "")


def trainer(document: dict[str, Any], known: KnownFields) -> str:
    try:
        parse(yaml.safe_load(yaml.safe_dump(document)), known=known)
    except ConfigInvalid as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.parent.name)
def test_the_list_is_the_one_that_make_fields_writes(path: Path) -> None:
    assert json.loads(path.read_text()) == generate()


def test_the_shipped_list_is_what_the_libraries_say(known: KnownFields) -> None:
    assert KnownFields.shipped() == known


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        ("LoraConfig", {}, ""),
        (TRAINING, {"learning_rate": 2e-4, "max_steps": 100, "report_to": "none", "fsdp": ""}, ""),
        (TRAINING, {"learning_rate": "2e-4", "num_train_epochs": 3, "save_steps": 50}, ""),
        (TRAINING, {"max_steps": 100.0, "eval_steps": None, "bf16": None}, ""),
        (TRAINING, {"evaluation_strategy": "epoch", "warmup_ratio": 0.1, "max_seq_length": 512}, ""),
        (TRAINING, {"overwrite_output_dir": True, "per_gpu_train_batch_size": 4}, ""),
        (TRAINING, {"eval_strategy": "no", "logging_strategy": "epoch"}, ""),
        (TRAINING, {"save_strategy": "best", "metric_for_best_model": "loss"}, ""),
        (TRAINING, {"optim": "paged_adamw_8bit", "lr_scheduler_type": "cosine_with_restarts"}, ""),
        (TRAINING, {"dataloader_multiprocessing_context": None, "loss_type": "nll"}, ""),
        ("QuantizationConfig", {"bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": "bfloat16"}, ""),
        ("LoraConfig", {"bias": "lora_only", "task_type": "CAUSAL_LM", "init_lora_weights": "olora"}, ""),
        (
            TRAINING,
            {"save_strategy": "epcoh"},
            "TrainingArguments.save_strategy: 'epcoh' is none of no, steps, epoch, best; did you mean epoch?",
        ),
        (
            TRAINING,
            {"evaluation_strategy": "step"},
            "TrainingArguments.eval_strategy: 'step' is none of no, steps, epoch; did you mean steps?",
        ),
        (TRAINING, {"logging_strategy": "Epoch"}, "TrainingArguments.logging_strategy: 'Epoch' is none of no, steps, "),
        (TRAINING, {"lr_scheduler_type": "cosin"}, "TrainingArguments.lr_scheduler_type: 'cosin' is none of linear, "),
        (
            TRAINING,
            {"optim": "adamw_hf"},
            "TrainingArguments.optim: 'adamw_hf' is no value that it takes; did you mean adamw",
        ),
        (TRAINING, {"optim": "?"}, "TrainingArguments.optim: '?' is none of adamw_torch, adamw_torch_fused, "),
        (TRAINING, {"packing_strategy": "bdf"}, "packing_strategy: 'bdf' is none of bfd, bfd_split, wrapped; did you"),
        (
            "QuantizationConfig",
            {"bnb_4bit_quant_type": "nf8"},
            "QuantizationConfig.bnb_4bit_quant_type: 'nf8' is none of nf4, fp4; did you mean nf4?",
        ),
        ("QuantizationConfig", {"bnb_4bit_quant_storage": "uint4"}, "bnb_4bit_quant_storage: 'uint4' is none of "),
        ("LoraConfig", {"bias": "lora"}, "LoraConfig.bias: 'lora' is none of none, all, lora_only; did you mean "),
        ("LoraConfig", {"task_type": "CAUSAL"}, "LoraConfig.task_type: 'CAUSAL' is none of SEQ_CLS, "),
        ("LoraConfig", {"target_modules": "all-linear", "init_lora_weights": True}, ""),
        ("LoraConfig", {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}}, ""),
        ("QuantizationConfig", {"bnb_4bit_compute_dtype": "torch.bfloat16", "bnb_4bit_quant_type": None}, ""),
        ("ModelConfig", {"device_map": None}, ""),
        (TRAINING, {"learning_rat": 1}, "TrainingArguments has no field learning_rat; did you mean learning_rate?"),
        ("LoraConfig", {"lora_alfa": 1}, "LoraConfig has no field lora_alfa; did you mean lora_alpha?"),
        ("LoraConfig", {"xyzzy": 1}, "LoraConfig has no field xyzzy"),
        ("LoraConfig", {7: 1}, "LoraConfig has no field 7"),
        ("QuantizationConfig", {"load_in_4bits": True}, "QuantizationConfig has no field load_in_4bits; "),
        ("DataCollator", {"mln": True}, "DataCollator has no field mln; did you mean mlm?"),
        ("DatasetConfig", {"shuffle": True}, "DatasetConfig has no field shuffle"),
        ("ModelConfig", {"torch_dtypes": "auto"}, "ModelConfig has no field torch_dtypes"),
        ("LoRaConfig", {"r": 1}, "Unrecognized section: LoRaConfig; did you mean LoraConfig?"),
        ("LoraConfig", {"r": "eight"}, "LoraConfig.r must be an integer, got 'eight'"),
        ("LoraConfig", {"r": None}, "LoraConfig.r must be an integer, got None"),
        ("LoraConfig", {"r": 8.5}, "LoraConfig.r must be an integer, got 8.5"),
        ("LoraConfig", {"r": True}, "LoraConfig.r must be an integer, got True"),
        ("LoraConfig", {"lora_dropout": [0.1]}, "LoraConfig.lora_dropout must be a number, got [0.1]"),
        ("LoraConfig", {"modules_to_save": "lm_head"}, "LoraConfig.modules_to_save must be a list, got 'lm_head'"),
        ("LoraConfig", {"target_modules": 5}, "LoraConfig.target_modules must be a string or a list, got 5"),
        (TRAINING, {"learning_rate": "fast"}, "TrainingArguments.learning_rate must be a number, got 'fast'"),
        (TRAINING, {"warmup_ratio": {}}, "TrainingArguments.warmup_steps must be a number, got {}"),
        (TRAINING, {"fp16": "true"}, "TrainingArguments.fp16 must be a boolean, got 'true'"),
        (
            TRAINING,
            {"save_strategy": False},
            "TrainingArguments.save_strategy must be a string, got False; a word like no or on needs quotes",
        ),
        ("QuantizationConfig", {"bnb_4bit_use_double_quant": "yes"}, ".bnb_4bit_use_double_quant must be a boolean"),
        (
            "QuantizationConfig",
            {"bnb_4bit_compute_dtype": "bf16"},
            "bnb_4bit_compute_dtype: 'bf16' is none of float32, float16, bfloat16, auto; did you mean bfloat16?",
        ),
        ("ModelConfig", {"torch_dtype": "bf16"}, "ModelConfig.torch_dtype: 'bf16' is none of float32, float16"),
        ("ModelConfig", {"local_files_only": 1}, "ModelConfig.local_files_only must be a boolean, got 1"),
        ("DataCollator", {"mlm": "no"}, "DataCollator.mlm must be a boolean, got 'no'"),
        ("DatasetConfig", {"shuffle_seed": "x"}, "DatasetConfig.shuffle_seed must be an integer, got 'x'"),
        ("DatasetConfig", {"train_test_split": 1.5}, "Train/Test split needs to be between 0 and 1, got "),
        ("DatasetConfig", {"on_bad_rows": "skip", "max_bad_rows": 0.05}, ""),
        ("DatasetConfig", {"on_bad_rows": "drop"}, "DatasetConfig.on_bad_rows: 'drop' is none of fail, skip"),
        ("DatasetConfig", {"max_bad_rows": 5}, "DatasetConfig.max_bad_rows must be from 0 to below 1, got 5"),
        ("DatasetConfig", {"train_test_split": []}, "DatasetConfig.train_test_split must be a number, got []"),
        ("ModelConfig", {"trust_remote_code": True}, "ModelConfig.trust_remote_code is not allowed: "),
        (TRAINING, {"push_to_hub": True}, "TrainingArguments.push_to_hub is not allowed: "),
        (TRAINING, {"hub_token": "x"}, "TrainingArguments.hub_token is not allowed: "),
        (TRAINING, {"deepspeed": {"stage": 3}}, "TrainingArguments.deepspeed is not allowed: "),
        (TRAINING, {"report_to": ["wandb"]}, "TrainingArguments.report_to: ['wandb'] would send data elsewhere"),
        (TRAINING, {"output_dir": 7}, "Invalid output_dir specified: '7', must be a directory"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_controller_and_trainer_say_the_same_of_a_field(
    known: KnownFields, section: str, values: dict[Any, Any], sentence: str
) -> None:
    document = changed(section) if section != "LoRaConfig" else changed("LoraConfig")
    document["training_config"].setdefault(section, {}).update(values)
    told = controller(document)
    assert told == trainer(document, known)
    assert sentence in told
    assert bool(told) == bool(sentence)


@pytest.mark.parametrize("values", [{"load_in_4bit": "yes"}, {"load_in_8bit": True}], ids=["no boolean", "both"])
def test_both_refuse_a_quantization_that_cannot_be(known: KnownFields, values: dict[str, Any]) -> None:
    document = changed("QuantizationConfig", **values)
    assert controller(document)
    assert trainer(document, known)


def test_both_refuse_a_number_that_no_float_holds(known: KnownFields) -> None:
    document = changed("DatasetConfig", train_test_split=10**400)
    assert "is a number of more than 64 bits" in controller(document)
    assert "Train/Test split needs to be between 0 and 1, got " in trainer(document, known)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_both_take_the_defaults_that_the_chart_brings(known: KnownFields, method: str) -> None:
    text = (TEMPLATES / f"{method}.yaml").read_text()
    assert list(problems("mine", {"training_config.yaml": text}, method=method)) == []
    assert parse(yaml.safe_load(text), known=known)
