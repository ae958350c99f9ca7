"""What the OpenAPI document says of failures: the shapes that `refusals` gives, for each surface its own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from kaito_serving.http.refusals import is_openai

_WHEN = {
    400: "The request is at fault; the sentence says how",
    401: "A valid API key is required",
    404: "There is no such model, adapter or path",
    408: "The answer took too long, or the body did",
    413: "The body is too large",
    429: "Too many requests wait; Retry-After says when to try again",
    500: "The server failed",
    503: "The model loads, restarts or ends; Retry-After says when to try again",
}
_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}


class Detail(BaseModel):
    """An error of KAITO's endpoints."""

    detail: str


class ErrorFields(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error of OpenAI's API."""

    error: ErrorFields


def kaito(*, but: tuple[int, ...] = (404,)) -> dict[int | str, dict[str, Any]]:
    """The failures of a KAITO endpoint."""
    return {status: {"model": Detail, "description": when} for status, when in _WHEN.items() if status not in but}


def openai(*, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """The failures of an endpoint of OpenAI's API; `stream`: its success may be a stream of events."""
    failures: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": when} for status, when in _WHEN.items()
    }
    return {200: {"content": _STREAM}, **failures} if stream else failures


def without_422(app: FastAPI) -> None:
    """OpenAI's API has no 422, which FastAPI writes into the document for every body."""
    document = app.openapi

    def openapi() -> dict[str, Any]:
        written = document()
        for path, operations in written["paths"].items():
            if is_openai(path):
                for operation in operations.values():
                    operation["responses"].pop("422", None)
        return written

    app.openapi = openapi  # type: ignore[method-assign]
