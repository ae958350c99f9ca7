"""What the machine gives this container: processors and memory by its cgroup (v1 and v2), GPUs by NVIDIA's library."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

_GIB = 1024**3
_FRESH = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its driver reports it; memory in bytes, load in per cent, temperature in degrees Celsius."""

    uuid: str
    name: str
    load: float
    temperature: float
    memory_used: int
    memory_total: int


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
    """The GPUs of this container, by NVIDIA's management library; empty without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        load=_or_zero(lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        temperature=_or_zero(lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
        memory_used=int(memory.used),
        memory_total=int(memory.total),
    )


def _or_zero(read: Callable[[], float]) -> float:
    """Virtual GPUs do not tell their load and temperature."""
    try:
        return read()
    except pynvml.NVMLError:
        return 0.0


class Hardware:
    """The JSON of GET /metrics: `gpu_info`, or without a GPU `cpu_info`; read at most once a second.

    Whoever asks, without a key and as often as he likes, costs no more.
    """

    def __init__(self, *, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._read_at = -math.inf
        self._last: dict[str, Any] = {}

    def __call__(self) -> dict[str, Any]:
        """The newest reading."""
        with self._lock:
            now = self._monotonic()
            if now - self._read_at >= _FRESH:
                self._last, self._read_at = _reading(), now
            return self._last


def _reading() -> dict[str, Any]:
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
                        "used": f"{gpu.memory_used / _GIB:.2f} GB",
                        "total": f"{gpu.memory_total / _GIB:.2f} GB",
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
