"""Every way in which ARM and AKS refuse a pool, and what must come of it: the taxonomy of the provisioner's contract.

The names are those of the emulator's ready-made faults, which have the wire forms; reason, code and retries are written
down here on their own.
"""

from __future__ import annotations

from dataclasses import dataclass

MINUTE, HOUR = 60.0, 3600.0
_CAPACITY = (3 * MINUTE, 6 * MINUTE, 12 * MINUTE, 24 * MINUTE, 30 * MINUTE, 30 * MINUTE)
_TO_TEN_MINUTES = (1 * MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE, 10 * MINUTE, 10 * MINUTE)
_TO_AN_HOUR = (10 * MINUTE, 20 * MINUTE, 40 * MINUTE, HOUR, HOUR)
_TRANSIENT = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0)
_UNKNOWN = (1 * MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE, 15 * MINUTE, 15 * MINUTE)


@dataclass(frozen=True, slots=True)
class Row:
    """``begins``: how the claim's message begins. ``waiting``: no failure, the Workspace says that it waits.

    ``retries``: seconds from each refusal to the next try, without jitter.
    """

    name: str
    reason: str
    begins: str
    retries: tuple[float, ...]
    waiting: bool = False


ROWS = (
    Row("quota-vcpu", "QuotaExceeded", "ErrCode_InsufficientVCPUQuota: ", (10 * MINUTE,) * 3),
    Row("quota-zero", "QuotaExceeded", "ErrCode_InsufficientVCPUQuota: ", (HOUR,) * 3),
    Row("quota-family", "QuotaExceeded", "OperationNotAllowed: ", (10 * MINUTE,) * 3),
    Row("quota-regional", "QuotaExceeded", "OperationNotAllowed: ", (10 * MINUTE,) * 3),
    Row("quota-low-priority", "QuotaExceeded", "OperationNotAllowed: ", (10 * MINUTE,) * 3),
    Row("quota-async", "QuotaExceeded", "QuotaExceeded: ", (10 * MINUTE,) * 3),
    Row("size-not-available", "InstanceTypeUnavailable", "SkuNotAvailable: ", (HOUR,) * 3),
    Row("size-not-supported", "InstanceTypeUnavailable", "VMSizeNotSupported: ", (HOUR,) * 3),
    Row("size-not-for-subscription", "InstanceTypeUnavailable", "BadRequest: ", (HOUR,) * 3),
    Row("size-not-allowed", "InstanceTypeUnavailable", "BadRequest: ", (HOUR,) * 3),
    Row("allocation-failed", "InsufficientCapacity", "AllocationFailed: ", _CAPACITY),
    Row("zonal-allocation-failed", "InsufficientCapacity", "ZonalAllocationFailed: ", _CAPACITY),
    Row("overconstrained", "InsufficientCapacity", "OverconstrainedAllocationRequest: ", _CAPACITY),
    Row("overconstrained-zonal", "InsufficientCapacity", "OverconstrainedZonalAllocationRequest: ", _CAPACITY),
    Row("aks-capacity", "InsufficientCapacity", "AKSCapacityError: ", _CAPACITY),
    Row("aks-heavy-usage", "InsufficientCapacity", "AksCapacityHeavyUsage: ", _CAPACITY),
    Row("nested-allocation-failed", "InsufficientCapacity", "CreateVMSSAgentPoolFailed: ", _CAPACITY),
    Row("subnet-full", "ClusterFull", "CreateVMSSAgentPoolFailed: ", (10 * MINUTE,) * 3),
    Row("too-many-pools", "ClusterFull", "MaxAgentPoolCountReached: ", (10 * MINUTE,) * 3),
    Row("disallowed-by-policy", "NotAllowed", "RequestDisallowedByPolicy: ", _TO_AN_HOUR),
    Row("scope-locked", "NotAllowed", "ScopeLocked: ", _TO_AN_HOUR),
    Row("conflict", "OperationInProgress", "Conflict: ", (30.0,) * 3, waiting=True),
    Row("operation-in-progress", "OperationInProgress", "OperationNotAllowed: ", (30.0,) * 3, waiting=True),
    Row("operation-in-progress-400", "OperationInProgress", "OperationNotAllowed: ", (30.0,) * 3, waiting=True),
    Row("preempted", "OperationInProgress", "AKSOperationPreempted: ", (30.0,) * 3, waiting=True),
    Row("preempted-by-delete", "OperationInProgress", "AKSOperationPreemptedByDelete: ", (30.0,) * 3, waiting=True),
    Row("canceled", "OperationInProgress", "OperationCanceled: ", (30.0,) * 3, waiting=True),
    Row("token-expired", "AuthenticationFailed", "ExpiredAuthenticationToken: ", _TO_TEN_MINUTES),
    Row("unauthorized", "AuthenticationFailed", "AuthorizationFailed: ", _TO_TEN_MINUTES),
    Row("unauthorized-linked", "AuthenticationFailed", "LinkedAuthorizationFailed: ", _TO_TEN_MINUTES),
    Row("no-cluster", "ConfigurationError", "ResourceNotFound: ", _TO_TEN_MINUTES),
    Row("no-resource-group", "ConfigurationError", "ResourceGroupNotFound: ", _TO_TEN_MINUTES),
    Row("no-subscription", "ConfigurationError", "SubscriptionNotFound: ", _TO_TEN_MINUTES),
    Row("unregistered-provider", "ConfigurationError", "MissingSubscriptionRegistration: ", _TO_TEN_MINUTES),
    Row("invalid-parameter", "InvalidRequest", "InvalidParameter: ", (10 * MINUTE,) * 3),
    Row("bad-request", "InvalidRequest", "BadRequest: ", (10 * MINUTE,) * 3),
    Row("server-error", "LaunchFailed", "InternalOperationError: ", _TRANSIENT),
    Row("unavailable", "LaunchFailed", "ServiceUnavailable: ", _TRANSIENT),
    Row("timeout", "LaunchFailed", "RequestTimeout: ", _TRANSIENT),
    Row("gateway-page", "LaunchFailed", "HTTP 502: ", _TRANSIENT),
    Row("cut-before", "LaunchFailed", "ConnectionFailed: ", _TRANSIENT),
    Row("unknown-code", "LaunchFailed", "VMExtensionProvisioningError: ", _UNKNOWN),
    Row("failed-without-error", "LaunchFailed", "the creation of agent pool ", _UNKNOWN),
)
"""Refusals of one claim. Those that concern all claims, or leave a pool, are below."""

THROTTLED = (
    Row("throttled", "Throttled", "TooManyRequests: ", (7.0, 7.0), waiting=True),
    Row("throttled-without-time", "Throttled", "TooManyRequests: ", (30.0, 60.0, 120.0, 240.0, 300.0), waiting=True),
)
"""They close the gate before every ARM write."""

LOST_ANSWER = "cut-after"
"""The pool is made, the answer is not heard: nothing is to be tried again."""
