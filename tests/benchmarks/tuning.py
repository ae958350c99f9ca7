"""Trainers beside one another on short rows: tokens per second and peak memory, and the memory of a large data set.

`python -m tests.benchmarks.tuning [--hidden 512 --layers 4] [--rows 2000] [--batch 1] [--method qlora] [--rounds 2]`

In one run, in turn, each in a process of its own, on the same random weights of Phi-3's architecture and the same rows
(conversations of 20 to 60 tokens):

    plain      TRL's SFTTrainer as its documentation shows it, without packing, with our batch (this file)
    plain-8    the same with TRL's own batch of 8 rows
    ours       python -m kaito_tuning with the same method, rank, batch and dtype

Tokens are those that are trained on or seen, without padding, as TRL counts them; the first step is left out. Beside
tokens per second there are tokens per second of the process's CPU time, which other work on the machine changes little.
Peak memory is the process's, and with an NVIDIA GPU the GPU's. With --model a folder of real weights, on a GPU:
`--model FOLDER --dtype bfloat16`. `--parquet-gib 3` reads a Parquet file of that size besides, as the training does
(see tuning_data.py). Prints a table and ratios; nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tests.benchmarks import tuning_data
from tests.benchmarks.serving import random_model

RANK = 8
_WORDS = ("one", "two", "three", "red", "green", "blue", "box", "river", "stone", "house", "cloud", "dark", "open")


Seen = tuple[float, float, float]
"""Clock, CPU seconds and tokens so far."""


@dataclass(frozen=True)
class Reading:
    """What one run gave. Memory in GiB; ``gpu`` is 0 without a GPU."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    seconds: float
    memory: float
    gpu: float


def rows(path: Path, count: int) -> Path:
    """A JSON Lines file of short conversations."""
    chance = random.Random(0)

    def words(most: int) -> str:
        return " ".join(chance.choices(_WORDS, k=chance.randint(4, most)))

    with path.open("w") as file:
        for _ in range(count):
            turns = [{"role": "user", "content": words(12)}, {"role": "assistant", "content": words(24)}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


# ---------------------------------------------------------------- a user's own script
def plain(model: Path, data: Path, output: Path, *, method: str, batch: int, dtype: str, steps: int) -> None:
    """Prints a line {"tokens", "gpu"} every ten of ``steps`` steps."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Told(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "num_tokens" in logs:
                gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
                print(json.dumps({"tokens": logs["num_tokens"], "gpu": gpu}), flush=True)

    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    trainer = SFTTrainer(
        model=str(model),
        args=SFTConfig(
            output_dir=str(output),
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=2e-4,
            logging_steps=10,
            bf16=dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            model_init_kwargs=options,
        ),
        train_dataset=load_dataset("json", data_files=str(data), split="train"),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules="all-linear"),
        callbacks=[Told()],
    )
    trainer.train()


def run_plain(
    model: Path, data: Path, folder: Path, options: argparse.Namespace, *, batch: int | None = None
) -> Reading:
    """This file again, as the script."""
    command = [sys.executable, "-m", "tests.benchmarks.tuning", "--plain", str(model), str(data), str(folder / "out")]
    command += ["--method", options.method, "--batch", str(batch or options.batch), "--dtype", options.dtype]
    command += ["--plain-steps", str(options.plain_steps)]
    seen: list[Seen] = []
    gpu = 0.0
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"tokens"'):
                told = json.loads(line)
                seen.append((time.monotonic(), _cpu_seconds(process.pid), told["tokens"]))
                gpu = max(gpu, told["gpu"])
        memory = _ended(process, folder / "log")
    return _reading(seen, memory, gpu)


# ---------------------------------------------------------------- ours
def run_ours(model: Path, data: Path, folder: Path, options: argparse.Namespace) -> Reading:
    """The step ``tune`` with the method's default configuration, and what it writes of its progress."""
    presets = Path(__file__).parents[2] / "presets" / "tuning" / f"{options.method}.yaml"
    document = yaml.safe_load(presets.read_text())
    sections = document["training_config"]
    sections["ModelConfig"]["torch_dtype"] = options.dtype
    if options.method == "qlora":
        sections["QuantizationConfig"]["bnb_4bit_compute_dtype"] = options.dtype
    with tempfile.TemporaryDirectory(prefix="kaito-benchmark-", dir="/mnt") as output:
        sections["TrainingArguments"] |= {
            "output_dir": output,
            "num_train_epochs": 1,
            "per_device_train_batch_size": options.batch,
            "learning_rate": 2e-4,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        (folder / "training_config.yaml").write_text(yaml.safe_dump(document))
        environment = os.environ | {
            "YAML_FILE_PATH": str(folder / "training_config.yaml"),
            "DATASET_FOLDER_PATH": str(data.parent),
            "MODEL_PATH": str(model),
            "METHOD": options.method,
            "PORT": "0",
        }
        with (folder / "log").open("w") as log:
            command = [sys.executable, "-m", "kaito_tuning"]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            seen = _watched(process, Path(output) / "progress.json")
            memory = _ended(process, folder / "log")
        gpu = _progress(Path(output) / "progress.json").get("metrics", {}).get("peakGPUMemoryBytes", 0)
    return _reading(seen, memory, gpu)


def _watched(process: subprocess.Popen[bytes], path: Path) -> list[Seen]:
    seen: list[Seen] = []
    while not _has_ended(process):
        tokens = _progress(path).get("metrics", {}).get("tokens", 0.0)
        if tokens and (not seen or seen[-1][2] != tokens):
            seen.append((time.monotonic(), _cpu_seconds(process.pid), tokens))
        time.sleep(0.02)
    return seen


def _progress(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _cpu_seconds(pid: int) -> float:
    """That the process has taken so far, in all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _has_ended(process: subprocess.Popen[Any]) -> bool:
    """Without taking its exit status, which its peak memory comes with."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _ended(process: subprocess.Popen[Any], log: Path) -> float:
    """Its peak memory in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{log.read_text()[-3000:]}\nexit code {process.returncode}")
    return usage.ru_maxrss * 1024.0


def _reading(seen: list[Seen], memory: float, gpu: float) -> Reading:
    if len(seen) < 3:
        raise SystemExit(f"only {len(seen)} log lines; give it more --rows")
    (began, cpu, first), (ended, cpu_after, last) = seen[0], seen[-1]
    tokens = last - first
    return Reading(tokens / (ended - began), tokens / (cpu_after - cpu), ended - began, memory / 2**30, gpu / 2**30)


RUNNERS: dict[str, Callable[[Path, Path, Path, argparse.Namespace], Reading]] = {
    "plain": run_plain,
    "plain-8": partial(run_plain, batch=8),
    "ours": run_ours,
}


def show(readings: dict[str, list[Reading]]) -> None:
    """A table of medians, and ours against the others."""
    titles = ("tokens/s", "tokens/cpu s", "measured s", "memory GiB", "GPU GiB")
    print(f"{'':10}" + "".join(f"{title:>14}" for title in titles))
    speed, work = {}, {}
    for name, found in readings.items():
        speed[name] = statistics.median(reading.tokens_per_second for reading in found)
        work[name] = statistics.median(reading.tokens_per_cpu_second for reading in found)
        most = max(reading.memory for reading in found), max(reading.gpu for reading in found)
        numbers = (speed[name], work[name], sum(reading.seconds for reading in found), *most)
        print(f"{name:10}" + "".join(f"{number:14.2f}" for number in numbers))
    for name in readings:
        if "ours" in readings and name != "ours":
            print(f"ours / {name}: {speed['ours'] / speed[name]:.2f}, of CPU time {work['ours'] / work[name]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", nargs=3, metavar=("MODEL", "DATA", "OUTPUT"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="a folder with a model; random weights without it")
    parser.add_argument("--hidden", type=int, default=512, help="width of the random model")
    parser.add_argument("--layers", type=int, default=4, help="layers of the random model")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--plain-steps", type=int, default=150, help="steps of the plain script, a part of the rows")
    parser.add_argument("--batch", type=int, default=1, help="rows at a time, packed or not")
    parser.add_argument("--method", choices=("qlora", "lora"), default="qlora")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=tuple(RUNNERS), help="one of them alone")
    parser.add_argument("--parquet-gib", type=float, default=0.0, help="size of a Parquet file to read besides")
    options = parser.parse_args()
    if options.plain:
        model, data, output = map(Path, options.plain)
        steps = options.plain_steps
        plain(model, data, output, method=options.method, batch=options.batch, dtype=options.dtype, steps=steps)
        return
    with tempfile.TemporaryDirectory(prefix="kaito-benchmark-") as scratch:
        folder = Path(scratch)
        model = options.model or random_model(folder / "model", hidden=options.hidden, layers=options.layers)
        (folder / "data").mkdir()
        data = rows(folder / "data" / "rows.jsonl", options.rows)
        readings: dict[str, list[Reading]] = {name: [] for name in RUNNERS if options.only in (None, name)}
        for number in range(options.rounds):
            for name in readings:
                (folder / f"{name}-{number}").mkdir()
                readings[name].append(RUNNERS[name](model, data, folder / f"{name}-{number}", options))
                print(f"round {number + 1}: {name} {readings[name][-1].tokens_per_second:.0f} tokens/s", flush=True)
        show(readings)
    if options.parquet_gib:
        found = tuning_data.measure(options.parquet_gib, Path(tempfile.gettempdir()))
        print(f"Parquet file of {found['fileGiB']} GiB: {json.dumps(found)}")


if __name__ == "__main__":
    main()
