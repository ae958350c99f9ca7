"""The ConfigMap of a tuning job: the rules' texts, and where results go."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

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


def test_several_mistakes_are_told_at_once_but_not_dozens() -> None:
    assert len(found({"LoraConfig": {"rank": 8}, "TrainingArguments": {"output_dir": 7}}, method="lora")) == 2
    assert len(found({"LoraConfig": {f"none{n}": 1 for n in range(50)}}, method="lora")) == 5


def test_a_missing_key_is_named() -> None:
    [problem] = problems("mine", {"config.yaml": ""}, method="lora")
    assert str(problem) == "missing field(s): training_config.yaml in ConfigMap: tuning.config"


@pytest.mark.parametrize("text", ["a: [", "- 1", "training_config: 3", ""])
def test_no_configuration_at_all_is_a_sentence_too(text: str) -> None:
    assert len(list(problems("mine", {"training_config.yaml": text}, method="lora"))) == 1


def told_of(fields: str) -> list[str]:
    """What is said of these lines in TrainingArguments."""
    text = "training_config:\n  TrainingArguments:\n" + "".join(f"    {line}\n" for line in fields.splitlines())
    return [p.message for p in problems("mine", {"training_config.yaml": text}, method="lora")]


HOSTILE = {
    "an alias that multiplies": (
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "aliases are not read; write out what *a stands for in line 4",
    ),
    "an alias that repeats": (
        "optim: &o adamw_torch\nrun_name: *o",
        "aliases are not read; write out what *o stands for in line 4",
    ),
    "nesting": (f"run_name: {'[' * 30}{']' * 30}", "more than 20 levels are nested in line 3"),
    "nesting without an end": (f"run_name: {'[' * 20000}", "more than 20 levels are nested in line 3"),
    "size": ("#" * 40000, "more than 32768 characters"),
    "no day": ("run_name: 2024-02-30", "'2024-02-30' is no timestamp"),
    "no timestamp": ("run_name: !!timestamp soon", "'soon' is no timestamp"),
    "no integer": ("seed: !!int x", "'x' is no int"),
    "an empty integer": ('seed: !!int ""', "'' is no int"),
    "no boolean": ("bf16: !!bool perhaps", "'perhaps' is no bool"),
    "digits that Python does not read": (f"seed: {'9' * 5000}", "is no int"),
    "digits that Python does not write": (f"seed: 0x{'f' * 5000}", "is a number of more than 64 bits"),
    "a number to the base of 60": (f"seed: 1{':59' * 100}", "is a number of more than 64 bits"),
    "a float to the base of 60": (f"seed: 1{':59' * 300}.5", "is no float"),
    "a list as a key": ("? [a]\n: b", "found unhashable key"),
    "an object of Python": ("run_name: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
}


@pytest.mark.parametrize(("fields", "told"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_one_sentence(fields: str, told: str) -> None:
    [message] = told_of(fields)
    assert message.startswith("training_config.yaml in ConfigMap 'mine': ")
    assert told in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    "fields", [f"{'x' * 20000}: 1", f"optim: {'x' * 20000}", f"optim: {[0] * 5000}", f"output_dir: /{'x' * 20000}"]
)
def test_a_message_does_not_repeat_all_of_a_long_value(fields: str) -> None:
    messages = told_of(fields)
    assert messages
    assert max(map(len, messages)) < 1000


@given(st.text())
def test_no_text_stops_the_controller(text: str) -> None:
    for prefix in ("", "training_config: ", "training_config: {LoraConfig: {r: "):
        assert all(p.rule == "C27" for p in problems("mine", {"training_config.yaml": prefix + text}, method="lora"))


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
