"""The moment in which a PID namespace ends, made as long as a test needs it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.eventually import eventually


@contextmanager
def unfinished(first: int) -> Iterator[None]:
    """In the block the namespace's ``first`` process, once it is killed, does not get to its end.

    It is gone only when all others of the namespace have been waited for (pid_namespaces(7)), and one of them has a
    parent outside of it that stands still. In the field this is what a large process does whose memory is given back,
    or one that waits for a disk.
    """
    parent = subprocess.Popen(["nsenter", f"--target={first}", "--pid", "sleep", "600"])
    folder = Path(f"/proc/{parent.pid}")
    try:
        child = int(eventually((folder / "task" / folder.name / "children").read_text).split()[0])
        parent.send_signal(signal.SIGSTOP)
        eventually(lambda: "State:\tT" in (folder / "status").read_text())
        try:
            yield
        finally:
            # Its number is still its own: nobody has waited for it.
            os.kill(child, signal.SIGKILL)
            parent.send_signal(signal.SIGCONT)
    finally:
        parent.terminate()
        parent.wait()
