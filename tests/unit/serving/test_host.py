"""Processors and memory by cgroup, v1 and v2; the JSON of GET /metrics."""

import os

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


def test_without_a_gpu_the_processors_are_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    report = host.as_metrics()
    assert report["gpu_info"] is None
    assert set(report["cpu_info"]) == {"load_percentage", "physical_cores", "total_cores", "memory"}
    assert report["cpu_info"]["memory"]["total"].endswith(" GB")


def test_a_gpu_is_reported_in_kaitos_form(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU-1, Tesla V100-PCIE-16GB, 25, 55, 1024, 16384'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert host.as_metrics() == {
        "gpu_info": [
            {
                "id": "GPU-1",
                "name": "Tesla V100-PCIE-16GB",
                "load": "25.00%",
                "temperature": "55 C",
                "memory": {"used": "1.00 GB", "total": "16.00 GB"},
            }
        ],
        "cpu_info": None,
    }
