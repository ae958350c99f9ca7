"""Processors and memory by cgroup, v1 and v2; the JSON of GET /metrics."""

import os
from types import SimpleNamespace

import pynvml
import pytest

from kaito_serving.run import host

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "max 100000"}, CORES),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES),
        ({}, CORES),
    ],
    ids=str,
)
def test_processors_follow_the_quota(tmp_path, files, processors):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert host.processors(tmp_path) == processors


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_memory_follows_the_limit(tmp_path, name):
    unlimited = host.memory_limit(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("1048576\n")
    assert host.memory_limit(tmp_path) == 1048576
    (tmp_path / name).write_text("max\n")
    assert host.memory_limit(tmp_path) == unlimited


def test_without_a_gpu_the_processors_are_reported():
    report = host.Hardware(monotonic=lambda: 0.0)()
    assert report["gpu_info"] is None
    assert set(report["cpu_info"]) == {"load_percentage", "physical_cores", "total_cores", "memory"}
    assert report["cpu_info"]["memory"]["total"].endswith(" GB")


@pytest.fixture
def driver(monkeypatch):
    """A V100 as NVIDIA's library tells it; how often it was asked."""
    asked = []

    def temperature(*_):
        raise pynvml.NVMLError_NotSupported

    answers = {
        "nvmlInit": lambda: asked.append(1),
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda _: "GPU-1",
        "nvmlDeviceGetName": lambda _: "Tesla V100-PCIE-16GB",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=1 << 30, total=16 << 30),
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=25),
        "nvmlDeviceGetTemperature": temperature,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    return asked


def test_a_gpu_is_reported_in_kaitos_form(driver):
    assert host.Hardware(monotonic=lambda: 0.0)() == {
        "gpu_info": [
            {
                "id": "GPU-1",
                "name": "Tesla V100-PCIE-16GB",
                "load": "25.00%",
                "temperature": "0 C",  # virtual GPUs do not tell it
                "memory": {"used": "1.00 GB", "total": "16.00 GB"},
            }
        ],
        "cpu_info": None,
    }


def test_the_driver_is_asked_once_a_second_however_many_ask_us(driver):
    now = [100.0]
    hardware = host.Hardware(monotonic=lambda: now[0])
    for _ in range(50):
        hardware()
    assert len(driver) == 1
    now[0] += 1.0
    hardware()
    assert len(driver) == 2
