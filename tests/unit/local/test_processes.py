"""Programs end with the process that started them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.eventually import eventually

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
