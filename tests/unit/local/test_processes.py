"""Programs end with the process that started them; what was killed does not run, however long its end takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.ending import unfinished
from tests.eventually import PATIENCE, eventually

from kaito_local.machine.processes import Child, Identity

TRIES = 20
_OWNER = """
import os, pathlib, signal, sys
from kaito_local.machine.processes import Child
child = Child("sleeper", ["sleep", "600"], log=pathlib.Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_program_dies_with_an_owner_that_is_killed_while_it_starts(tmp_path: Path) -> None:
    """The parent is gone before or after the child asks the kernel to be told, by chance: hence many tries."""
    left = []
    for _ in range(TRIES):
        owner = subprocess.run([sys.executable, "-c", _OWNER, tmp_path / "log"], stdout=subprocess.PIPE, check=False)
        assert owner.returncode == -signal.SIGKILL
        child = Identity.of(int(owner.stdout))
        if child is not None:
            left.append(child)
    try:
        eventually(lambda: not any(child.alive() for child in left))
    finally:
        for child in left:
            child.kill()


def test_a_program_that_does_not_exist_is_told_by_its_log(tmp_path: Path) -> None:
    child = Child("nothing", ["no-such-program"], log=tmp_path / "log")
    child.start()
    eventually(lambda: not child.alive())
    with pytest.raises(Exception, match="no-such-program"):
        child.check()


def test_a_process_that_was_killed_does_not_run_from_that_moment_on() -> None:
    """While the kernel takes its memory back it is still there."""
    fill = "import sys, time; kept = b'x' * (1 << 28); print('filled', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", fill], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        identity = Identity.of(process.pid)
        assert identity is not None
        assert identity.running()
        process.kill()
        assert not identity.running()
        assert identity.wait(PATIENCE)
        assert not identity.running()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace needs root")
def test_the_first_process_of_a_namespace_that_still_ends_is_alive_and_does_not_run() -> None:
    outer = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "600"])
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        first = Identity.of(int(eventually(children.read_text).split()[0]))
        assert first is not None
        with unfinished(first.pid):
            assert first.running()
            assert not first.kill(wait=0.3)
            assert first.alive()
            assert not first.running()
            assert Identity.of(first.pid) == first
        assert first.wait(PATIENCE)
        assert Identity.of(first.pid) is None
    finally:
        outer.kill()
        outer.wait()
