"""A request to stop the job: SIGTERM, which may come at any time.

While nothing is to be saved (loading, tokenising, exporting) it ends the work at once, wherever that stands. Amid the
training there is something to save, so there the request waits to be seen: by the end of the optimizer step, which
saves a checkpoint, or by the next batch of an evaluation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """The job was asked to stop; what can be continued is on disk.

    No Exception, so that libraries that catch every error let it pass.
    """


class StopRequest:
    """Asked for by the handler of a signal, in the main thread, or by anybody while it is deferred."""

    def __init__(self) -> None:
        self._asked = False
        self._deferred = False

    @property
    def asked(self) -> bool:
        """Whether somebody wants the job to stop."""
        return self._asked

    def ask(self) -> None:
        """Asks to stop. Raises Stopped in the main thread, at once, unless deferred or asked before."""
        first, self._asked = not self._asked, True
        if first and not self._deferred and threading.current_thread() is threading.main_thread():
            raise Stopped

    def check(self) -> None:
        """Raises Stopped if somebody asked."""
        if self._asked:
            raise Stopped

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, ``ask`` raises nothing: whoever runs here looks at ``asked``. Raises Stopped before and after."""
        self._deferred = True
        try:
            self.check()
            yield
        finally:
            self._deferred = False
        self.check()
