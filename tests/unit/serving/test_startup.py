"""What replicas tell through files, and the folder of one server among others, dead ones included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.eventually import PATIENCE, eventually

from kaito_serving.run.folder import ServerFolder, claim, server_folder
from kaito_serving.run.startup import Report, Startup, forget, read

REPORT = """
import sys, time
from pathlib import Path
from kaito_serving.run.startup import Report, Startup
Report(Path(sys.argv[1]))(Startup("failed", reason=sys.argv[2]))
time.sleep(float(sys.argv[3]))
"""


def run(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments])


def test_each_process_tells_how_far_it_is_and_whether_it_lives(tmp_path):
    report = Report(tmp_path)
    report(Startup(step="loading weights", progress=0.25))
    report(Startup(step="loading weights", progress=0.5))
    ended = run(REPORT, str(tmp_path), "no weights", "0")
    ended.wait(PATIENCE)
    mine, other = read(tmp_path)
    assert (mine.startup.progress, mine.alive, mine.pid) == (0.5, True, os.getpid())
    assert (other.startup.reason, other.alive, other.pid) == ("no weights", False, ended.pid)
    assert mine.began < other.began


def test_the_last_process_that_ended_is_remembered_for_its_reason(tmp_path):
    Report(tmp_path)(Startup("ready"))
    for reason in ("first", "second", "third"):
        run(REPORT, str(tmp_path), reason, "0").wait(PATIENCE)
    forget(tmp_path, read(tmp_path))
    assert [each.startup.reason for each in read(tmp_path)] == ["", "third"]


FOLDER = """
import sys, time
from pathlib import Path
from kaito_serving.run.folder import server_folder
with server_folder(Path(sys.argv[1])) as folder:
    print(folder.root, flush=True)
    time.sleep(300)
"""


def test_servers_have_folders_of_their_own_and_what_a_killed_one_left_is_gone(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", FOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        first, second = (Path(process.stdout.readline().strip()) for process in processes)
        (first / "reports" / "1.json").write_text("left behind")
        processes[0].kill()
        processes[0].wait(PATIENCE)
        with server_folder(tmp_path) as own:
            assert set(tmp_path.iterdir()) == {second, own.root}
            assert own.root.stat().st_mode & 0o077 == 0
        assert list(tmp_path.iterdir()) == [second]
    finally:
        for process in processes:
            process.kill()
            process.wait(PATIENCE)
            process.stdout.close()


def test_a_folder_of_the_same_process_id_but_another_process_is_not_taken_for_this_ones(tmp_path):
    (tmp_path / f"kaito-serving-{os.getpid()}-1").mkdir()
    with server_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder.root]


CLAIM = """
import sys, time
from pathlib import Path
from kaito_serving.run.folder import claim
print(claim([Path(each) for each in sys.argv[1:]]), flush=True)
time.sleep(300)
"""


def test_a_socket_belongs_to_one_process_until_it_ends(tmp_path):
    paths = ServerFolder(tmp_path).sockets(1)
    command = [sys.executable, "-c", CLAIM, *map(str, paths)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        first = Path(process.stdout.readline().strip())
        rest = {claim(paths) for _ in paths[1:]}
        assert {first, *rest} == set(paths)
        with pytest.raises(RuntimeError, match="in use"):
            claim(paths)
    finally:
        process.kill()
        process.wait(PATIENCE)
        process.stdout.close()
    assert eventually(lambda: claim(paths), despite=RuntimeError) == first
