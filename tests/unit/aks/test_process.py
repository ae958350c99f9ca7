"""The emulator as a process: it is killed, started again, told to end, and asked on its control port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from azure.core import MatchConditions
from azure.mgmt.containerservice import ContainerServiceClient
from tests.eventually import PATIENCE, eventually
from tests.unit.aks.sdk import gpu_pool, sdk

from kaito_local.aks import Emulator, Settings
from kaito_local.aks.settings import load
from kaito_local.errors import UsageError
from kaito_local.machine.ports import free_ports, is_free

WHERE = ("kaito", "kaito")
SWIFT = {"upgrade": 0.6, "start": 0.3, "stop": 0.3}


class Process:
    """Looks to the SDK's builder like an emulator: it has settings and endpoints."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.config = folder / "aks.yaml"
        self.config.write_text(yaml.safe_dump({"directory": str(folder / "cloud"), **settings}))
        self.settings = load(self.config)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "kaito_local.aks", "--config", str(self.config)]
        self.child = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line.startswith("ARM https://"), line
        self.record = json.loads((self.folder / "cloud" / "endpoints.json").read_text())

    @property
    def endpoints(self) -> Any:
        class Endpoints:
            arm = self.record["arm"]
            authority = Path(self.record["authority"])

        return Endpoints

    def control(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.record["control"] + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            text = response.read().decode()
        return [json.loads(line) for line in text.splitlines()] if path.startswith("/requests") else json.loads(text)

    def kill(self, number: int) -> int:
        self.child.send_signal(number)
        return self.child.wait(timeout=PATIENCE)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, durations={"create_gpu": 1.0, "delete": 0.5, "update": 0.2, **SWIFT})
    yield process
    if process.child.poll() is None:
        process.kill(signal.SIGKILL)


def create(aks: ContainerServiceClient, name: str = "ws1") -> None:
    aks.agent_pools.begin_create_or_update(
        *WHERE, name, gpu_pool(), match_condition=MatchConditions.IfMissing, polling=False
    )


def test_a_killed_emulator_goes_on_where_it_was(process: Process, tmp_path: Path) -> None:
    with sdk(process, tmp_path) as aks:
        create(aks)
        arm = process.record["arm"]
        process.kill(signal.SIGKILL)
        process.start()
        assert process.record["arm"] == arm
        # The same client, with the token that the killed process gave out.
        eventually(lambda: aks.agent_pools.get(*WHERE, "ws1").provisioning_state == "Succeeded", every=0.1)
    created = [e for e in process.control("GET", "/requests") if e["method"] == "PUT" and e["status"] == 201]
    assert len(created) == 1
    assert [bill["pool"] for bill in process.control("GET", "/ledger")] == ["ws1"]


def test_an_operation_that_fell_due_while_nobody_ran_ends_at_the_next_start(process: Process, tmp_path: Path) -> None:
    with sdk(process, tmp_path) as aks:
        create(aks)
        process.kill(signal.SIGKILL)
        time.sleep(1.1)  # the creation's own second
        process.start()
        eventually(lambda: aks.agent_pools.get(*WHERE, "ws1").provisioning_state == "Succeeded", every=0.05)


def test_a_signal_ends_it_with_status_0(process: Process) -> None:
    assert process.kill(signal.SIGTERM) == 0


def test_the_control_port_scripts_faults_and_limits(process: Process, tmp_path: Path) -> None:
    added = process.control("POST", "/faults", {"name": "throttled", "pool": "ws*", "times": 2})
    assert added["headers"] == {"Retry-After": "7"}
    assert [fault["id"] for fault in process.control("GET", "/faults")] == [added["id"]]
    process.control("DELETE", f"/faults/{added['id']}")
    assert process.control("GET", "/faults") == []
    limits = process.control("PUT", "/limits", {"quota": {"standardNCSv3Family": 0}})
    assert limits["quota"] == {"standardNCSv3Family": 0}
    with sdk(process, tmp_path) as aks, pytest.raises(Exception, match="ErrCode_InsufficientVCPUQuota"):
        create(aks)
    assert process.control("GET", "/pools") == []
    assert process.control("GET", "/endpoints")["arm"] == process.record["arm"]


def test_the_control_port_acts_on_a_pool_as_somebody_else_does(process: Process, tmp_path: Path) -> None:
    def state() -> tuple[str, str]:
        (pool,) = process.control("GET", "/pools")
        return pool["properties"]["provisioningState"], pool["properties"]["powerState"]["code"]

    with sdk(process, tmp_path) as aks:
        create(aks)
    eventually(lambda: state() == ("Succeeded", "Running"))
    for action, under_way in [
        ("upgrade", ("UpgradingNodeImageVersion", "Running")),
        ("stop", ("Stopping", "Stopped")),
        ("start", ("Starting", "Running")),
    ]:
        pool = process.control("POST", f"/pools/ws1/{action}", {})
        assert (pool["properties"]["provisioningState"], pool["properties"]["powerState"]["code"]) == under_way
        eventually(lambda: state()[0] == "Succeeded")
    assert process.control("POST", "/pools/ws1/reimage", {})["name"] == "ws1"
    labelled = process.control("POST", "/pools/ws1/label", {"labels": {"team": "vision"}})
    assert labelled["properties"]["nodeLabels"] == {"team": "vision"}
    eventually(lambda: state()[0] == "Succeeded")
    process.control("POST", "/pools/ws1/delete", {})
    eventually(lambda: process.control("GET", "/pools") == [])


@pytest.mark.parametrize(
    ("action", "body", "status", "says"),
    [
        ("upgrade", {}, 404, "Agent Pool not found"),
        ("delete", {}, 404, "Agent Pool not found"),
        ("paint", {}, 400, "not 'paint'"),
        ("label", {"labels": 3}, 400, "labels must be a mapping"),
    ],
)
def test_an_action_that_cannot_be_is_refused_with_a_sentence(
    process: Process, action: str, body: Any, status: int, says: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        process.control("POST", f"/pools/nobody/{action}", body)
    assert caught.value.code == status
    assert says in json.loads(caught.value.read())["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "/faults", {"name": "no such"}, "no ready-made fault 'no such'"),
        ("POST", "/faults", {"statsu": 500}, "unknown key 'statsu'"),
        ("PUT", "/limits", {"quota": 3}, "quota must be"),
        ("PUT", "/locks", {"locks": "all"}, "locks must be none, pool or cluster"),
        ("POST", "/clock", {"advance": -1}, "backwards"),
    ],
)
def test_the_control_port_refuses_with_a_sentence(
    process: Process, method: str, path: str, body: Any, says: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        process.control(method, path, body)
    assert caught.value.code == 400
    assert says in json.loads(caught.value.read())["error"]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "lacks the key 'directory'"),
        ({"directory": "/tmp/x", "prot": 1}, "unknown key 'prot'"),
        ({"directory": "/tmp/x", "port": "443"}, "port must be int"),
        ({"directory": "/tmp/x", "machines": "vm"}, "machines must be 'none' or 'bare' or 'nodes'"),
        ({"directory": "/tmp/x", "durations": {"delete": [1]}}, "delete must be"),
        (["directory"], "must be a mapping"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(tmp_path: Path, document: Any, says: str) -> None:
    file = tmp_path / "aks.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(UsageError, match=says):
        load(file)


def test_a_configuration_is_read_into_settings(tmp_path: Path) -> None:
    file = tmp_path / "aks.yaml"
    file.write_text(
        "directory: /somewhere\nclock_speed: 60\nhosts: [a, b]\ndurations: {create_gpu: [1, 2], delete: 3}\n"
        "limits: {quota: {regional: 10}}\nkubeconfig: /k\n"
    )
    settings = load(file)
    assert settings.directory == Path("/somewhere")
    assert (settings.clock_speed, settings.hosts) == (60.0, ("a", "b"))
    assert (settings.durations.create_gpu, settings.durations.delete) == ((1.0, 2.0), 3.0)
    assert settings.limits.quota == {"regional": 10}
    assert Settings(directory=Path("/somewhere")).machines == "none"


def test_its_two_listeners_never_choose_the_same_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(port for port in free_ports(200) if is_free(port + 1))
    monkeypatch.setattr("kaito_local.machine.ports._RANGE", range(first, first + 2))
    for attempt in range(10):
        with Emulator(Settings(directory=tmp_path / f"cloud-{attempt}", clock_speed=0)) as emulator:
            assert emulator.endpoints.arm.rpartition(":")[2] != emulator.endpoints.control.rpartition(":")[2]
