"""Errors of the emulator.

Refusal                what a client is answered instead of what it asked for: an HTTP status, a body, headers
kaito_local.errors.UsageError   a configuration or a control call that means nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """An answer that says no; ``body`` is sent as JSON."""

    def __init__(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = dict(body)
        self.headers = dict(headers or {})


def arm_error(status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> Refusal:
    """Azure Resource Manager's own form: ``{"error": {"code", "message"}}``."""
    return Refusal(status, {"error": {"code": code, "message": message}}, headers)


def aks_error(status: int, code: str, message: str, *, subcode: str = "") -> Refusal:
    """The form of the AKS resource provider: a bare body, not wrapped in ``error``."""
    return Refusal(status, {"code": code, "details": None, "message": message, "subcode": subcode})
