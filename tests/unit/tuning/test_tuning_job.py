"""The whole job as the Pod runs it, on a tiny model of Phi-3's architecture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.tuning.job import Job
from tests.unit.tuning.test_tuning_config import QLORA, changed


def test_the_default_qlora_template_trains_an_adapter_that_peft_can_use(
    tmp_path: Path, model: Path, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path, model, output, changed("TrainingArguments", num_train_epochs=2, learning_rate="4e-3"))
    code, said = job.run()
    assert code == 0, said
    assert (job.output / "fine_tuning_completed.txt").exists()
    files = {p.name: oct(p.stat().st_mode & 0o777) for p in (job.output / "adapter").iterdir()}
    assert files == dict.fromkeys(
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "README.md",
            "lineage.json",
            "training_metrics.jsonl",
            "tuning_report.json",
        ],
        "0o644",
    )
    config = json.loads((job.output / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "microsoft/Phi-3-mini-4k-instruct"
    assert config["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    report = json.loads((job.output / "adapter" / "tuning_report.json").read_text())
    assert report["data"]["trainingRows"] == 16
    assert report["steps"] == 32
    losses = [
        json.loads(line)["loss"]
        for line in (job.output / "adapter" / "training_metrics.jsonl").read_text().splitlines()
        if "loss" in json.loads(line)
    ]
    assert losses[-1] < 0.5 * losses[0]

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    tuned = PeftModel.from_pretrained(base, job.output / "adapter")
    assert any(p.abs().max() > 0 for name, p in tuned.named_parameters() if "lora_B" in name)

    with caplog.at_level("INFO"):
        again, said = job.run_here()
    assert again == 0, said
    assert "already trained" in caplog.text


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        pytest.param("LoraConfig", {"target_modules": ["nope"]}, "has no module nope", id="a module that is not there"),
        pytest.param("LoraConfig", {"use_dora": True}, "cannot be served by the model server", id="an unserved kind"),
        pytest.param("DatasetConfig", {"dataset_path": "data/none.json"}, "there is no file", id="a missing file"),
    ],
)
def test_a_job_that_can_never_succeed_ends_with_2_and_a_sentence(
    tmp_path: Path, model: Path, output: str, section: str, values: dict[str, Any], sentence: str
) -> None:
    code, said = Job(tmp_path, model, output, changed(section, **values)).run_here()
    assert code == 2
    assert sentence in said


def test_a_process_that_can_never_succeed_exits_2_with_its_sentence_alone(
    tmp_path: Path, model: Path, output: str
) -> None:
    job = Job(tmp_path, model, output, changed("LoraConfig", rr=3))
    code, said = job.run()
    assert code == 2, said
    assert job.sentence() == "ConfigInvalid: LoraConfig has no field rr; did you mean r?"
    assert job.sentence() in said
    assert "Traceback" not in said


def test_a_model_folder_with_pickled_weights_is_refused(tmp_path: Path, model: Path, output: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    job = Job(tmp_path, folder, output, json.loads(json.dumps(QLORA)))
    code, said = job.run_here()
    assert code == 2
    assert "pickled weights (pytorch_model.bin)" in said
