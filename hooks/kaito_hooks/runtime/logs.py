"""Structured logs: one JSON object per line on stderr."""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

_LEVELS = ("debug", "info", "warning", "error")
_STANDARD_FIELDS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}
_context: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("kaito_log_context", default={})  # noqa: B039
_QUIET = {"urllib3": logging.ERROR, "azure": logging.WARNING, "kubernetes": logging.WARNING}


@contextlib.contextmanager
def log_fields(**fields: Any) -> Iterator[None]:
    """Every line that this thread logs inside carries ``fields``."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: ts, level, logger, msg, the fields of log_fields and ``extra``, and a traceback as
    error.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline at its end."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            **_context.get(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD_FIELDS and not name.startswith("_"):
                line[name] = value
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure_logging(level: str, *, stream: TextIO | None = None) -> None:
    """Sends all logs of this process to stderr (or ``stream``) as JSON lines, from ``level`` on: debug, info, warning
    or error.
    """
    name = level.strip().lower()
    if name not in _LEVELS:
        raise ValueError(f"{level!r} is not a log level; use one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(name.upper())
    for library, quiet in _QUIET.items():
        logging.getLogger(library).setLevel(max(quiet, root.level))
