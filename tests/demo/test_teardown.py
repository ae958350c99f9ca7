"""`kaito down` leaves the machine as it was: processes, mounts, links, routes, rules, cgroups, sysctls, files."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.demo.local_cluster import KAITO
from tests.demo.snapshot import difference, machine_state, running_clusters
from tests.eventually import PATIENCE

# The first `kaito up` on a machine builds its images.
pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1200)]


def kaito(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(KAITO), *arguments],
        env=os.environ | {"KAITO_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


def processes_naming(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = folder.joinpath("cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if text in command and int(folder.name) != os.getpid():
            found.append(command)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="real nodes need root")
def test_down_leaves_nothing_behind(tmp_path: Path) -> None:
    others = running_clusters()
    before = machine_state()
    up = kaito(tmp_path, "up", "--name", "fleeting", "--no-charts")
    assert up.returncode == 0, up.stderr
    again = kaito(tmp_path, "up", "--name", "fleeting", "--no-charts")
    assert again.returncode == 0, again.stderr
    assert difference(before, machine_state(), besides=others) != {}
    down = kaito(tmp_path, "down", "--name", "fleeting", "--purge")
    assert down.returncode == 0, down.stderr
    assert difference(before, machine_state(), besides=others | running_clusters()) == {}
    assert processes_naming(str(tmp_path)) == []
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="real nodes need root")
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("starting control plane and registry", marks=pytest.mark.soak),
        pytest.param("starting the cloud emulator", marks=pytest.mark.soak),
        # Here every kind of process that there can be runs.
        "installing the chart",
        pytest.param("waiting for the controllers", marks=pytest.mark.soak),
    ],
)
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, moment: str) -> None:
    others = running_clusters()
    before = machine_state()
    up = subprocess.Popen(
        [str(KAITO), "up", "--name", "interrupted"],
        env=os.environ | {"KAITO_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs, and so their children, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert up.stderr is not None
    try:
        said = [next(line for line in up.stderr if moment in line)]
        # As a terminal does for Ctrl-C: to the whole group.
        os.killpg(up.pid, signal.SIGINT)
        said += up.stderr.readlines()
        assert up.wait(PATIENCE) == 130
    except BaseException:
        kaito(tmp_path, "down", "--name", "interrupted", "--purge")
        raise
    assert "Traceback" not in "".join(said)
    assert len([line for line in said if line.startswith("kaito: ")]) == 1, said
    assert difference(before, machine_state(), besides=others | running_clusters()) == {}
    assert processes_naming(str(tmp_path)) == []
