"""What a request gets that fails: a status, and a sentence in the shape of the surface that was asked.

KAITO's endpoints answer `{"detail": ...}` as FastAPI does, those of OpenAI's API `{"error": {...}}`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from kaito_serving.errors import EngineUnavailable, InvalidRequest, RequestError, RequestTimeout, TooManyRequests
from kaito_serving.http.openai import errors as openai_errors


def refusal(path: str, status: int, sentence: str) -> JSONResponse:
    """The answer to a request whose body was not read to its end; the connection is of no further use."""
    content = openai_errors.of(status, sentence) if is_openai(path) else {"detail": sentence}
    return JSONResponse(content, status_code=status, headers={"Connection": "close"})


def status_of(path: str, error: RequestError) -> int:
    """KAITO's endpoint knows no 404: an unknown adapter is a mistake like any other."""
    return error.status if is_openai(path) or not isinstance(error, InvalidRequest) else 400


def reason_of(error: RequestError) -> str:
    """The label of a request that was not taken."""
    if isinstance(error, TooManyRequests):
        return "queue_full"
    return "timeout" if isinstance(error, RequestTimeout) else "unavailable"


def is_openai(path: str) -> bool:
    """Whether a path belongs to OpenAI's API, or to what vLLM adds to it."""
    return path.startswith(("/v1/", "/tokenize", "/detokenize"))


def install(app: FastAPI) -> None:
    """Have all failures of `app` answered like that."""

    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        path = request.url.path
        retry = error.retry_after if isinstance(error, TooManyRequests | EngineUnavailable) else None
        content = openai_errors.body(error) if is_openai(path) else {"detail": openai_errors.writable(str(error))}
        headers = None if retry is None else {"Retry-After": str(retry)}
        return JSONResponse(content, status_code=status_of(path, error), headers=headers)

    @app.exception_handler(HTTPException)
    async def fail(request: Request, error: HTTPException) -> JSONResponse:
        content: dict[str, Any] = {"detail": error.detail}
        if is_openai(request.url.path):
            content = openai_errors.of(error.status_code, str(error.detail))
        return JSONResponse(content, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI would repeat the input: a prompt does not belong into logs of clients, and NaN is no JSON.
        detail = [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()]
        if not is_openai(request.url.path):
            return JSONResponse({"detail": detail}, status_code=422)
        place = ".".join(str(part) for part in detail[0]["loc"][1:])
        return JSONResponse(openai_errors.of(400, f"{place}: {detail[0]['msg']}", param=place), status_code=400)

    @app.exception_handler(Exception)
    async def apologise(request: Request, error: Exception) -> JSONResponse:
        sentence = "The server failed; its log says how."
        content = openai_errors.of(500, sentence) if is_openai(request.url.path) else {"detail": sentence}
        return JSONResponse(content, status_code=500)
