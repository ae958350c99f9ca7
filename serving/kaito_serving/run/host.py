"""What the machine gives this container: processors and memory by its cgroup (v1 and v2), GPUs by nvidia-smi."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as nvidia-smi reports it; memory in MiB, load in per cent, temperature in degrees Celsius."""

    uuid: str
    name: str
    load: float
    temperature: float
    memory_used: float
    memory_total: float


def processors(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole processors that this container may use, at least 1."""
    available = len(os.sched_getaffinity(0))
    quota = _quota(root)
    return max(1, min(available, math.ceil(quota) if quota is not None else available))


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this container may use: its cgroup's limit, else the machine's memory."""
    total = int(psutil.virtual_memory().total)
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        text = _read(file)
        if text is not None and text.isdigit():
            return min(total, int(text))
    return total


def gpus() -> list[Gpu]:
    """The GPUs of this container; empty without a driver. Takes some 50 ms with one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = "uuid,name,utilization.gpu,temperature.gpu,memory.used,memory.total"
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=5.0,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in answer.splitlines():
        uuid, name, *numbers = (part.strip() for part in line.split(","))
        found.append(Gpu(uuid, name, *(_number(text) for text in numbers)))
    return found


def as_metrics() -> dict[str, Any]:
    """The JSON of GET /metrics: `gpu_info`, or without a GPU `cpu_info`."""
    found = gpus()
    if found:
        return {
            "gpu_info": [
                {
                    "id": gpu.uuid,
                    "name": gpu.name,
                    "load": f"{gpu.load:.2f}%",
                    "temperature": f"{gpu.temperature:.0f} C",
                    "memory": {
                        "used": f"{gpu.memory_used / 1024:.2f} GB",
                        "total": f"{gpu.memory_total / 1024:.2f} GB",
                    },
                }
                for gpu in found
            ],
            "cpu_info": None,
        }
    memory = psutil.virtual_memory()
    return {
        "gpu_info": None,
        "cpu_info": {
            "load_percentage": psutil.cpu_percent(interval=None),
            "physical_cores": psutil.cpu_count(logical=False),
            "total_cores": psutil.cpu_count(logical=True),
            "memory": {"used": f"{memory.used / _GIB:.2f} GB", "total": f"{memory.total / _GIB:.2f} GB"},
        },
    }


def _quota(root: Path) -> float | None:
    both = _read(root / "cpu.max")
    if both is not None:
        quota, _, period = both.partition(" ")
        return int(quota) / int(period or 100_000) if quota.isdigit() else None
    old, period_text = _read(root / "cpu" / "cpu.cfs_quota_us"), _read(root / "cpu" / "cpu.cfs_period_us")
    if old is not None and old.isdigit() and period_text:
        return int(old) / int(period_text)
    return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]" on virtual GPUs
        return 0.0
