"""training_config.yaml: what is taken, translated, dropped and refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from kaito_tuning.config import KnownFields, output_directory, parse
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
        ("TrainingArguments", {"num_train_epochs": 0.5, "max_length": 2, "learning_rate": "1e-7"}),
        ("TrainingArguments", {"max_length": None, "gradient_accumulation_steps": 1}),
        ("LoraConfig", {"r": 1, "lora_alpha": 1, "lora_dropout": 0, "target_modules": None}),
        ("LoraConfig", {"target_modules": "all-linear", "lora_dropout": 0.99}),
        ("DatasetConfig", {"shuffle_seed": 0}),
    ],
)
def test_the_smallest_values_are_taken(known: KnownFields, section: str, values: dict[str, Any]) -> None:
    assert parse(changed(section, **values), known=known)


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
