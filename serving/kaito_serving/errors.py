"""Errors of the model server.

ServingError
├── StartupError             the server can never start like this: one sentence, exit code 2
│   ├── OptionError          the command line
│   ├── WeightsError         the folder of the base model
│   └── AdapterError         a folder of an adapter
├── ServerFailed             the server ended by itself; a new start may help, exit code 1
└── RequestError             one request fails; carries the HTTP status
    ├── InvalidRequest       400, the request is at fault
    │   └── UnknownModel     404, it names a model or an adapter that is not there
    ├── RequestTimeout       408, it took longer than the server allows
    ├── TooManyRequests      429, the queue is full; carries Retry-After
    ├── RequestFailed        500, the model computes nothing usable for this request
    └── EngineUnavailable    503, the engine is loading, restarting or stopping; carries Retry-After
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


class ServerFailed(ServingError):
    """The server ended by itself; starting it again may help."""


class RequestError(ServingError):
    """One request fails; `status` is the HTTP status of the answer."""

    status = 500


class InvalidRequest(RequestError):
    """The request asks for what the model or the server cannot do; `param` is the field at fault."""

    status = 400

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(InvalidRequest):
    """The request names a model or an adapter that is not there."""

    status = 404


class RequestTimeout(RequestError):
    """The answer took longer than the server allows."""

    status = 408


class TooManyRequests(RequestError):
    """As many requests wait as the server lets wait; `retry_after` is in seconds."""

    status = 429

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestFailed(RequestError):
    """The model computes nothing usable for this request; the same request would fail again."""

    status = 500


class EngineUnavailable(RequestError):
    """The engine does not run at the moment; the same request may succeed in `retry_after` seconds."""

    status = 503

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after
