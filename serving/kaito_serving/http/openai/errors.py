"""Errors as OpenAI's API writes them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from kaito_serving.errors import InvalidRequest, RequestError, UnknownModel

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def body(error: RequestError) -> dict[str, Any]:
    """The body of an answer to a request that failed."""
    param = error.param if isinstance(error, InvalidRequest) else None
    return of(
        error.status, str(error), param=param, code="model_not_found" if isinstance(error, UnknownModel) else None
    )


def writable(sentence: str) -> str:
    """A sentence that UTF-8 can hold: half of a surrogate pair, which a body may bring as an escape, is one again."""
    return sentence.encode(errors="backslashreplace").decode()


def of(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an answer with an HTTP status."""
    return {
        "error": {
            "message": writable(message),
            "type": _TYPES.get(status, "server_error"),
            "param": param,
            "code": code,
        }
    }
