"""Trainings in this process: the product's ``fit`` on rows, with a record of what happened between the steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from kaito_tuning.config import KnownFields, TuningConfig, parse
from kaito_tuning.data import Data
from kaito_tuning.process import checkpoints
from kaito_tuning.process.stop import StopRequest
from kaito_tuning.progress import Progress
from kaito_tuning.progress.history import History
from kaito_tuning.training import TrainJob, TrainResult, fit, model
from kaito_tuning.training.precision import Device

CPU = Device(name="CPU", capability=None)
LORA: Mapping[str, Any] = {
    "ModelConfig": {"torch_dtype": "float32"},
    "QuantizationConfig": {"load_in_4bit": False},
    "LoraConfig": {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
    "TrainingArguments": {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "packing": False,
    },
    "DatasetConfig": {"train_test_split": 1},
}
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}

_KNOWN = KnownFields.installed()


def configuration(leave_out: Sequence[str] = (), **sections: Mapping[str, Any]) -> TuningConfig:
    """LORA with these sections' values changed, without these TrainingArguments."""
    document = copy.deepcopy(dict(LORA))
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    for name in leave_out:
        del document["TrainingArguments"][name]
    return parse({"training_config": document}, known=_KNOWN)


def table(rows: Sequence[Mapping[str, Any]], held_back: Sequence[Mapping[str, Any]] = ()) -> Data:
    """Checked rows as the reader gives them."""
    columns = set(rows[0])
    form = "messages" if "messages" in columns else "text" if "text" in columns else "prompt-completion"
    return Data(
        training=Dataset.from_list([dict(row) for row in rows]),
        evaluation=Dataset.from_list([dict(row) for row in held_back]) if held_back else None,
        form=form,  # type: ignore[arg-type]
        files=(Path("rows.jsonl"),),
        weighted=any("weight" in message for row in rows for message in row.get("messages", ())),
    )


def job(folder: Path, output: Path, config: TuningConfig, data: Data, **changes: Any) -> TrainJob:
    """Of one process on the CPU."""
    output.mkdir(parents=True, exist_ok=True)
    return TrainJob(
        **{
            "load_base": partial(model.load, folder, config, device=CPU),
            "config": config,
            "data": data,
            "output_dir": output,
            "key": checkpoints.job_key(repr(config).encode()),
            **changes,
        }
    )


def train(
    job: TrainJob, *, report: Callable[[Progress], None] = lambda _: None, stop: StopRequest | None = None
) -> TrainResult:
    """The result of ``fit``."""
    return fit(job, report, stop or StopRequest(), history=History())


def losses(result: TrainResult) -> list[float]:
    """One per logged step."""
    return [entry["loss"] for entry in result.history if "loss" in entry]
