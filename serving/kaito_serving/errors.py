"""Errors of the model server.

ServingError
├── StartupError             the server can never start like this: one sentence, exit code 2
│   ├── OptionError          the command line
│   ├── WeightsError         the folder of the base model
│   └── AdapterError         a folder of an adapter
└── RequestError             one request fails; carries the HTTP status
    ├── InvalidRequest       400, the request is at fault
    ├── RequestTimeout       408, it took longer than the server allows
    ├── TooManyRequests      429, the queue is full; carries Retry-After
    └── EngineUnavailable    503, the engine is loading, restarting or stopping
"""

from __future__ import annotations


class ServingError(Exception):
    """Anything that the model server reports; the text is shown as it is."""


class StartupError(ServingError):
    """The server cannot start, and starting it again changes nothing."""


class OptionError(StartupError):
    """The command line is wrong."""


class WeightsError(StartupError):
    """The folder of the base model cannot be served."""


class AdapterError(StartupError):
    """The folder of an adapter cannot be served."""


class RequestError(ServingError):
    """One request fails; `status` is the HTTP status of the answer."""

    status = 500


class InvalidRequest(RequestError):
    """The request asks for what the model or the server cannot do."""

    status = 400


class RequestTimeout(RequestError):
    """The answer took longer than the server allows."""

    status = 408


class TooManyRequests(RequestError):
    """As many requests wait as the server lets wait; `retry_after` is in seconds."""

    status = 429

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailable(RequestError):
    """The engine does not run at the moment; the same request may succeed in a few seconds."""

    status = 503
