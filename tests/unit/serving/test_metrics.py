"""The series of several processes as one: sums, the fullest cache, and nothing lost when a process is replaced."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.eventually import PATIENCE

REPLICA = """
import sys, time
from kaito_serving.engine.base import EngineStats, State
from kaito_serving.http.metrics import ServingMetrics

class Engine:
    adapters = ("pirate", "poet")
    def stats(self):
        running, used = int(sys.argv[1]), int(sys.argv[2])
        return EngineStats(waiting=running, running=running, kv_used=used, kv_total=100, restarts=1)
    def state(self):
        return State.READY

metrics = ServingMetrics(model="m", version="1")
metrics.watch(Engine())
metrics.answered(endpoint="/chat", code=200, seconds=0.2, adapters=("pirate",))
metrics.prompt_tokens.inc(10)
metrics.time_to_first_token.observe(0.3)
metrics.finished("stop")
metrics.refresh()
print(flush=True)
sys.stdin.read()
"""
READ = """
import sys
from kaito_serving.http.metrics import ServingMetrics, process_died
for pid in sys.argv[1:]:
    process_died(int(pid))
sys.stdout.buffer.write(ServingMetrics(model="m", version="1").text())
"""


class Folder:
    def __init__(self, path: Path) -> None:
        self.environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(path)}
        self.processes: list[subprocess.Popen[str]] = []

    def replica(self, *, running: int, used: int) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", REPLICA, str(running), str(used)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stdout.readline() == "\n"
        return process.pid

    def end(self, pid: int) -> None:
        process = next(each for each in self.processes if each.pid == pid)
        process.kill()
        process.communicate()

    def series(self, *dead: int) -> dict[str, float]:
        command = [sys.executable, "-c", READ, *map(str, dead)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path)
    yield made
    for process in made.processes:
        made.end(process.pid)


def test_series_of_two_replicas_are_their_sums(folder):
    folder.replica(running=3, used=20)
    folder.replica(running=4, used=70)
    series = folder.series()
    assert series['vllm:num_requests_running{model_name="m"}'] == 7
    assert series['vllm:num_requests_waiting{model_name="m"}'] == 7
    assert series['vllm:kv_cache_usage_perc{model_name="m"}'] == 0.7
    assert series['vllm:prompt_tokens_total{model_name="m"}'] == 20
    assert series['vllm:time_to_first_token_seconds_count{model_name="m"}'] == 2
    assert series['vllm:time_to_first_token_seconds_bucket{le="0.25",model_name="m"}'] == 0
    assert series['vllm:time_to_first_token_seconds_bucket{le="0.5",model_name="m"}'] == 2
    assert series['vllm:request_success_total{finished_reason="stop",model_name="m"}'] == 2
    assert series['vllm:lora_requests_info{model_name="m",running_lora_adapters="pirate,poet"}'] == 1
    assert series['kaito_serving_requests_total{code="200",endpoint="/chat",model="m"}'] == 2
    assert series['kaito_serving_adapter_requests_total{adapter="pirate"}'] == 2
    assert series["kaito_serving_engine_restarts_total"] == 2
    assert series['kaito_serving_state{state="ready"}'] == 2
    assert series['kaito_serving_state{state="failed"}'] == 0
    assert series['kaito_serving_build_info{version="1"}'] == 1
    assert not any(re.search(r'pid="\d+"', name) for name in series)


def test_a_replaced_replica_leaves_its_counters_and_takes_its_gauges_along(folder):
    folder.replica(running=3, used=20)
    killed = folder.replica(running=4, used=70)
    folder.end(killed)
    series = folder.series(killed)
    assert series['vllm:num_requests_running{model_name="m"}'] == 3
    assert series['vllm:kv_cache_usage_perc{model_name="m"}'] == 0.2
    assert series['vllm:prompt_tokens_total{model_name="m"}'] == 20
    folder.replica(running=1, used=0)
    series = folder.series()
    assert series['vllm:num_requests_running{model_name="m"}'] == 4
    assert series['vllm:prompt_tokens_total{model_name="m"}'] == 30
    assert series["kaito_serving_engine_restarts_total"] == 3
