"""Lines of several processes in one log, each whole, in one format."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.eventually import PATIENCE

from kaito_serving.run import log

SEND = """
import builtins, logging, sys
from pathlib import Path
from kaito_serving.run import log

printed = print


def as_in_a_replica_of_ray_serve(*objects, sep=" ", end="\\n", file=None, flush=False):
    printed(objects, sep=sep, end=end, file=file, flush=flush)


builtins.print = as_in_a_replica_of_ray_serve
log.send(Path(sys.argv[1]), name=sys.argv[2], debug=False)
ours, theirs = logging.getLogger("kaito_serving.engine"), logging.getLogger("uvicorn.error")
ours.info("Model loaded")
ours.debug("a detail")
logging.getLogger("ray.serve").warning("chatter")
try:
    1 / 0
except ZeroDivisionError:
    theirs.exception("Exception in ASGI application")
ours.warning("x" * 100_000)
"""


@pytest.fixture
def written(capsys):
    """What processes with these names, one after the other, write into the log."""

    def write(*names: str) -> str:
        with tempfile.TemporaryDirectory(prefix="ks-", dir="/tmp") as folder:  # a socket's path may have 107 bytes
            path = Path(folder) / "log.sock"
            receiver = log.Receiver(path)
            for name in names:
                subprocess.run([sys.executable, "-c", SEND, str(path), name], check=True, timeout=PATIENCE)
            receiver.close()
        return str(capsys.readouterr().err)

    return write


def test_a_replicas_lines_are_in_the_log_with_the_tracebacks_of_bugs_and_without_chatter(written):
    text = written("")
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert re.match(rf"{stamp} INFO Model loaded\n{stamp} ERROR Exception in ASGI application\nTraceback \(most", text)
    assert re.search(rf"\nZeroDivisionError: division by zero\n{stamp} WARNING x{{100000}}\n$", text)
    assert "detail" not in text
    assert "chatter" not in text


def test_several_replicas_are_told_apart(written):
    text = written("replica 0", "replica 1")
    assert re.findall(r"INFO (.*)", text) == ["replica 0: Model loaded", "replica 1: Model loaded"]
