"""What is left of a start that was killed: the kernel ends a container that runs out of memory without a word.

A file on the volume stands for each process of a start that goes on; its own end removes it. It holds the most memory
that the container was seen to use, as the kubelet counts it: without what the kernel can drop at once (cgroup v2 and
v1, the kernel's admin guide). The counters themselves are those of one container and go with it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
NEAR = 0.9
"""Of the limit: who was killed with more in use was most likely killed for it."""
_FILE = re.compile(r"running(?:-(\w+)-\d+)?\.json")
_GIB = 1 << 30
_UNLIMITED = 1 << 60
_SAMPLE_SECONDS = 1.0
WAY_OUT = (
    "lower TrainingArguments.max_length or per_device_train_batch_size, or choose an instance type with more memory"
)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use and at most; 0 where there is no limit or nobody knows.

    ``start``: the name that several processes of one start share.
    """

    used: int = 0
    limit: int = 0
    start: str = ""

    @property
    def near(self) -> bool:
        """Whether so much was in use that little more was to be had."""
        return self.limit > 0 and self.used >= NEAR * self.limit


def memory(cgroup: Path = CGROUP) -> Memory:
    """Of this container."""
    for current, most, inactive in (
        ("memory.current", "memory.max", "inactive_file"),
        ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "total_inactive_file"),
    ):
        try:
            used, limit = (cgroup / current).read_text().strip(), (cgroup / most).read_text().strip()
            stat = dict(line.split() for line in (cgroup / current).with_name("memory.stat").read_text().splitlines())
            found = Memory(int(used) - int(stat.get(inactive, 0)), int(limit) if limit != "max" else 0)
        except (OSError, ValueError):
            continue
        return found if found.limit < _UNLIMITED else Memory(found.used)
    return Memory()


def sentence(left: Memory) -> str:
    """What is said about a start that was killed with so much memory in use."""
    if left.near:
        return (
            f"the start before this one was killed with {left.used / _GIB:.1f} of {left.limit / _GIB:.1f} GiB of "
            f"memory in use; {WAY_OUT}"
        )
    return f"the start before this one was killed without a word; where that is for memory, {WAY_OUT}"


class Running:
    """Stands for process ``rank`` of this ``start`` in ``folder``; ``measured`` is asked every second."""

    def __init__(
        self, folder: Path, *, start: str = "", rank: int = 0, measured: Callable[[], Memory] = memory
    ) -> None:
        self._folder = folder
        self._path = folder / (f"running-{start}-{rank}.json" if start else "running.json")
        self._start = start
        self._rank = rank
        self._measured = measured
        self._most = Memory()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def begin(self) -> Memory | None:
        """What an earlier start left of which a process was killed, asked for by the first process alone."""
        left = self._left() if self._rank == 0 else None
        self.sample()
        self._thread.start()
        return left

    def end(self) -> None:
        """This start ends by itself."""
        self._ended.set()
        self._thread.join()
        _remove(self._path)

    def sample(self) -> None:
        """Looks once, and writes what is more than before; near the limit every bit of it."""
        found = self._measured()
        with suppress(OSError):  # a volume that is full or gone is told by others
            if self._path.exists() and (found.used <= self._most.used or not found.near):
                return
            self._most = found
            self._path.write_text(json.dumps(asdict(found)))

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.sample()

    def _left(self) -> Memory | None:
        """Of all that was left the most; the other processes of this start are none of it."""
        with suppress(OSError):
            found = [path for path in self._folder.iterdir() if _FILE.fullmatch(path.name)]
            left = [_read(path) for path in found if not self._start or _start_of(path) != self._start]
            return max(left, key=lambda memory: memory.used, default=None)
        return None


def _read(path: Path) -> Memory:
    """What a file says, which is removed."""
    try:
        said = json.loads(path.read_text())
        return Memory(int(said["used"]), int(said["limit"]), start=_start_of(path))
    except (OSError, ValueError, TypeError, KeyError):
        return Memory(start=_start_of(path))
    finally:
        _remove(path)


def _start_of(path: Path) -> str:
    match = _FILE.fullmatch(path.name)
    return match[1] or "" if match else ""


def _remove(path: Path) -> None:
    with suppress(OSError):  # of a volume that nothing can be written to, which others tell
        path.unlink(missing_ok=True)
