"""What one start of the job leaves for the next besides checkpoints: errors in a row, and a halved micro-batch.

A file on the volume of the checkpoints. It is advice: where it cannot be read or written, the job behaves as at its
first start.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ATTEMPTS = 3
"""Errors in a row, without an optimizer step between them that a checkpoint kept, after which the job gives up."""
_FILE = "recovery.json"


@dataclass(frozen=True, slots=True)
class Recovery:
    """Of the job with this ``key``: ``failures`` in a row at checkpoint ``step``.

    ``halved``: the rows that did not fit into memory, such as "8 rows of 300 tokens": halved since.
    """

    key: str
    failures: int = 0
    step: int = 0
    halved: str = ""
    start: str = ""

    def failed(self, step: int, *, start: str = "") -> Recovery:
        """After an error of a start whose newest checkpoint has so many steps.

        ``start``: a name that the processes of one start share, which fail one after the other, and once together.
        """
        if start and start == self.start:
            return self
        return replace(
            self, failures=self.failures + 1 if step <= self.step else 1, step=max(step, self.step), start=start
        )

    @property
    def exhausted(self) -> bool:
        """Whether another start is in vain."""
        return self.failures >= ATTEMPTS


def read(output_dir: Path, *, key: str) -> Recovery:
    """What an earlier start of the same key left, or of a key that begins so, or that this one begins with.

    A start that fails before it knows all of its key asks by the part that it knows.
    """
    try:
        found = Recovery(**json.loads((output_dir / _FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return Recovery(key)
    if found.key.startswith(key):
        return found
    return replace(found, key=key) if found.key and key.startswith(found.key) else Recovery(key)


def write(output_dir: Path, recovery: Recovery) -> None:
    """Keeps it for the next start, if the disk lets it."""
    try:
        (output_dir / _FILE).write_text(json.dumps(asdict(recovery)))
    except OSError:
        return


def remove(output_dir: Path) -> None:
    """Forgets, when the job is done."""
    (output_dir / _FILE).unlink(missing_ok=True)
