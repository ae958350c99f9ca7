"""The ConfigMap of a tuning job: the rules' texts, and where results go."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kaito_hooks.workspace.tuning.config import output_directory, problems


def found(sections: Any, *, method: str = "qlora", root: str = "training_config") -> list[str]:
    data = {"training_config.yaml": yaml.safe_dump({root: sections})}
    return [p.message for p in problems("mine", data, method=method)]


def quantization(**values: Any) -> dict[str, Any]:
    return {"QuantizationConfig": values}


@pytest.mark.parametrize(
    ("sections", "method", "message"),
    [
        (quantization(load_in_4bit=True), "qlora", ""),
        (quantization(load_in_8bit=True), "qlora", ""),
        (quantization(load_in_4bit=None, load_in_8bit=True), "qlora", ""),
        (quantization(load_in_4bit=False), "lora", ""),
        ({}, "lora", ""),
        ({"Lora": {}, **quantization(load_in_4bit=True)}, "qlora", "Unrecognized section: Lora"),
        (
            quantization(load_in_4bit="yes"),
            "qlora",
            "value must be either nil or a boolean, got type string",
        ),
        (quantization(load_in_8bit=1), "lora", "value must be either nil or a boolean, got type int"),
        (
            quantization(load_in_4bit=True, load_in_8bit=True),
            "qlora",
            "Cannot set both 'load_in_4bit' and 'load_in_8bit' to true in ConfigMap 'mine'",
        ),
        (
            quantization(load_in_8bit=True),
            "lora",
            "For method 'lora', 'load_in_4bit' or 'load_in_8bit' in ConfigMap 'mine' must not be true",
        ),
        (
            {},
            "qlora",
            "For method 'qlora', either 'load_in_4bit' or 'load_in_8bit' must be true in ConfigMap 'mine'",
        ),
        (
            {"TrainingArguments": {"output_dir": "../../etc/passwd"}},
            "lora",
            "Invalid output_dir specified: '../../etc/passwd', must be a directory",
        ),
        ({"TrainingArguments": {"output_dir": 7}}, "lora", "Invalid output_dir specified: '7', must be a directory"),
        (
            {"TrainingArguments": {"output_dir": "/mnt"}},
            "lora",
            "Invalid output_dir specified: '/mnt', must be a directory",
        ),
        (
            {"TrainingArguments": {"output_dir": "data/out"}},
            "lora",
            "Invalid output_dir specified: 'data/out', /mnt/data is in use by the job",
        ),
    ],
)
def test_content_is_refused_with_the_words_users_know(sections: Any, method: str, message: str) -> None:
    assert found(sections, method=method) == ([message] if message else [])


def test_a_missing_key_is_named() -> None:
    [problem] = problems("mine", {"config.yaml": ""}, method="lora")
    assert str(problem) == "missing field(s): training_config.yaml in ConfigMap: tuning.config"


@pytest.mark.parametrize("text", ["a: [", "- 1", "training_config: 3", ""])
def test_no_configuration_at_all_is_a_sentence_too(text: str) -> None:
    assert len(list(problems("mine", {"training_config.yaml": text}, method="lora"))) == 1


@pytest.mark.parametrize(
    ("value", "directory"),
    [
        (None, "/mnt/output"),
        ("", "/mnt/output"),
        ("custom/path", "/mnt/custom/path"),
        ("/mnt/output", "/mnt/output"),
        ("/mnt/a/../b/", "/mnt/b"),
    ],
)
def test_results_go_strictly_below_mnt(value: Any, directory: str) -> None:
    assert output_directory({"output_dir": value}) == directory
