"""The check before a GPU is bought: what it refuses, what it measures, and that it needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.unit.test_packaging import closure
from tests.unit.tuning.checked import check, check_alone, model_folder, write_rows
from tests.unit.tuning.field_list import expressible
from tests.unit.tuning.test_tuning_config import changed
from tests.unit.tuning.test_tuning_templates import MISTRAL_INSTRUCT, PHI3, PHI3_MEDIUM

from kaito_tuning.chat import templates
from kaito_tuning.check.report import Report
from kaito_tuning.config import DatasetConfig, KnownFields
from kaito_tuning.config import load as load_config
from kaito_tuning.config.expressible import LIST
from kaito_tuning.data import load
from kaito_tuning.errors import ConfigInvalid

ASK = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
SYSTEM = {"role": "system", "content": "Be brief."}
GOOD = {"messages": [ASK, ANSWER]}


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what the extra kaito[check] brings, which is what its image installs, and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for name in closure("kaito[check]") - {"kaito"}:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    (folder / "kaito_tuning").symlink_to(Path(__file__).parents[3] / "tuning" / "kaito_tuning")
    return folder


def test_good_data_passes_without_torch_in_a_process_of_its_own(
    tmp_path: Path, without_torch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(without_torch))
    alone = (sys.executable, "-S")
    for name in ("torch", "peft", "trl", "bitsandbytes"):
        missing = subprocess.run([*alone, "-c", f"import {name}"], capture_output=True, text=True, check=False)
        assert f"No module named '{name}'" in missing.stderr
    model_folder(tmp_path / "model", "phi3", chat_template=PHI3)
    write_rows(tmp_path / "data", *[GOOD] * 10)
    found = check_alone(tmp_path, python=alone)
    assert found.code == 0, found.said
    assert found.report["problems"] == []
    assert found.report["tokens"]["max"] > 0
    assert found.report["rows"] == {"training": 10, "evaluation": 0, "skipped": 0}


def test_the_report_says_what_was_found(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi", context=2048)
    # Phi-2's template, one token a byte: 10 + 4 + 9 + 3 + 2 tokens a row.
    write_rows(tmp_path / "data", *[GOOD] * 200)
    found = check(tmp_path)
    assert found.code == 0
    assert found.report == {
        "form": "messages",
        "files": ["rows.jsonl"],
        "rows": {"training": 200, "evaluation": 0, "skipped": 0},
        "tokens": {"p50": 28, "p95": 28, "max": 28, "cutShare": 0.0},
        "problems": [],
        "warnings": [
            "DataCollator.mlm is true, but these models predict the next token: trained as causal language model"
        ],
        "reason": "",
        "maxLength": 1024,
        "tokensPerEpoch": 200 * 28,
        "estimatedSteps": 600,
    }


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        pytest.param("LoraConfig", {"rr": 3}, "LoraConfig has no field rr", id="an unknown key"),
        pytest.param("LoraConfig", {"target_modules": ["nope"]}, "has no module nope", id="a module"),
        pytest.param("QuantizationConfig", {"load_in_4bit": False}, "For method 'qlora', either", id="the method"),
        pytest.param("DatasetConfig", {"max_bad_rows": 3}, "must be from 0 to below 1, got 3", id="a share"),
        pytest.param("DatasetConfig", {"on_bad_rows": "ignore"}, "'ignore' is none of fail, skip", id="a choice"),
        pytest.param("ModelConfig", {"chat_template": "{% x %}"}, "chat_template cannot render", id="jinja"),
        pytest.param("TrainingArguments", {"eos_token": "<|no|>"}, "must be a token of the model's", id="an end"),
        pytest.param("TrainingArguments", {"pad_token": "<|no|>"}, "must be a token of the model's", id="a padding"),
        pytest.param(
            "TrainingArguments",
            {"dataloader_drop_last": True, "per_device_train_batch_size": 2},
            "TrainingArguments.dataloader_drop_last leaves out all of 1 row, which",
            id="no full batch",
        ),
        pytest.param(
            "TrainingArguments",
            {"lr_scheduler_type": "greedy"},
            "must not be greedy where no row is held back",
            id="a learning rate that follows nothing",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    tmp_path: Path, section: str, values: dict[str, Any], sentence: str
) -> None:
    model_folder(tmp_path / "model", "phi3", chat_template=PHI3)
    write_rows(tmp_path / "data", GOOD)
    found = check(tmp_path, document=changed(section, **values))
    assert (found.code, found.report["reason"]) == (2, "ConfigInvalid")
    assert sentence in found.report["problems"][0]


def test_arguments_that_the_model_and_the_rows_have_what_they_need_for_pass(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi3", chat_template=PHI3)
    write_rows(tmp_path / "data", *[GOOD] * 10)
    (token,) = templates.load_tokenizer(tmp_path / "model").convert_ids_to_tokens([5])
    batch = {"dataloader_drop_last": True, "per_device_train_batch_size": 8}
    document = changed(
        "TrainingArguments", eos_token=token, pad_token=token, lr_scheduler_type="reduce_lr_on_plateau", **batch
    )
    document["training_config"]["DatasetConfig"] = {"train_test_split": 0.8}
    assert check(tmp_path, document=document).report["problems"] == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"learning_rate": 1e-30}, "TrainingArguments.learning_rate 1e-30 is so low that an adapter learns nothing"),
        ({"learning_rate": 50}, "TrainingArguments.learning_rate 50 is so high that an adapter seldom learns"),
        ({"learning_rate": 2e-4}, ""),
        ({"warmup_steps": 500}, "warmup_steps 500 are no fewer than the steps of the training, about 30"),
        ({"warmup_steps": 30}, "warmup_steps 30 are no fewer than the steps"),
        ({"warmup_steps": 29}, ""),
        ({"warmup_steps": 0.9}, ""),
        ({"max_steps": 4, "warmup_steps": 9}, "warmup_steps 9 are no fewer than the steps of the training, about 4"),
        ({"per_device_train_batch_size": 1e6}, "a step of 1,000,000 rows, of which there are 10: an epoch is one step"),
        ({"gradient_accumulation_steps": 11}, "a step of 11 rows, of which there are 10"),
        ({"gradient_accumulation_steps": 10}, ""),
        ({"eval_strategy": "steps", "eval_steps": 500}, "eval_steps 500 are more than the steps of the training"),
        ({"save_strategy": "steps", "save_steps": 500}, ""),
    ],
    ids=lambda value: " ".join(f"{key}={given}" for key, given in value.items()) if isinstance(value, dict) else "",
)
def test_numbers_that_hardly_say_what_was_meant_are_told(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    model_folder(tmp_path / "model", "phi3", chat_template=PHI3)
    write_rows(tmp_path / "data", *[GOOD] * 10)
    found = check(tmp_path, document=changed("TrainingArguments", **values))
    assert found.code == 0
    doubts = [said for said in found.report["warnings"] if "mlm" not in said]
    assert [sentence in said for said in doubts] == [True] * bool(sentence)


@pytest.mark.parametrize(
    ("template", "training", "sentence"),
    [
        (None, {}, ""),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", {}, "weight: 0 of a message needs a chat template"),
        (None, {"assistant_only_loss": False}, "TrainingArguments.assistant_only_loss: false trains on whole"),
    ],
    ids=["marked", "not marked", "everything learned"],
)
def test_weights_of_messages_are_respected_or_refused(
    tmp_path: Path, template: str | None, training: dict[str, Any], sentence: str
) -> None:
    model_folder(tmp_path / "model", "phi", chat_template=template)
    write_rows(tmp_path / "data", {"messages": [ASK, ANSWER | {"weight": 0}, ASK, ANSWER]})
    found = check(tmp_path, document=changed("TrainingArguments", **training))
    assert found.code == (2 if sentence else 0)
    assert [problem.startswith(sentence) for problem in found.report["problems"]] == [True] * bool(sentence)


@pytest.mark.parametrize(
    "values",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"trainable_token_indices": [1, 2]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"target_modules": ["qkv_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"fan_in_fan_out": True},
    ],
    ids=lambda values: " ".join(f"{key}={value}" for key, value in values.items()),
)
def test_an_adapter_that_the_server_cannot_express_is_refused_unless_it_is_not_served(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    model_folder(tmp_path / "model", "phi3", chat_template=PHI3)
    write_rows(tmp_path / "data", GOOD)
    document = changed("LoraConfig", **values)
    document["training_config"]["QuantizationConfig"] = {"load_in_4bit": False}
    served = check(tmp_path, document=document, METHOD="lora")
    assert (served.code, served.report["reason"]) == (2, "ConfigInvalid")
    assert next(iter(values)) in served.report["problems"][0]
    assert "serveResult" in served.report["problems"][0]
    assert check(tmp_path, document=document, METHOD="lora", SERVE_RESULT="false").code == 0


def test_rank_and_alpha_patterns_and_rslora_are_expressed(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi3", chat_template=PHI3)
    write_rows(tmp_path / "data", GOOD)
    patterns = {"rank_pattern": {"o_proj": 4}, "alpha_pattern": {"o_proj": 16}, "use_rslora": True, "bias": "none"}
    assert check(tmp_path, document=changed("LoraConfig", **patterns)).code == 0


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rank_pattern": {"nope": 4}}, "LoraConfig.rank_pattern: 'nope' matches no module that is adapted"),
        ({"rank_pattern": {"embed_tokens": 4}}, "LoraConfig.rank_pattern: 'embed_tokens' matches no module that is"),
        ({"alpha_pattern": {"o_proj(": 4}}, "LoraConfig.alpha_pattern: 'o_proj(' is no regular expression: "),
        ({"rank_pattern": {"o_proj": 0}}, "LoraConfig.rank_pattern must hold ranks of 1 or more, got {'o_proj': 0}"),
        ({"rank_pattern": {"o_proj": 2.5}}, "LoraConfig.rank_pattern must hold ranks of 1 or more, got"),
        ({"rank_pattern": {"o_proj": "4"}}, "LoraConfig.rank_pattern must hold ranks of 1 or more, got"),
        ({"alpha_pattern": {"o_proj": 0}}, "LoraConfig.alpha_pattern must hold numbers above 0, got {'o_proj': 0}"),
        ({"alpha_pattern": {"o_proj": True}}, "LoraConfig.alpha_pattern must hold numbers above 0, got"),
        (
            {"rank_pattern": {"q_proj": 4, "k_proj": 8}},
            "this model fuses modules into qkv_proj, which takes one number",
        ),
        ({"target_modules": ["o_proj"], "rank_pattern": {"down_proj": 4}}, "'down_proj' matches no module that is"),
        ({"rank_pattern": {r"layers\.0\.mlp\.down_proj": 4, "q_proj": 4}}, ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_patterns_are_looked_at_before_a_node_is_bought(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    model_folder(tmp_path / "model", "phi3", chat_template=PHI3)
    write_rows(tmp_path / "data", GOOD)
    found = check(tmp_path, document=changed("LoraConfig", **values))
    assert found.code == (2 if sentence else 0)
    assert [sentence in problem for problem in found.report["problems"]] == [True] * bool(sentence)


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("configured", "text"),
    [(True, NESTED), (False, NESTED), (False, f"{{% generation %}}{NESTED}{{% endgeneration %}}")],
    ids=["configured", "the model's", "the model's, with marks"],
)
def test_a_template_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: bool, text: str
) -> None:
    monkeypatch.setattr(templates, "LONGEST_RENDERING", 0.2)
    model_folder(tmp_path / "model", "phi", chat_template=None if configured else text)
    write_rows(tmp_path / "data", GOOD)
    document = changed("ModelConfig", chat_template=text) if configured else changed("ModelConfig")
    found = check(tmp_path, document=document)
    assert found.code == 2
    assert "it does not end within 0.2 s for one conversation" in found.report["problems"][0]


@pytest.mark.parametrize("configured", [True, False], ids=["configured", "the model's"])
def test_marks_around_nothing_are_refused(tmp_path: Path, configured: bool) -> None:
    text = "{% for m in messages %}{% generation %}{% endgeneration %}{{ m.content }}{% endfor %}"
    model_folder(tmp_path / "model", "phi", chat_template=None if configured else text)
    write_rows(tmp_path / "data", GOOD)
    document = changed("ModelConfig", chat_template=text) if configured else changed("ModelConfig")
    found = check(tmp_path, document=document)
    if configured:
        assert found.report["problems"] == [
            "ModelConfig.chat_template marks nothing of what the assistant says; put {% generation %} and "
            "{% endgeneration %} around its content and end token"
        ]
    else:
        assert found.code == 0
        assert any("does not mark the assistant's turns" in said for said in found.report["warnings"])


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi")
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": None}))
    write_rows(tmp_path / "data", GOOD)
    found = check(tmp_path)
    assert (found.code, found.report["reason"]) == (2, "ModelInvalid")
    assert "has no eos_token, so that no answer would end; name it in tokenizer_config.json" in str(found.report)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("-", "standard input is not read: save the rows as a file and name that"),
        ("https://example.com/rows.jsonl", "https://example.com/rows.jsonl is an address, not a file; download it"),
        ("x" * 300, f"the file name {'x' * 60}... is longer than a file system takes"),
        ("pipe", "pipe is a pipe or a device, not a file; save the rows as a file and name that"),
        ("none.jsonl", "there is no file none.jsonl"),
    ],
    ids=["standard input", "a URL", "300 characters", "a pipe", "a missing file"],
)
def test_what_is_no_file_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    found = check(tmp_path, [name])
    assert (found.code, found.report["reason"]) == (2, "DatasetInvalid")
    assert found.report["problems"][0].startswith(sentence)


@pytest.mark.parametrize(
    ("family", "training", "steps"),
    [
        # 4,000 rows of 28 tokens, one at a time, one epoch: 4,000 steps, or 110 packed ones of 1,024 tokens.
        ("phi", {}, 110),
        ("falcon", {}, 4000),
        ("falcon", {"packing": True}, 4000),
    ],
    ids=["packed", "Falcon", "Falcon, packing asked for"],
)
def test_steps_are_those_of_a_family_that_can_or_cannot_be_packed(
    tmp_path: Path, family: str, training: dict[str, Any], steps: int
) -> None:
    model_folder(tmp_path / "model", family)
    write_rows(tmp_path / "data", *[{"text": "x" * 27}] * 4000)
    found = check(tmp_path, document=changed("TrainingArguments", num_train_epochs=1, **training))
    assert found.report["tokens"]["max"] == 28
    assert found.report["estimatedSteps"] == steps


def test_the_list_of_what_the_server_expresses_is_the_servers() -> None:
    assert LIST.read_text() == expressible()


def test_every_part_is_looked_at_whatever_is_wrong_with_another(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi3", chat_template=PHI3)
    write_rows(tmp_path / "data", GOOD, {"messages": [ASK]}, {"messages": []})
    found = check(tmp_path, document=changed("LoraConfig", use_dora=True, bias="all"))
    assert found.code == 2
    assert [problem.split(":")[0] for problem in found.report["problems"]] == [
        "LoraConfig.bias",
        "LoraConfig.use_dora",
        "row 2",
        "row 3",
    ]


def test_rows_that_the_template_refuses_are_found_with_their_number(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "mistral", chat_template=MISTRAL_INSTRUCT)
    write_rows(tmp_path / "data", GOOD, GOOD, {"messages": [SYSTEM, ASK, ANSWER]})
    found = check(tmp_path)
    assert (found.code, found.report["reason"]) == (2, "DatasetInvalid")
    assert found.report["problems"][0].startswith("row 3: the model's chat template refuses system, user, assistant: ")


def test_rows_that_the_template_refuses_may_be_skipped_by_check_and_training_alike(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "mistral", chat_template=MISTRAL_INSTRUCT)
    write_rows(tmp_path / "data", *[GOOD] * 9, {"messages": [SYSTEM, ASK, ANSWER]})
    found = check(tmp_path, document=changed("DatasetConfig", on_bad_rows="skip", max_bad_rows=0.1))
    assert (found.code, found.report["rows"]) == (0, {"training": 9, "evaluation": 0, "skipped": 1})
    wanted = DatasetConfig(on_bad_rows="skip", max_bad_rows=0.1, train_test_split=1)
    refusal = templates.refusal_of_model(folder, model_type="mistral", configured=None)
    assert len(load(tmp_path / "data", wanted, refusal=refusal).training) == 9


def test_a_template_that_drops_system_turns_is_said(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi3", chat_template=PHI3_MEDIUM)
    write_rows(tmp_path / "data", {"messages": [SYSTEM, ASK, ANSWER]})
    assert "the model's chat template leaves out what the system says" in check(tmp_path).report["warnings"]


def test_rows_longer_than_the_context_are_refused_unless_max_length_is_set(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi", context=256)
    long = {"messages": [ASK, {"role": "assistant", "content": "x" * 500}]}
    write_rows(tmp_path / "data", *[GOOD] * 90, *[long] * 10)
    found = check(tmp_path)
    assert (found.code, found.report["reason"]) == (2, "DatasetInvalid")
    assert "10.0% of the rows are longer than the 256 tokens of the model's context" in found.report["problems"][0]
    assert found.report["tokens"]["cutShare"] == 0.1
    allowed = check(tmp_path, document=changed("TrainingArguments", max_length=128))
    assert (allowed.code, allowed.report["maxLength"]) == (0, 128)
    assert "10.0% of the rows are longer than 128 tokens and lose their end" in allowed.report["warnings"]


def test_rows_without_room_for_an_answer_are_refused(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi", context=256)
    write_rows(tmp_path / "data", {"messages": [{"role": "user", "content": "x" * 500}, ANSWER]})
    found = check(tmp_path, document=changed("TrainingArguments", max_length=128))
    assert found.code == 2
    assert "no row has anything to learn in 128 tokens" in found.report["problems"][0]


def test_more_data_than_is_read_is_said(tmp_path: Path) -> None:
    write_rows(tmp_path / "data", *[{"text": "x" * 1000}] * 3000)
    found = check(tmp_path, CHECK_MAX_BYTES=str(1 << 20))
    assert found.code == 0
    assert found.report["tokens"] is None
    assert any("only the first 1 MiB" in sentence for sentence in found.report["warnings"])


def test_a_model_that_cannot_be_tuned_or_read_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "data", GOOD)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    found = check(tmp_path)
    assert (found.code, found.report["reason"]) == (2, "ModelInvalid")
    assert "models of type bloom cannot be tuned" in found.report["problems"][0]
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "phi3"}))
    assert "cannot be loaded" in check(tmp_path).report["problems"][0]


def test_more_tokens_than_the_models_context_are_said(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi", context=1024)
    write_rows(tmp_path / "data", GOOD)
    found = check(tmp_path, document=changed("TrainingArguments", max_length=2048))
    assert found.code == 0
    said = "TrainingArguments.max_length 2,048 is more than the model's context of 1,024 tokens"
    assert said in found.report["warnings"]


def test_a_termination_message_never_exceeds_its_limit() -> None:
    report = Report(
        form="text",
        files=tuple(f"part-{number:05}.parquet" for number in range(500)),
        problems=tuple(f"row {number}: " + "é" * 500 for number in range(21)),
        warnings=("w" * 9000,) * 3,
    )
    message = report.termination_message()
    assert len(message.encode()) <= 4096
    assert json.loads(message)["problems"][0].startswith("row 0: ")
    assert json.loads(message)["files"] == ["part-00000.parquet", "part-00001.parquet", "and 498 more"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(b"training_config: {} # \xe4", "cannot be read: it is not UTF-8", id="Latin-1"),
        pytest.param(b"training_config: {a: 2024-13-45}", "cannot be read: a value is not of its kind", id="a date"),
        pytest.param(b"training_config: {a: !!int x}", "cannot be read: a value is not of its kind", id="a tag"),
        pytest.param(b"a: " + b"[" * 3000 + b"]" * 3000, "nested too deeply", id="nested lists"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "training_config.yaml").write_bytes(content)
    with pytest.raises(ConfigInvalid, match=sentence):
        load_config(tmp_path / "training_config.yaml", known=KnownFields.shipped())


@pytest.mark.parametrize("name", ["role", "from"])
@pytest.mark.parametrize("value", [["user"], {"is": "user"}])
def test_a_role_that_is_no_text_is_a_bad_row(tmp_path: Path, name: str, value: object) -> None:
    write_rows(tmp_path / "data", GOOD, {"messages": [{name: value, "content": "Why?"}, ANSWER]})
    found = check(tmp_path)
    assert (found.code, found.report["reason"]) == (2, "DatasetInvalid")
    assert found.report["problems"][0].startswith("row 2: unknown role ")


@pytest.mark.parametrize("text", ["[1{0}]", '{{"messages": 1{0}}}'])
def test_a_number_of_too_many_digits_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.json").write_text(text.format("0" * 5000))
    found = check(tmp_path)
    assert (found.code, found.report["reason"]) == (2, "DatasetInvalid")
    assert "line 1 holds a value that cannot be read: " in found.report["problems"][0]


def test_a_conversation_whose_words_the_template_refuses_is_told(tmp_path: Path) -> None:
    refusing = (
        "{% for m in messages %}{% if 'forbidden' in m.content %}{{ raise_exception('never said') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    model_folder(tmp_path / "model", "phi", chat_template=refusing)
    write_rows(tmp_path / "data", GOOD, {"messages": [{"role": "user", "content": "a forbidden word"}, ANSWER]})
    found = check(tmp_path)
    assert (found.code, found.report["reason"]) == (2, "DatasetInvalid")
    assert "refuses the conversation that begins with 'a forbidden word': never said" in found.report["problems"][0]


def test_a_template_with_a_nul_character_is_refused(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "phi")
    write_rows(tmp_path / "data", GOOD)
    found = check(tmp_path, document=changed("ModelConfig", chat_template="a\0b"))
    assert (found.code, found.report["reason"]) == (2, "ConfigInvalid")
    assert "ModelConfig.chat_template holds a NUL character" in found.report["problems"][0]


def test_an_arrow_file_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pa.ipc.new_file(str(tmp_path / "data" / "x.arrow"), twice.schema) as writer:
        writer.write_table(twice)
    found = check(tmp_path)
    assert (found.code, found.report["problems"]) == (2, ["x.arrow has two columns named 'text'"])
