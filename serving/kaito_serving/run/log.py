"""The container's log: one readable line per event, of this process and of the replicas, in one format, on stderr.

Ray gives the output of its workers back late, with a prefix and among its own; so replicas send their lines through a
datagram socket, each whole, and this process writes them. What Ray, Ray Serve and the programs below them say goes to
Ray's own files.
"""

from __future__ import annotations

import logging
import logging.handlers
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_LARGEST = 256 * 1024  # bytes of a line


def configure() -> None:
    """Write this process' own lines."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT, stream=sys.stderr)


def show_details(debug: bool) -> None:
    """Whether our own details are lines, too."""
    logging.getLogger("kaito_serving").setLevel(logging.DEBUG if debug else logging.INFO)


def quiet_ray(*, debug: bool) -> None:
    """Have Ray's loggers of this process say what went wrong alone; call it again whenever Ray has set them up."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.ERROR)


class Receiver:
    """Writes the lines that others `send` to `path`, until it is closed."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what has come, and end."""
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while received := self._socket.recv(_LARGEST):
            # As in syslog: a priority in angle brackets comes first, a zero byte may come last.
            line = received.partition(b">")[2].rstrip(b"\0").decode(errors="replace")
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def send(path: Path, *, name: str, debug: bool) -> None:
    """Send this process' lines to the receiver at `path`, with `name` in front if there is one."""
    handler = logging.handlers.SysLogHandler(address=str(path))
    handler.setFormatter(_Formatter(f"%(asctime)s %(levelname)s {name + ': ' if name else ''}%(message)s"))
    for each in ("kaito_serving", "uvicorn"):
        logger = logging.getLogger(each)
        logger.handlers = [handler]
        logger.propagate = False
    show_details(debug)


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        """Without print, as logging has it: what Ray Serve (2.60) puts in its place writes each line as a tuple."""
        return "".join(traceback.format_exception(*ei)).rstrip("\n")
