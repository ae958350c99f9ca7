"""What ARM and AKS say when they refuse, read into the classes of provisioner/errors.py.

An answer is classified by its status and by every code in it: the outer one, AKS's ``subcode``, those of nested details
and those that a message quotes from the compute service. https://learn.microsoft.com/azure/aks/error-codes
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

from kaito_hooks.provisioner.errors import (
    AuthenticationFailed,
    CloudError,
    ClusterFull,
    ConfigurationError,
    DisallowedByPolicy,
    InstanceChanged,
    InstanceTypeUnavailable,
    InsufficientCapacity,
    InvalidRequest,
    LaunchFailed,
    NotAllowed,
    OperationInProgress,
    QuotaExceeded,
    Throttled,
)

LONGEST_RETRY_AFTER = 3600.0
"""Seconds: ARM counts requests by the hour at most. What asks for more is a proxy, or a date by another clock."""
_POLICY_CODES = {"requestdisallowedbypolicy"}
_POLICY_TEXTS = ("disallowed by policy",)
_NOT_ALLOWED_CODES = {
    "scopelocked",
    "readonlydisabledsubscription",
    "subscriptiondisabled",
    "denyassignmentauthorizationfailed",
}
_NOT_ALLOWED_TEXTS = ("is disabled and therefore marked as read only",)
_QUOTA_TEXTS = (
    "family cores quota",
    "total regional cores quota",
    "lowprioritycores",
    "submit a request for quota increase",
)
_QUOTA_CODES = {
    "errcode_insufficientvcpuquota",
    "insufficientvcpuquota",
    "quotaexceeded",
    "publicipcountlimitreached",
    "ipv4basicskupublicipcountlimitreached",
    "ipv4standardskupublicipcountlimitreached",
}
_SUBNET_CODES = {"subnetisfull", "insufficientsubnetsize"}
_SUBNET_ADVICE = "The subnet of the cluster's nodes has no addresses left: enlarge it, or delete pools or Pods in it."
# https://learn.microsoft.com/azure/aks/quotas-skus-regions: a cluster has at most 100 agent pools.
_TOO_MANY_POOLS = re.compile(
    r"\b(?:maximum|limit|exceed\w*|more than)\b[^.]{0,60}\b(?:agent|node) ?pools\b"
    r"|\b(?:number of (?:agent|node) ?pools|(?:agent|node) ?pool count)\b[^.]{0,60}\b(?:maximum|limit|exceed\w*)\b",
    re.IGNORECASE,
)
_POOL_LIMIT = "maxagentpoolcountreached"
_POOLS_ADVICE = "The cluster has as many agent pools as AKS allows, and each node takes one: delete pools."
_UNOFFERED_TEXTS = (
    "is not supported for subscription",
    "is not allowed in your subscription in location",
    "is currently not available in location",
    "not available in the current region",
)
_UNOFFERED_CODES = {"skunotavailable", "vmsizenotsupported"}
_CAPACITY_CODES = {
    "allocationfailed",
    "zonalallocationfailed",
    "overconstrainedallocationrequest",
    "overconstrainedzonalallocationrequest",
    "akscapacityerror",
    "akscapacityheavyusage",
}
_OPERATION_NOT_ALLOWED = "operationnotallowed"
_BUSY_CODES = {"anotheroperationinprogress", "operationpreempted"}
_CONFLICT = "conflict"
_FORBIDDEN_CODES = {"authorizationfailed", "linkedauthorizationfailed"}
_NOT_FOUND = "notfound"
_MISSING_CODES = {"resourcenotfound", "parentresourcenotfound", "resourcegroupnotfound", "subscriptionnotfound"}
_UNREGISTERED = "missingsubscriptionregistration"
_QUOTED_CODE = re.compile(r"""code[\\"']*\s*[=:]\s*[\\"']*(\w+)""", re.IGNORECASE)
# AKS names the pool in the first words of its own sentence, ARM in the path of the resource.
_AGENT_POOL_MISSING = {
    _NOT_FOUND: re.compile(r"^(?:could not find )?(?:the )?agent ?pool\b", re.IGNORECASE),
    "resourcenotfound": re.compile(r"^agent ?pool\b|/managedclusters/[^/\s']+/agentpools/", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An ARM error. ``status`` is None for an operation that failed later; ``codes`` are lower case."""

    status: int | None
    code: str
    message: str
    codes: tuple[str, ...]
    retry_after: float | None = None

    @classmethod
    def of(cls, status: int | None, body: Any, *, retry_after: float | None = None) -> Refusal:
        """Read ``{"error": {code, message, details}}``, AKS's bare ``{"code", "message", "subcode"}`` or the SDK's
        model.
        """
        error = body
        if _field(body, "error") is not None:
            error = _field(body, "error")
        code, message = str(_field(error, "code") or ""), _message(error)
        codes = [found.lower() for found in _codes(error)] + [c.lower() for c in _QUOTED_CODE.findall(message)]
        return cls(status, code, message, tuple(dict.fromkeys(codes)), retry_after)

    def has(self, codes: set[str]) -> bool:
        """Whether one of these codes is anywhere in it."""
        return any(code in codes for code in self.codes)

    def says(self, texts: Sequence[str]) -> bool:
        """Whether its message contains one of these texts."""
        return any(text in self.message.lower() for text in texts)


def classify(refusal: Refusal) -> CloudError:
    """The class of an ARM error; the order matters, as codes are shared."""
    code, text, status = refusal.code or f"HTTP {refusal.status}", refusal.message, refusal.status
    if status == 429:
        return Throttled(code, text, retry_after=refusal.retry_after)
    if refusal.has(_POLICY_CODES) or refusal.says(_POLICY_TEXTS):
        return DisallowedByPolicy(code, text)
    if refusal.has(_NOT_ALLOWED_CODES) or refusal.says(_NOT_ALLOWED_TEXTS):
        return NotAllowed(code, text)
    if refusal.has(_QUOTA_CODES) or (_OPERATION_NOT_ALLOWED in refusal.codes and refusal.says(_QUOTA_TEXTS)):
        return QuotaExceeded(code, text)
    if refusal.has(_SUBNET_CODES):
        return ClusterFull(code, f"{_SUBNET_ADVICE} {text}")
    if _POOL_LIMIT in refusal.codes or _TOO_MANY_POOLS.search(text):
        return ClusterFull(code, f"{_POOLS_ADVICE} {text}")
    if refusal.has(_CAPACITY_CODES):
        return InsufficientCapacity(code, text)
    if refusal.has(_UNOFFERED_CODES) or refusal.says(_UNOFFERED_TEXTS):
        return InstanceTypeUnavailable(code, text)
    if _is_busy(refusal):
        return OperationInProgress(code, text)
    if status == 401 or refusal.has(_FORBIDDEN_CODES):
        return AuthenticationFailed(code, text)
    if status == 403:
        return AuthenticationFailed(code, text)
    if refusal.has(_MISSING_CODES) or _UNREGISTERED in refusal.codes or (status == 404 and code.lower() == _NOT_FOUND):
        return ConfigurationError(code, text)
    if status == 412:
        return InstanceChanged(code, text)
    if status == 400:
        return InvalidRequest(code, text)
    transient = status is not None and (status == 408 or status >= 500)
    return LaunchFailed(code, text, transient=transient, retry_after=refusal.retry_after)


def _is_busy(refusal: Refusal) -> bool:
    """Whether another operation holds the cluster or the pool; the bare code Conflict says so only as the answer."""
    if refusal.has(_BUSY_CODES) or any(code.startswith("aksoperationpreempted") for code in refusal.codes):
        return True
    if refusal.code.lower() == _CONFLICT and refusal.status in (None, 409):
        return True
    return _OPERATION_NOT_ALLOWED in refusal.codes and refusal.says(("in progress",))


def from_sdk(error: Exception, now: datetime) -> CloudError:
    """The class of whatever the SDK, a credential or the connection raised."""
    if isinstance(error, CloudError):
        return error
    if isinstance(error, ClientAuthenticationError):
        # From ARM (401) or from the token endpoint, which answers 400 to what is no fault of the claim's.
        found = re.search(r"AADSTS\d+", str(error))
        code = error.error.code if error.error is not None and error.error.code else type(error).__name__
        return AuthenticationFailed(found[0] if found else code, _first_line(error))
    if isinstance(error, HttpResponseError) and error.response is not None:
        if (error.status_code or 400) < 400:
            return unreadable(error)
        return classify(_refusal(error, now))
    if isinstance(error, ServiceRequestError):
        return LaunchFailed("ConnectionFailed", f"the request was not sent: {_first_line(error)}", transient=True)
    if isinstance(error, ServiceResponseError):
        return LaunchFailed("ConnectionFailed", f"no answer came back: {_first_line(error)}", transient=True)
    if isinstance(error, AzureError):
        return LaunchFailed(type(error).__name__, _first_line(error), transient=True)
    raise error


def unreadable(error: Exception) -> LaunchFailed:
    """The class of a success whose body is not what was asked for: a proxy's page, or a connection that broke off."""
    return LaunchFailed("UnreadableAnswer", f"ARM's answer cannot be read: {_first_line(error)}", transient=True)


def is_missing_instance(error: Exception) -> bool:
    """Whether a 404 says that the agent pool, and not the cluster or anything above it, does not exist."""
    response = getattr(error, "response", None)
    if not isinstance(error, HttpResponseError) or response is None or response.status_code != 404:
        return False
    body = _body(error)
    missing = _AGENT_POOL_MISSING.get(Refusal.of(404, body).code.lower())
    # Only its own sentence counts: details, or a group with "agentpool" in its name, may go with a missing cluster.
    sentence = str(_field(_field(body, "error") or body, "message") or "")
    return missing is not None and missing.search(sentence) is not None


def retry_after(headers: Any, now: datetime) -> float | None:
    """Seconds of a Retry-After header, which is a number or an HTTP date, an hour at most; None without a usable
    one.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("x-ms-retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        text = headers.get(name)
        if not text:
            continue
        try:
            seconds = float(text) * scale
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(text) - now).total_seconds()
            except (TypeError, ValueError):
                continue
        if not math.isnan(seconds):
            return min(max(0.0, seconds), LONGEST_RETRY_AFTER)
    return None


def _refusal(error: HttpResponseError, now: datetime) -> Refusal:
    response: Any = error.response
    wait = retry_after(response.headers, now)
    refusal = Refusal.of(response.status_code, _body(error), retry_after=wait)
    if refusal.code or refusal.message:
        return refusal
    return Refusal(refusal.status, "", error.reason or _first_line(error), refusal.codes, wait)


def _body(error: HttpResponseError) -> Any:
    try:
        return error.response.json()  # type: ignore[union-attr]
    except Exception:  # what a proxy or a cut connection left is no JSON, in more ways than one can name
        return {}


def _codes(error: Any) -> Iterator[str]:
    for name in ("code", "subcode"):
        value = _field(error, name)
        if value:
            yield str(value)
    details = _field(error, "details")
    if isinstance(details, list):
        for detail in details:
            yield from _codes(detail)
            yield from _QUOTED_CODE.findall(str(_field(detail, "message") or ""))
    inner = _field(error, "innererror")
    if inner is not None:
        yield from _codes(inner)


def _message(error: Any) -> str:
    """Its message and those of its details, which name the cause where the outer one only says what failed."""
    message = str(_field(error, "message") or "")
    details = _field(error, "details")
    for detail in details if isinstance(details, list) else ():
        inner = _message(detail)
        if inner and inner not in message:
            code = _field(detail, "code")
            message = " ".join(filter(None, (message, f"{code}:" if code else "", inner)))
    return message


def _field(holder: Any, name: str) -> Any:
    if isinstance(holder, dict):
        return holder.get(name)
    return getattr(holder, name, None)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
