"""Errors while a file is read: about the file, as one that is missing, or about the disk, the server that it lies on,
the memory and the process, which say nothing of the file and may be gone at the next start.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

_OF_THE_FILE = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EACCES, errno.EPERM, errno.EINVAL),
    }
)
OF_THE_PROCESS = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_IN_TEXT = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers, which are written in Rust, pass on what the system says."""


def passing(error: BaseException) -> OSError | None:
    """What the system says of anything but the file, in the error or in what it came from; None if it says nothing."""
    for cause in chain(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            if cause.errno not in _OF_THE_FILE:
                return cause
        elif (found := _IN_TEXT.search(str(cause))) and (number := int(found[1])) not in _OF_THE_FILE:
            return OSError(number, os.strerror(number))
    return None


def raise_passing(error: BaseException) -> None:
    """Raises what `passing` finds, if it finds something."""
    if found := passing(error):
        raise found from error


def told(error: OSError) -> str:
    """The system's words, and the file if it is known."""
    return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, newest first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
