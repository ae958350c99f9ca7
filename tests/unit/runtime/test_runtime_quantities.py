from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_hooks.runtime import format_duration, format_time, parse_duration, parse_quantity, parse_time
from kaito_hooks.runtime.clock import format_micro_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("15s", 15.0),
        ("500ms", 0.5),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("100us", 0.0001),
        ("1h0m0.25s", 3600.25),
        ("-30s", -30.0),
        ("+2m", 120.0),
    ],
)
def test_a_duration_is_read_as_go_reads_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "15", "1d", "s", "1h 30m", "one minute", "-", "1e3s", "--1s"])
def test_what_go_refuses_as_a_duration_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (15, "15s"), (0.5, "500ms"), (5400, "1h30m"), (-90.25, "-1m30s250ms")]
)
def test_a_duration_is_written_in_whole_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(min_value=-(10**12), max_value=10**12))
def test_a_written_duration_is_read_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16Gi", Decimal(16 * 2**30)),
        ("1.5Gi", Decimal(3 * 2**29)),
        ("100m", Decimal("0.1")),
        ("2", Decimal(2)),
        (2, Decimal(2)),
        ("1e3", Decimal(1000)),
        ("1E3", Decimal(1000)),
        ("1E", Decimal(10**18)),
        ("12k", Decimal(12000)),
        ("250u", Decimal("0.00025")),
        ("-1Ki", Decimal(-1024)),
    ],
)
def test_a_quantity_has_the_value_that_kubernetes_gives_it(text: str | int, value: Decimal) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1GiB", "0x10", "1K", "ten", "1..5", True])
def test_what_kubernetes_refuses_as_a_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


def test_times_are_written_as_the_api_server_writes_them() -> None:
    when = datetime(2026, 1, 2, 15, 4, 5, 678901, tzinfo=UTC)
    assert format_time(when) == "2026-01-02T15:04:05Z"
    assert format_micro_time(when) == "2026-01-02T15:04:05.678901Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02T15:04:05Z",
        "2026-01-02T16:04:05+01:00",
        "2026-01-02T15:04:05.000000Z",
        "2026-01-02T15:04:05.000000000Z",
    ],
)
def test_every_form_of_a_time_is_read(text: str) -> None:
    assert parse_time(text) == datetime(2026, 1, 2, 15, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-02T15:04:05"])
def test_a_time_without_a_zone_or_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an RFC 3339 time|no time zone"):
        parse_time(text)
