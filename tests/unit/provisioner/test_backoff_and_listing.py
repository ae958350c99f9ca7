"""Delays of the error classes, the throttle of writes, and the listing that all waiting claims share."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import pytest
from tests.driven.clock import SteppedClock
from tests.eventually import PATIENCE

from kaito_hooks.provisioner import errors
from kaito_hooks.provisioner.azure.listing import SharedListing
from kaito_hooks.provisioner.azure.throttle import Throttle
from kaito_hooks.provisioner.backoff import Backoff
from kaito_hooks.provisioner.cloud import Instance, State
from kaito_hooks.provisioner.errors import (
    AuthenticationFailed,
    CloudError,
    ConfigurationError,
    InstanceTypeUnavailable,
    InsufficientCapacity,
    InvalidRequest,
    LaunchFailed,
    OperationInProgress,
    PoolNameConflict,
    QuotaExceeded,
    Throttled,
)

MINUTE = 60.0


@pytest.mark.parametrize(
    ("error", "delays"),
    [
        (QuotaExceeded("c", "Current Limit: 6, Current Usage: 6"), [600, 600, 600]),
        (QuotaExceeded("c", "left quota 0. Current Limit: 0."), [3600, 3600]),
        (QuotaExceeded("c", "Current Limit: 0, Current Usage: 0"), [3600]),
        (QuotaExceeded("c", "Current Limit: 05"), [600]),
        (InstanceTypeUnavailable("c", "t"), [3600, 3600]),
        (InsufficientCapacity("c", "t"), [180, 360, 720, 1440, 1800, 1800]),
        (OperationInProgress("c", "t"), [30, 30]),
        (Throttled("c", "t", retry_after=7), [7, 7, 7, 8, 16]),
        (Throttled("c", "t", retry_after=0.2), [1, 2, 4]),
        (Throttled("c", "t", retry_after=0), [30, 60, 120, 240, 300]),
        (Throttled("c", "t"), [30, 60, 120, 240, 300]),
        (AuthenticationFailed("c", "t"), [60, 120, 240, 480, 600]),
        (ConfigurationError("c", "t"), [60, 120, 240, 480, 600]),
        (InvalidRequest("c", "t"), [600, 600]),
        (PoolNameConflict("c", "t"), [60, 60]),
        (LaunchFailed("c", "t", transient=True), [1, 2, 4, 8, 16, 32, 60, 60]),
        (LaunchFailed("c", "t"), [60, 120, 240, 480, 900, 900]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, CloudError) else "",
)
def test_delays_are_the_tables(error: CloudError, delays: list[float]) -> None:
    assert [error.delay(n) for n in range(1, len(delays) + 1)] == delays


def test_messages_are_one_line_of_at_most_800_characters() -> None:
    error = LaunchFailed("Code", "two\nlines " + "x" * 2000)
    assert error.message.startswith("Code: two lines x")
    assert len(error.message) == 800
    assert LaunchFailed("", "just text").message == "just text"


def test_every_class_has_its_own_name_as_reason() -> None:
    for kind in (QuotaExceeded, Throttled, InvalidRequest):
        assert kind("c", "t").reason == kind.__name__
    assert errors.InstanceChanged("c", "t").reason == "OperationInProgress"


def test_jitter_only_ever_adds() -> None:
    clock = SteppedClock()
    backoff = Backoff(clock, random.Random(3))
    delays = [backoff.failed(f"uid-{n}", QuotaExceeded("c", "t")) for n in range(100)]
    assert min(delays) >= 600
    assert max(delays) <= 720
    assert len(set(delays)) > 90


def test_a_failed_instance_that_is_looked_at_twice_counts_once() -> None:
    clock = SteppedClock()
    backoff = Backoff(clock, random.Random(3))
    first = backoff.failed("uid", InsufficientCapacity("c", "t"), instance="a")
    clock.advance(10)
    assert backoff.failed("uid", InsufficientCapacity("c", "t"), instance="a") == pytest.approx(first - 10)
    assert backoff.failed("uid", InsufficientCapacity("c", "t"), instance="b") >= 360


def test_another_error_in_between_does_not_reset_a_count() -> None:
    clock = SteppedClock()
    backoff = Backoff(clock, random.Random(3))
    backoff.failed("uid", InsufficientCapacity("c", "t"))
    backoff.failed("uid", LaunchFailed("c", "t", transient=True))
    clock.advance(10_000)
    assert backoff.failed("uid", InsufficientCapacity("c", "t")) >= 360


def test_success_forgets() -> None:
    backoff = Backoff(SteppedClock(), random.Random(3))
    backoff.failed("uid", QuotaExceeded("c", "t"))
    backoff.forget("uid")
    assert backoff.remaining("uid") == 0
    assert backoff.last_error("uid") is None


def test_the_gate_opens_after_the_longest_wait_that_was_asked_for() -> None:
    clock = SteppedClock()
    throttle = Throttle(clock, lambda: None)
    throttle.close(60)
    throttle.close(10)
    clock.advance(59)
    with pytest.raises(Throttled) as caught:
        throttle.check()
    assert caught.value.retry_after == pytest.approx(1)
    clock.advance(1)
    throttle.check()


def test_without_retry_after_the_gate_closes_for_longer_each_time() -> None:
    clock = SteppedClock()
    throttle = Throttle(clock, lambda: None)
    waits = []
    for _ in range(5):
        waits.append(throttle.close(None))
        clock.advance(waits[-1])
    assert waits == [30, 60, 120, 240, 300]
    throttle.succeeded()
    assert throttle.close(None) == 30


def test_a_retry_after_of_nothing_does_not_open_the_gate_at_once() -> None:
    clock = SteppedClock()
    throttle = Throttle(clock, lambda: None)
    assert throttle.close(0) == 30
    clock.advance(29)
    with pytest.raises(Throttled):
        throttle.check()


class Cloud:
    """A listing that takes as long as the test likes."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: CloudError | None = None
        self.names: list[str] = ["a"]
        self.entered = threading.Event()
        self.release = threading.Event()
        self.release.set()

    def fetch(self) -> Sequence[Instance]:
        self.calls += 1
        self.entered.set()
        assert self.release.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return [Instance(name, State.CREATING, {}) for name in self.names]


def test_a_listing_is_used_until_it_is_too_old() -> None:
    clock, cloud = SteppedClock(), Cloud()
    listing = SharedListing(cloud.fetch, clock)
    for _ in range(10):
        known, found = listing.look("a", max_age=5)
        assert known
        assert found is not None
    assert listing.look("b", max_age=5) == (True, None)
    assert cloud.calls == 1
    clock.advance(5.1)
    listing.look("a", max_age=5)
    assert cloud.calls == 2


def test_nobody_waits_for_a_listing_that_hangs() -> None:
    clock, cloud = SteppedClock(), Cloud()
    listing = SharedListing(cloud.fetch, clock)
    cloud.release.clear()
    slow = threading.Thread(target=lambda: listing.look("a", max_age=5))
    slow.start()
    assert cloud.entered.wait(PATIENCE)
    assert listing.look("a", max_age=5) == (False, None), "ask by name"
    cloud.release.set()
    slow.join(PATIENCE)
    cloud.release.clear()
    clock.advance(6)
    cloud.entered.clear()
    slow = threading.Thread(target=lambda: listing.look("a", max_age=5))
    slow.start()
    assert cloud.entered.wait(PATIENCE)
    assert listing.look("a", max_age=5)[0], "the last listing will do for a while"
    clock.advance(60)
    assert listing.look("a", max_age=5) == (False, None), "but not for ever"
    cloud.release.set()
    slow.join(PATIENCE)


def test_a_refused_listing_is_not_repeated_by_everybody() -> None:
    clock, cloud = SteppedClock(), Cloud()
    listing = SharedListing(cloud.fetch, clock)
    cloud.error = Throttled("c", "t", retry_after=20)
    for _ in range(10):
        with pytest.raises(Throttled):
            listing.look("a", max_age=5)
    assert cloud.calls == 1
    clock.advance(19)
    with pytest.raises(Throttled):
        listing.look("a", max_age=5)
    assert cloud.calls == 1
    clock.advance(2)
    cloud.error = None
    assert listing.look("a", max_age=5)[0]


def test_what_was_written_wins_over_an_older_listing() -> None:
    clock, cloud = SteppedClock(), Cloud()
    listing = SharedListing(cloud.fetch, clock)
    listing.look("b", max_age=5)
    clock.advance(1)
    made = Instance("b", State.CREATING, {})
    listing.wrote("b", made)
    assert listing.look("b", max_age=5) == (True, made)
    listing.wrote("b", None)
    assert listing.look("b", max_age=5) == (False, None), "the outcome is unknown: ask by name"
    clock.advance(10)
    assert listing.look("b", max_age=5) == (True, None), "a later listing knows better"
