"""`kaito up --control-plane-only`: a control plane in the background, for anybody, without root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.eventually import PATIENCE, eventually

from kaito_local.cluster.keeper import kept_programs, running_keeper
from kaito_local.machine.processes import Identity

KAITO = Path(sys.executable).parent / "kaito"
PARTS = {"keeper", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}


class Command:
    def __init__(self, home: Path) -> None:
        self.environment = os.environ | {"KAITO_HOME": str(home)}
        self.directory = home / "plane"

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [KAITO, *arguments, "--name", "plane"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def kubectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = f'eval "$({KAITO} env --name plane)"; exec kubectl {" ".join(arguments)}'
        return subprocess.run(
            ["bash", "-c", script], env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )

    def processes(self) -> dict[str, Identity]:
        found = {}
        for name, pid, _ in kept_programs(self.directory):
            process = Identity.of(pid) if pid is not None else None
            if process is not None:
                found[name] = process
        keeper = running_keeper(self.directory)
        return found | ({"keeper": keeper} if keeper else {})

    def all_processes(self) -> dict[str, Identity]:
        """Once each of them runs: `kaito up` waits for the API server, and the controllers come after it."""
        return eventually(lambda: found if (found := self.processes()).keys() == PARTS else {}, what="not all run")


@pytest.fixture
def kaito(programs: Mapping[str, Path], tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    command("down", "--purge")
    assert not command.directory.exists()


def test_it_serves_until_it_is_stopped_and_then_nothing_runs(kaito: Command) -> None:
    kaito("up", "--control-plane-only")
    assert "default" in kaito.kubectl("get", "namespaces").stdout
    assert "kube-apiserver" in kaito("status")
    running = kaito.all_processes()
    kaito("down")
    assert not any(process.alive() for process in running.values())
    assert "stopped" in kaito("status", check=False)


def test_a_second_up_changes_nothing_and_one_after_down_finds_the_objects_again(kaito: Command) -> None:
    kaito("up", "--control-plane-only")
    before = kaito.all_processes()
    kaito("up", "--control-plane-only")
    assert kaito.processes() == before
    kaito.kubectl("create", "namespace", "kept")
    kaito("down")
    kaito("up", "--control-plane-only")
    assert "kept" in kaito.kubectl("get", "namespaces").stdout


@pytest.mark.parametrize("victim", ["etcd", "kube-apiserver", "kube-controller-manager"])
def test_a_killed_part_comes_back_by_itself(kaito: Command, victim: str) -> None:
    kaito("up", "--control-plane-only")
    killed = kaito.all_processes()[victim]
    os.kill(killed.pid, signal.SIGKILL)
    eventually(lambda: kaito.processes().get(victim, killed) != killed)
    eventually(lambda: kaito.kubectl("get", "namespaces").returncode == 0)


def test_nothing_outlives_a_killed_keeper_and_up_repairs(kaito: Command) -> None:
    kaito("up", "--control-plane-only")
    running = kaito.all_processes()
    os.kill(running["keeper"].pid, signal.SIGKILL)
    kaito("up", "--control-plane-only")
    assert not any(process.alive() for process in running.values())
    assert "default" in kaito.kubectl("get", "namespaces").stdout


def test_up_waits_for_a_keeper_that_is_stopping_and_starts_another(kaito: Command) -> None:
    kaito("up", "--control-plane-only")
    running = kaito.processes()
    # A program that does not listen is given some seconds.
    os.kill(running["kube-scheduler"].pid, signal.SIGSTOP)
    os.kill(running["keeper"].pid, signal.SIGTERM)
    eventually(lambda: not kept_programs(kaito.directory), what="the keeper does not stop")
    kaito("up", "--control-plane-only")
    assert not any(process.alive() for process in running.values())
    assert "default" in kaito.kubectl("get", "namespaces").stdout


@pytest.mark.parametrize("delay", [0.2, 0.7, 1.5])
def test_an_interrupted_up_leaves_no_process_and_the_next_one_works(kaito: Command, delay: float) -> None:
    # As the script `kaito`, but it says when it begins: the interpreter that still starts ends in its own words.
    begin = "import sys; from kaito_local.commands.__main__ import main; print('main', flush=True); sys.exit(main())"
    up = subprocess.Popen(
        [sys.executable, "-c", begin, "up", "--control-plane-only", "--name", "plane"],
        env=kaito.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs, and so their children, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert up.stdout is not None
    assert up.stdout.readline() == "main\n"
    # Not a wait for luck: every moment of the interruption must be fine, these are three of them.
    try:
        up.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        os.killpg(up.pid, signal.SIGINT)
    said = up.communicate(timeout=PATIENCE)[1]
    if up.returncode != 0:
        assert up.returncode == 130
        assert "Traceback" not in said
        assert kaito.processes() == {}
    kaito("up", "--control-plane-only")
    assert "default" in kaito.kubectl("get", "namespaces").stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.usefixtures("programs")
def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=32k small "$0" && exec "$1" up --control-plane-only --name plane'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", script, str(tmp_path), str(KAITO)],
        env=os.environ | {"KAITO_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("kaito: ")]
    assert sentence.startswith("kaito: no room is left on the disk")
    assert sentence.endswith("; make some, then try again")
