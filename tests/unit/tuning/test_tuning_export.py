"""What is written beside the weights of an adapter, and that the same training writes the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.tuning.test_tuning_config import QLORA

from kaito_hooks.artifacts.package import pack
from kaito_tuning import data, export, training
from kaito_tuning.config import KnownFields, parse
from kaito_tuning.export.report import Origin, card, lineage, log_lines, report
from kaito_tuning.training import model
from kaito_tuning.training.precision import Device

ORIGIN = Origin(
    model_id="microsoft/Phi-3-mini-4k-instruct",
    revision="ff07dc01615f8113924aed013115ab2abd32115b",
    method="qlora",
    data_files=("boxes.jsonl",),
    data_form="messages",
    data_sha256="a" * 64,
    training_rows=16,
    evaluation_rows=4,
    skipped_rows=1,
    config_sha256="b" * 64,
)
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["down_proj", "o_proj"], "peft_type": "LORA"}
METRICS = {"loss": 0.25, "evalLoss": 0.5, "baseEvalLoss": 2.0, "perplexity": 1.6487212707}


def made(origin: Origin = ORIGIN, metrics: Mapping[str, float] = METRICS) -> dict[str, Any]:
    return report(
        origin,
        lora=LORA,
        dtype="bfloat16",
        steps=64,
        metrics=metrics,
        settings={"learning_rate": 2e-4, "seed": 42, "num_train_epochs": 4, "gradient_checkpointing_kwargs": {}},
        warnings=["one"],
        versions={"trl": "1.16.0", "torch": "2.13.0"},
    )


class TestLineage:
    def test_the_lineage_is_a_flat_map_of_texts(self) -> None:
        assert lineage(made()) == {
            "base-model": "microsoft/Phi-3-mini-4k-instruct",
            "base-revision": "ff07dc01615f8113924aed013115ab2abd32115b",
            "data-digest": "sha256:" + "a" * 64,
            "data-rows": "16",
            "config-digest": "sha256:" + "b" * 64,
            "method": "qlora",
            "seed": "42",
            "versions": "torch=2.13.0, trl=1.16.0",
            "metrics": '{"baseEvalLoss": 2.0, "evalLoss": 0.5, "loss": 0.25, "perplexity": 1.648721}',
        }

    def test_a_revision_that_nobody_knows_is_left_out(self) -> None:
        assert "base-revision" not in lineage(made(dataclasses.replace(ORIGIN, revision="")))

    def test_how_fast_it_went_and_what_it_took_is_no_part_of_it(self) -> None:
        slow = METRICS | {"tokensPerSecond": 12.5, "peakGPUMemoryBytes": 1e9}
        assert made(metrics=slow) == made()

    def test_the_log_is_kept_without_times(self) -> None:
        history = [
            {"loss": 1.0, "learning_rate": 1e-4, "epoch": 1.0, "step": 10},
            {"eval_loss": 1.0, "eval_runtime": 3.2, "eval_samples_per_second": 9.1, "eval_steps_per_second": 1.0},
            {"train_loss": 0.5, "train_runtime": 9.0, "train_samples_per_second": 3.0, "total_flos": 1e9, "step": 20},
        ]
        assert [json.loads(line) for line in log_lines(history).splitlines()] == [
            history[0],
            {"eval_loss": 1.0},
            {"train_loss": 0.5, "step": 20},
        ]


class TestCard:
    def test_the_card_says_what_it_was_made_from_and_how_well_it_went(self) -> None:
        _, front, body = card(made()).split("---\n")
        assert yaml.safe_load(front) == {
            "base_model": "microsoft/Phi-3-mini-4k-instruct",
            "base_model_relation": "adapter",
            "library_name": "peft",
            "pipeline_tag": "text-generation",
            "tags": ["lora"],
        }
        for fact in (
            "`microsoft/Phi-3-mini-4k-instruct` at revision `ff07dc01615f8113924aed013115ab2abd32115b`",
            "qlora, computed in bfloat16",
            "rank 8, alpha 16, dropout 0, on `down_proj`, `o_proj`",
            f"`boxes.jsonl`, messages, sha256 `{'a' * 64}`",
            "16 to train on, 4 to evaluate on, 1 left out",
            "- Steps: 64",
            "- Loss: 0.2500",
            "- Evaluation loss: 0.5000",
            "- Base model's evaluation loss: 2.0000",
            "- Perplexity: 1.6487",
            "- Seed: 42",
            "torch 2.13.0, trl 1.16.0",
        ):
            assert fact in body, fact

    @pytest.mark.parametrize("name", ["a`b.csv", "``", "x\ny # title\n---\n.csv", "](http://x) ![](y)"])
    def test_a_file_s_name_is_shown_as_it_is_and_never_as_markdown(self, name: str) -> None:
        text = card(made(dataclasses.replace(ORIGIN, data_files=(name,))))
        (line,) = [line for line in text.splitlines() if line.startswith("- Data: ")]
        assert " ".join(name.split()) in line
        assert text.count("\n---\n") == 1, "only the front matter is between lines"
        fence = line.removeprefix("- Data: ")
        fence = fence[: len(fence) - len(fence.lstrip("`"))]
        assert fence not in name


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same adapter twice, from two runs that took different times."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from tests.tiny_model import tiny_model

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as in the Pod
    config = parse(QLORA, known=KnownFields.installed())
    load_base = partial(model.load, tiny_model(), config, device=Device.here())
    base = load_base()
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=8, target_modules=["qkv_proj", "o_proj"])
    tuned = get_peft_model(base.model, lora)
    torch.manual_seed(1)
    weights = {name: torch.randn_like(t.float()) * 0.01 for name, t in get_peft_model_state_dict(tuned).items()}
    rows = Dataset.from_list([{"text": "a"}])
    folders = []
    for speed in (100.0, 200.0):
        folder = tmp_path_factory.mktemp("output")
        (folder / "adapter").mkdir()
        (folder / "adapter" / "training_args.bin").write_bytes(b"\x80 a pickle of an earlier try")
        job = training.TrainJob(
            load_base=load_base,
            config=config,
            data=data.Data(training=rows, evaluation=None, form="text", files=()),
            output_dir=folder,
            key="",
        )
        result = training.TrainResult(
            weights=weights,
            lora=tuned.peft_config["default"],
            dtype="bfloat16",
            model_type="phi3",
            steps=3,
            metrics={"loss": 0.25, "tokensPerSecond": speed},
            history=({"loss": 0.25, "step": 3}, {"train_runtime": speed, "train_loss": 0.3, "step": 3}),
            warnings=(),
            settings={"seed": 42},
        )
        folders.append(export.export(job, result, ORIGIN, chat_template="{{ messages }}"))
    monkeypatch.undo()
    return folders


def test_the_result_is_plain_peft_files_that_everybody_may_read(exported: list[Path]) -> None:
    files = {path.name: path.stat().st_mode & 0o777 for path in exported[0].iterdir()}
    assert files == dict.fromkeys(
        [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "chat_template.jinja",
            "lineage.json",
            "training_metrics.jsonl",
            "tuning_report.json",
        ],
        0o644,
    )
    config = json.loads((exported[0] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ORIGIN.model_id
    assert config["revision"] == ORIGIN.revision
    assert json.loads((exported[0] / "lineage.json").read_text())["base-revision"] == ORIGIN.revision
    assert (exported[0] / "chat_template.jinja").read_text() == "{{ messages }}"


def test_the_same_training_gives_the_same_image_however_long_it_took(exported: list[Path], tmp_path: Path) -> None:
    contents = [{p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()} for folder in exported]
    assert contents[0] == contents[1]
    digests = set()
    for number, folder in enumerate(exported):
        (tmp_path / str(number)).mkdir()
        digests.add(pack(folder, work=tmp_path / str(number)).digest)
    assert len(digests) == 1
