"""A folder for what need not outlive its process, such as the tables of the data set.

A process that is killed removes nothing, and a container that starts again has the same temporary folder: the next
process removes what the ones before it left.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A fresh folder, which is the temporary folder of this process and its children until the end of the block."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{prefix}-*"):
        owner = re.fullmatch(rf"{re.escape(prefix)}-(\d+)-\w+", left.name)
        if owner and (int(owner[1]) == os.getpid() or not Path("/proc", owner[1]).exists()):
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{prefix}-{os.getpid()}-", dir=parent))
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    try:
        yield scratch
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        shutil.rmtree(scratch, ignore_errors=True)
