"""The step ``tune`` as a process of its own, as the Pod runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from kaito_local.machine.ports import free_ports
from kaito_tuning.process.stop import StopRequest
from kaito_tuning.run import Settings, run

COLOURS = ("red", "green", "blue", "white", "black", "amber", "pink", "grey")


def boxes(count: int = 16) -> list[dict[str, Any]]:
    """Rows of one question and its answer, which nobody could know."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What colour is box {i}?"},
                {"role": "assistant", "content": f"Box {i} is {COLOURS[i % 8]}."},
            ]
        }
        for i in range(count)
    ]


class Job:
    """Writes configuration and rows into ``folder``; ``environment`` is added to what the Pod sets."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        output: str,
        document: dict[str, Any],
        *,
        rows: Sequence[Mapping[str, Any]] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        document["training_config"]["TrainingArguments"]["output_dir"] = output
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / "boxes.jsonl").write_text("\n".join(json.dumps(row) for row in rows or boxes()))
        self.configuration = folder / "training_config.yaml"
        self.configuration.write_text(yaml.safe_dump(document))
        (self.port,) = free_ports(1)
        self.output = Path(output)
        self.termination_log = folder / "termination-log"
        self.termination_log.touch()
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "YAML_FILE_PATH": str(self.configuration),
            "DATASET_FOLDER_PATH": str(folder / "data"),
            "MODEL_PATH": str(model),
            "MODEL_ID": "microsoft/Phi-3-mini-4k-instruct",
            "PORT": str(self.port),
            "TERMINATION_LOG": str(self.termination_log),
            **(environment or {}),
        }

    def start(self, *before: str) -> subprocess.Popen[str]:
        """Started behind the command ``before``, such as one that sets a limit."""
        return subprocess.Popen(
            [*before, sys.executable, "-m", "kaito_tuning"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *before: str) -> tuple[int, str]:
        """Exit code and everything printed."""
        process = self.start(*before)
        said, _ = process.communicate(timeout=280)
        return process.returncode, said

    def run_here(self) -> tuple[int, str]:
        """In this process, on one thread as in the others: exit code and the sentence that it leaves."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run(Settings.read(self.environment), stop=StopRequest()), self.sentence()
        finally:
            torch.set_num_threads(threads)

    def progress(self) -> dict[str, Any]:
        """What it serves; OSError while it serves nothing."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/progress", timeout=2) as answer:
            return json.loads(answer.read())

    def progress_file(self) -> dict[str, Any]:
        """What it last wrote about itself."""
        return json.loads((self.output / "progress.json").read_text())

    def sentence(self) -> str:
        """What it left in the termination log."""
        return self.termination_log.read_text()

    def checkpoints(self) -> list[str]:
        """Names of the folders, in order of steps."""
        return sorted((p.name for p in self.output.glob("checkpoint-*")), key=lambda name: int(name.split("-")[1]))

    def adapter(self) -> dict[str, Any]:
        """The tensors by name."""
        return load_file(self.output / "adapter" / "adapter_model.safetensors")
