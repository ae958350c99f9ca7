from __future__ import annotations

import json

import pytest

from kaito_hooks.runtime import (
    AlreadyExists,
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    InternalError,
    Invalid,
    NotFound,
    ServerTimeout,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
)


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "BadRequest", BadRequest),
        (401, "Unauthorized", Unauthorized),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict),
        (410, "Expired", Gone),
        (410, "Gone", Gone),
        (422, "Invalid", Invalid),
        (429, "TooManyRequests", TooManyRequests),
        (500, "InternalError", InternalError),
        (500, "ServerTimeout", ServerTimeout),
        (503, "ServiceUnavailable", ServiceUnavailable),
        (504, "Timeout", ServerTimeout),
        (405, "MethodNotAllowed", ApiError),
    ],
)
def test_every_status_has_its_type(status: int, reason: str, kind: type[ApiError]) -> None:
    body = {"kind": "Status", "code": status, "reason": reason, "message": "no", "details": {"name": "x"}}
    error = ApiError.of(status, json.dumps(body).encode())
    assert type(error) is kind
    assert (error.status, error.reason, error.message, error.details) == (status, reason, "no", {"name": "x"})
    assert str(error) == "no"


def test_an_answer_that_is_no_status_keeps_its_text() -> None:
    error = ApiError.of(503, b"apiserver not ready\n")
    assert isinstance(error, ServiceUnavailable)
    assert error.message == "apiserver not ready"
    assert error.reason == "ServiceUnavailable"


def test_an_empty_answer_says_its_status() -> None:
    assert "502" in str(ApiError.of(502, b""))


@pytest.mark.parametrize("body", [b"[1]", b'"text"', b"\xff\xfe", b"<html>"])
def test_no_answer_is_too_odd_to_be_an_error(body: bytes) -> None:
    assert isinstance(ApiError.of(500, body), InternalError)


@pytest.mark.parametrize(
    ("headers", "details", "seconds"),
    [
        ({"Retry-After": "7"}, {}, 7.0),
        ({}, {"retryAfterSeconds": 3}, 3.0),
        ({"Retry-After": "7"}, {"retryAfterSeconds": 3}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {}, None),
        ({"Retry-After": "-1"}, {}, None),
        ({"Retry-After": "999999"}, {}, 300.0),
        ({}, {"retryAfterSeconds": 3600}, 300.0),
        ({}, {}, None),
    ],
)
def test_retry_after_comes_from_the_header_or_the_details(
    headers: dict[str, str], details: dict[str, int], seconds: float | None
) -> None:
    body = json.dumps({"kind": "Status", "details": details}).encode()
    assert ApiError.of(429, body, headers).retry_after == seconds
