"""One process at a time, by locked files that are gone when nobody holds them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path


@contextmanager
def file_lock(path: Path, *, waiting: Callable[[], AbstractContextManager[object]] = nullcontext) -> Iterator[None]:
    """Held by one process, and one thread of it, at a time; the kernel releases it when its holder dies.

    ``waiting`` is entered while somebody else holds it. The file is removed at the end, so whoever waited for it looks
    whether it still is the file of that name.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with waiting():
                    fcntl.flock(file, fcntl.LOCK_EX)
            if not _is(path, file.fileno()):
                continue
            try:
                yield
            finally:
                # The holder may have removed the folder, lock and all.
                if _is(path, file.fileno()):
                    path.unlink()
            return


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
