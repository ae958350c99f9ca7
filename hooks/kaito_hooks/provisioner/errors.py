"""What a cloud refuses, by what to do about it. A class's name is the reason that users see on the claim.

CloudError
├── QuotaExceeded            the subscription may not have so many cores: 10 min, 1 h when the limit is 0
├── InstanceTypeUnavailable  this size is not offered to this subscription, here: 1 h
├── InsufficientCapacity     the cloud has none left for now: 3 min doubling to 30 min
├── ClusterFull              the cluster has no room for another pool, of whatever size: 10 min
├── NotAllowed               a lock or a disabled subscription forbids it: 10 min doubling to 1 h
│   └── DisallowedByPolicy   a policy does, which may allow another size
├── OperationInProgress      the cloud is busy with this cluster or pool: 30 s
│   └── InstanceChanged      it changed between our look and our write: look again
├── Throttled                too many requests: what Retry-After says (at least 1 s doubling), else 30 s to 5 min
├── AuthenticationFailed     no token, or not allowed: 1 min doubling to 10 min
├── ConfigurationError       the cluster, group or subscription is not there: 1 min doubling to 10 min
│   └── WrongCluster         it is there, but it is not the one that we serve
├── InvalidRequest           the claim cannot become a machine as it is: 10 min
├── PoolNameConflict         a pool of that name is somebody else's: 1 min
└── LaunchFailed             anything else: 1 s doubling to 60 s if it may pass by itself, else 1 min to 15 min
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

MESSAGE_LIMIT = 800
MINUTE = 60.0
HOUR = 3600.0

_NO_QUOTA_AT_ALL = re.compile(
    r"(?:current limit|maximum allowed|limit)\s*[:=]?\s*(?:of\s+)?0(?!\d|\.\d)", re.IGNORECASE
)


class CloudError(Exception):
    """A refusal: ``code`` in the cloud's words, ``text`` for people, ``retry_after`` in seconds if it gave one."""

    first_delay: ClassVar[float] = 1.0
    longest_delay: ClassVar[float] = MINUTE

    def __init__(self, code: str, text: str, *, retry_after: float | None = None) -> None:
        self.code = code
        self.text = text
        self.retry_after = retry_after
        super().__init__(self.message)

    @property
    def reason(self) -> str:
        """The reason on the claim's launch condition."""
        return type(self).__name__

    @property
    def message(self) -> str:
        """``<code>: <text>`` on one line of at most 800 characters."""
        return self.within(MESSAGE_LIMIT)

    def within(self, limit: int) -> str:
        """The message, cut at its end to at most ``limit`` characters."""
        line = " ".join(f"{self.code}: {self.text}".split()) if self.code else " ".join(self.text.split())
        return line if len(line) <= limit else line[: limit - 3] + "..."

    def delay(self, failures: int) -> float:
        """Seconds until the next try after ``failures`` (from 1) of this class in a row, without jitter."""
        return min(self.longest_delay, self.first_delay * _doublings(failures))


class QuotaExceeded(CloudError):
    """The subscription's quota of cores is used up."""

    first_delay = longest_delay = 10 * MINUTE

    def delay(self, failures: int) -> float:
        """A limit of 0 is not lifted by waiting for somebody else's cores."""
        return HOUR if _NO_QUOTA_AT_ALL.search(self.text) else super().delay(failures)


class InstanceTypeUnavailable(CloudError):
    """The instance type is unknown or not offered to this subscription in this region."""

    first_delay = longest_delay = HOUR


class InsufficientCapacity(CloudError):
    """The region has no such machine left."""

    first_delay, longest_delay = 3 * MINUTE, 30 * MINUTE


class ClusterFull(CloudError):
    """The cluster's subnet or its number of agent pools is used up."""

    first_delay = longest_delay = 10 * MINUTE


class NotAllowed(CloudError):
    """Somebody forbade it on purpose; no role of ours would help."""

    first_delay, longest_delay = 10 * MINUTE, HOUR


class DisallowedByPolicy(NotAllowed):
    """A policy of the subscription, often one of allowed sizes."""

    @property
    def reason(self) -> str:
        """For users not allowed like anything else."""
        return NotAllowed.__name__


class OperationInProgress(CloudError):
    """Another operation holds the cluster or the pool; waiting, not failure."""

    first_delay = longest_delay = 30.0


class InstanceChanged(OperationInProgress):
    """A conditional write found another state than the one that was looked at."""

    first_delay, longest_delay = 1.0, 5.0

    @property
    def reason(self) -> str:
        """Users need not tell this from any other operation."""
        return OperationInProgress.__name__


class Throttled(CloudError):
    """Too many requests to the subscription."""

    first_delay, longest_delay = 30.0, 5 * MINUTE

    def delay(self, failures: int) -> float:
        """Never earlier than Retry-After, which shortens the 30 s but not below 1 s doubling. A Retry-After of 0, as
        from a date in our past, says nothing.
        """
        if not self.retry_after:
            return super().delay(failures)
        return max(self.retry_after, min(self.longest_delay, _doublings(failures)))


class AuthenticationFailed(CloudError):
    """No usable token, or the identity lacks the role."""

    first_delay, longest_delay = MINUTE, 10 * MINUTE


class ConfigurationError(CloudError):
    """The provisioner is pointed at something that does not exist."""

    first_delay, longest_delay = MINUTE, 10 * MINUTE


class WrongCluster(ConfigurationError):
    """The configured cluster exists and is certainly not the one that the provisioner serves."""

    @property
    def reason(self) -> str:
        """For users a configuration error like any other."""
        return ConfigurationError.__name__


class InvalidRequest(CloudError):
    """The request can never succeed as it is."""

    first_delay = longest_delay = 10 * MINUTE


class PoolNameConflict(CloudError):
    """A pool of the claim's name exists and is not ours."""

    first_delay = longest_delay = MINUTE


class LaunchFailed(CloudError):
    """An error without a class of its own. ``transient``: a server or connection fault that may pass by itself."""

    def __init__(self, code: str, text: str, *, transient: bool = False, retry_after: float | None = None) -> None:
        super().__init__(code, text, retry_after=retry_after)
        self.transient = transient

    def delay(self, failures: int) -> float:
        """1 s doubling to 60 s when transient, else 1 min doubling to 15 min; never earlier than Retry-After."""
        doubled = _doublings(failures)
        delay = min(MINUTE, doubled) if self.transient else min(15 * MINUTE, MINUTE * doubled)
        return max(delay, self.retry_after or 0.0)


CAPACITY_ERRORS = (QuotaExceeded, InstanceTypeUnavailable, InsufficientCapacity)
"""What Karpenter calls insufficient capacity: another instance type could avoid it."""
HELPED_BY_ANOTHER_TYPE = (*CAPACITY_ERRORS, DisallowedByPolicy)
"""Errors with which other instance types are named."""


def reasons() -> tuple[str, ...]:
    """The reasons of all kinds of refusals."""

    def below(kind: type[CloudError]) -> Iterator[str]:
        for found in kind.__subclasses__():
            yield found.__name__
            yield from below(found)

    return tuple(below(CloudError))


def _doublings(failures: int) -> float:
    """1, 2, 4, ... for the first, second, third failure."""
    return 2.0 ** min(max(failures - 1, 0), 32)
