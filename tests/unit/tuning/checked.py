"""Runs the check as the Job's container does: a process of its own, with an environment and a termination message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.unit.tuning.family_tokenizers import family_tokenizer
from tests.unit.tuning.test_tuning_config import QLORA

from kaito_tuning.check.__main__ import run


@dataclass(frozen=True)
class Checked:
    code: int
    report: dict[str, Any]
    said: str = ""


def model_folder(folder: Path, family: str, *, context: int = 2048, chat_template: str | None = None) -> Path:
    """The small files of a model, without weights."""
    tokenizer = family_tokenizer(family, chat_template=chat_template)
    tokenizer.save_pretrained(folder)
    settings = {"model_type": family, "max_position_embeddings": context}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def write_rows(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def environment(folder: Path, *, document: Mapping[str, Any] = QLORA, **more: str) -> dict[str, str]:
    """Of the container, for data in ``folder``/data and a model in ``folder``/model."""
    config = folder / "training_config.yaml"
    config.write_text(yaml.safe_dump(dict(document)))
    return {
        "YAML_FILE_PATH": str(config),
        "DATASET_FOLDER_PATH": str(folder / "data"),
        "MODEL_PATH": str(folder / "model") if (folder / "model").exists() else "",
        "METHOD": "qlora",
    } | more


def check(folder: Path, paths: Sequence[str] = (), **options: Any) -> Checked:
    """In this process."""
    report, code = run(environment(folder, **options), paths, cache=folder / "cache")
    return Checked(code, report.document())


def check_alone(folder: Path, *arguments: str, python: Sequence[str] = (sys.executable,), **options: Any) -> Checked:
    """In a process of its own; the report is the termination message."""
    termination = folder / "termination-log"
    found = environment(folder, TERMINATION_LOG=str(termination), **options)
    done = subprocess.run(
        [*python, "-m", "kaito_tuning.check", *arguments],
        env={**os.environ, **found},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert termination.exists(), done.stderr
    message = termination.read_text()
    assert len(message.encode()) <= 4096
    return Checked(done.returncode, json.loads(message), done.stdout + done.stderr)
