"""The whole job as the Pod runs it, on a tiny model of Phi-3's architecture."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tests.eventually import eventually
from tests.tiny_model import tiny_model
from tests.unit.tuning.test_tuning_config import QLORA, changed

from kaito_local.machine.ports import free_ports

COLOURS = ("red", "green", "blue", "white", "black", "amber", "pink", "grey")


@pytest.fixture(scope="session")
def model() -> Path:
    return tiny_model()


@pytest.fixture
def output() -> Iterator[str]:
    """A folder strictly below /mnt, as the configuration demands."""
    if not os.access("/mnt", os.W_OK):
        pytest.skip("/mnt is not writable here")
    folder = tempfile.mkdtemp(prefix="kaito-test-", dir="/mnt")
    yield folder
    shutil.rmtree(folder)


class Job:
    def __init__(self, folder: Path, model: Path, output: str, document: dict[str, Any]) -> None:
        document["training_config"]["TrainingArguments"]["output_dir"] = output
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What colour is box {i}?"},
                    {"role": "assistant", "content": f"Box {i} is {COLOURS[i % 8]}."},
                ]
            }
            for i in range(16)
        ]
        (folder / "data" / "boxes.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        (folder / "training_config.yaml").write_text(yaml.safe_dump(document))
        (self.port,) = free_ports(1)
        self.output = Path(output)
        self.environment = os.environ | {
            "YAML_FILE_PATH": str(folder / "training_config.yaml"),
            "DATASET_FOLDER_PATH": str(folder / "data"),
            "MODEL_PATH": str(model),
            "MODEL_ID": "microsoft/Phi-3-mini-4k-instruct",
            "PORT": str(self.port),
        }

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kaito_tuning"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> tuple[int, str]:
        process = self.start()
        said, _ = process.communicate(timeout=200)
        return process.returncode, said

    def progress(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/progress", timeout=2) as answer:
            return json.loads(answer.read())

    def adapter(self) -> dict[str, Any]:
        return load_file(self.output / "adapter" / "adapter_model.safetensors")


def test_the_default_qlora_template_trains_an_adapter_that_peft_can_use(
    tmp_path: Path, model: Path, output: str
) -> None:
    job = Job(tmp_path, model, output, changed("TrainingArguments", num_train_epochs=4, learning_rate="2e-3"))
    code, said = job.run()
    assert code == 0, said
    assert (job.output / "fine_tuning_completed.txt").exists()
    files = {p.name: oct(p.stat().st_mode & 0o777) for p in (job.output / "adapter").iterdir()}
    assert files == dict.fromkeys(
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "README.md",
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
    assert report["steps"] == 64
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

    again, said = job.run()
    assert again == 0, said
    assert "already trained" in said


@pytest.mark.timeout(900)
def test_a_stopped_job_continues_and_ends_bit_for_bit_where_an_undisturbed_one_does(
    tmp_path: Path, model: Path, output: str
) -> None:
    document = changed("TrainingArguments", num_train_epochs=12, logging_steps=1)
    undisturbed = Job(tmp_path / "a", model, f"{output}/a", document)
    code, said = undisturbed.run()
    assert code == 0, said

    disturbed = Job(tmp_path / "b", model, f"{output}/b", document)
    process = disturbed.start()

    def amid() -> bool:
        assert process.poll() is None
        try:
            return bool(disturbed.progress()["currentStep"] >= 20)
        except OSError:
            return False

    eventually(amid, timeout=200)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 143, said
    assert not (disturbed.output / "fine_tuning_completed.txt").exists()
    assert list(disturbed.output.glob("checkpoint-*"))

    code, said = disturbed.run()
    assert code == 0, said
    expected, got = undisturbed.adapter(), disturbed.adapter()
    assert expected.keys() == got.keys()
    assert all(expected[name].equal(got[name]) for name in expected)


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        pytest.param("LoraConfig", {"target_modules": ["nope"]}, "has no module nope", id="a module that is not there"),
        pytest.param("LoraConfig", {"rr": 3}, "ConfigInvalid: LoraConfig has no field rr", id="an unknown field"),
        pytest.param("DatasetConfig", {"dataset_path": "data/none.json"}, "there is no file", id="a missing file"),
    ],
)
def test_a_job_that_can_never_succeed_exits_2_with_a_sentence(
    tmp_path: Path, model: Path, output: str, section: str, values: dict[str, Any], sentence: str
) -> None:
    code, said = Job(tmp_path, model, output, changed(section, **values)).run()
    assert code == 2, said
    assert sentence in said
    assert "Traceback" not in said


def test_a_model_folder_with_pickled_weights_is_refused(tmp_path: Path, model: Path, output: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    job = Job(tmp_path, folder, output, json.loads(json.dumps(QLORA)))
    code, said = job.run()
    assert code == 2, said
    assert "pickled weights (pytorch_model.bin)" in said
