"""Temporary folders: gone with their process, and what a killed one left is gone with the next."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kaito_tuning.process import scratch

PROGRAM = """
import sys, tempfile
from pathlib import Path
from kaito_tuning.process import scratch
with scratch.folder("kaito-try") as folder:
    (folder / "table").write_text("rows")
    (Path(tempfile.mkdtemp()) / "other").write_text("rows")
    print(folder, flush=True)
    sys.stdin.read(1)
"""


def start(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"TMPDIR": str(parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_goes_with_its_process_and_holds_its_temporary_files(tmp_path: Path) -> None:
    process, folder = start(tmp_path)
    assert [path.parent for path in tmp_path.rglob("other")] != []
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} == {folder.name}
    process.communicate("x")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    killed, left = start(tmp_path)
    killed.kill()
    killed.communicate()
    assert (left / "table").exists()
    living, used = start(tmp_path)
    assert not left.exists()
    ended, own = start(tmp_path)
    assert (used / "table").exists()
    for process in (ended, living):
        process.communicate("x")
    assert not own.exists()


def test_the_process_has_its_temporary_folder_back_afterwards() -> None:
    before = tempfile.gettempdir()
    with scratch.folder("kaito-try") as folder:
        assert tempfile.gettempdir() == str(folder)
    assert tempfile.gettempdir() == before
