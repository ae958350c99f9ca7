"""Errors of the runtime.

ApiError                   the API server refused, failed or could not be reached
├── BadRequest             400
├── Unauthorized           401
├── Forbidden              403
├── NotFound               404
├── AlreadyExists          409, reason AlreadyExists
├── Conflict               409, otherwise: somebody else wrote first
├── Gone                   410, also reason Expired: that resourceVersion or continue token is too old
├── Invalid                422
├── TooManyRequests        429; retry_after says when
├── InternalError          500
├── ServiceUnavailable     503
├── ServerTimeout          504, and 500 with reason ServerTimeout
└── ConnectionFailed       status 0: no connection, no answer in time, or the answer broke off
LeadershipLost             this process does not lead: the write was not sent
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LONGEST_RETRY_AFTER = 300.0
"""Seconds: an API server asks for one or ten. Until then a key is not worked on, whatever happens to it, so that a
proxy's hour would keep a deletion, and what bills, for so long."""


class ApiError(Exception):
    """What the API server answered instead of success: a ``metav1.Status``, read.

    ``retry_after`` is in seconds, five minutes at most, from the Retry-After header or the Status's details.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        details: dict[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason
        self.details = details
        self.retry_after = retry_after

    @staticmethod
    def of(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> ApiError:
        """The typed error for an answer that is not a success; the body may be a Status, other text or nothing."""
        try:
            parsed = json.loads(body)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            parsed = {"message": body.decode("utf-8", "replace").strip()[:500]}
        return ApiError.from_status({**parsed, "code": status}, headers)

    @staticmethod
    def from_status(status: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> ApiError:
        """The typed error for a ``metav1.Status``
        (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/).
        """
        code = int(status.get("code") or 0)
        reason = str(status.get("reason") or "")
        details = status.get("details")
        details = details if isinstance(details, dict) else None
        kind = _BY_REASON.get((code, reason)) or _BY_STATUS.get(code, ApiError)
        return kind(
            str(status.get("message") or reason or f"the API server answered {code}"),
            status=code,
            reason=reason or kind.__name__,
            details=details,
            retry_after=_retry_after(headers, details),
        )


class BadRequest(ApiError):
    """The request itself is malformed (400)."""


class Unauthorized(ApiError):
    """The credentials are missing, wrong or expired (401)."""


class Forbidden(ApiError):
    """RBAC, admission or a terminating namespace forbids it (403)."""


class NotFound(ApiError):
    """The object or the resource does not exist (404)."""


class AlreadyExists(ApiError):
    """An object of that name exists (409)."""


class Conflict(ApiError):
    """Somebody else wrote first, a precondition failed, or another field manager owns a field (409)."""


class Gone(ApiError):
    """The resourceVersion or continue token is too old (410)."""


class Invalid(ApiError):
    """The schema, a CEL rule or the API refuses the object (422)."""


class TooManyRequests(ApiError):
    """The server sheds load, or an eviction is not allowed at the moment (429)."""


class InternalError(ApiError):
    """The API server or a webhook failed (500)."""


class ServiceUnavailable(ApiError):
    """The API server is not ready (503)."""


class ServerTimeout(ApiError):
    """The API server gave up in time (504, or 500 with that reason)."""


class ConnectionFailed(ApiError):
    """No answer at all: whether a write happened is unknown. status is 0."""


class LeadershipLost(Exception):
    """This process does not lead, or is about to lose it; nothing was sent."""


_BY_STATUS: Mapping[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
    500: InternalError,
    503: ServiceUnavailable,
    504: ServerTimeout,
}
_BY_REASON: Mapping[tuple[int, str], type[ApiError]] = {
    (409, "AlreadyExists"): AlreadyExists,
    (500, "ServerTimeout"): ServerTimeout,
}


def _retry_after(headers: Mapping[str, str] | None, details: Mapping[str, Any] | None) -> float | None:
    value: Any = (headers or {}).get("Retry-After")
    if value is None:
        value = (details or {}).get("retryAfterSeconds")
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return min(seconds, _LONGEST_RETRY_AFTER) if seconds > 0 else None
