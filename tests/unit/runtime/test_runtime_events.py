"""What a recorder gathers into one Event, and what it writes at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.eventually import PATIENCE, eventually
from tests.unit.runtime.tiny_server import TinyServer, answer

from kaito_hooks.runtime import EventRecorder, Obj
from kaito_hooks.runtime.client import events

LONG = 3600.0


def subject(name: str = "phi") -> Obj:
    return {"apiVersion": "v1", "kind": "Thing", "metadata": {"namespace": "ns", "name": name, "uid": f"uid-{name}"}}


@contextmanager
def recording(
    folder: Path, *, gather: float, busy: Callable[[], bool] = lambda: False
) -> Iterator[tuple[EventRecorder, TinyServer]]:
    with TinyServer(answer(201, {})) as server:
        recorder = EventRecorder(server.client(folder), component="test", gather=gather, busy=busy)
        yield recorder, server
        recorder.close(PATIENCE)


def written(server: TinyServer) -> list[tuple[str, str, str, str]]:
    bodies = [request.json for request in list(server.requests)]
    return [(b["involvedObject"]["name"], b["type"], b["reason"], b["message"]) for b in bodies]


def test_steps_that_follow_one_another_are_one_event_under_the_last_reason(tmp_path: Path) -> None:
    with recording(tmp_path, gather=LONG) as (recorder, server):
        recorder.event(subject(), "Normal", "Bought", "one node")
        recorder.event(subject("other"), "Normal", "Bought", "two nodes")
        recorder.event(subject(), "Normal", "Ready", "it is ready")
        recorder.event(subject(), "Normal", "Ready", "it is ready")
        assert recorder.flush(PATIENCE)
        assert written(server) == [
            ("phi", "Normal", "Ready", "one node; it is ready"),
            ("other", "Normal", "Bought", "two nodes"),
        ]


def test_a_warning_is_written_at_once_after_what_happened_before_it(tmp_path: Path) -> None:
    with recording(tmp_path, gather=LONG) as (recorder, server):
        recorder.event(subject("other"), "Normal", "Bought", "two nodes")
        recorder.event(subject(), "Normal", "Bought", "one node")
        recorder.event(subject(), "Warning", "NoCapacity", "the region has none left")
        eventually(lambda: len(server.requests) == 2)
        assert written(server) == [
            ("phi", "Normal", "Bought", "one node"),
            ("phi", "Warning", "NoCapacity", "the region has none left"),
        ]


def test_what_is_told_alone_is_written_at_once_under_its_own_reason(tmp_path: Path) -> None:
    with recording(tmp_path, gather=LONG) as (recorder, server):
        recorder.event(subject(), "Normal", "Bought", "one node")
        recorder.event(subject(), "Normal", "Trained", "the loss is 1.5", alone=True)
        recorder.event(subject(), "Normal", "Ready", "it is ready")
        eventually(lambda: len(server.requests) == 2)
        assert written(server) == [
            ("phi", "Normal", "Bought", "one node"),
            ("phi", "Normal", "Trained", "the loss is 1.5"),
        ]


def test_an_event_does_not_wait_longer_than_it_may(tmp_path: Path) -> None:
    with recording(tmp_path, gather=0.05) as (recorder, server):
        recorder.event(subject(), "Normal", "Bought", "one node")
        eventually(lambda: written(server) == [("phi", "Normal", "Bought", "one node")])


def test_what_is_gathered_waits_for_more_important_work(tmp_path: Path) -> None:
    idle, asked = threading.Event(), threading.Event()

    def busy() -> bool:
        asked.set()
        return not idle.is_set()

    with recording(tmp_path, gather=0.01, busy=busy) as (recorder, server):
        recorder.event(subject(), "Normal", "Bought", "one node")
        assert asked.wait(PATIENCE)
        recorder.event(subject(), "Normal", "Ready", "it is ready")
        idle.set()
        eventually(lambda: written(server) == [("phi", "Normal", "Ready", "one node; it is ready")])


def test_an_answer_that_asks_for_an_hour_of_patience_keeps_no_event_for_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread writes the Events of all: a limit on those of one namespace must not silence the others."""
    monkeypatch.setattr(events, "_LONGEST_PAUSE", 0.2)
    with recording(tmp_path, gather=0.0) as (recorder, server):
        refusals = iter([answer(429, {}, Retry_After="3600")])
        server.script = lambda handler: next(refusals, answer(201, {}))(handler)
        recorder.event(subject(), "Warning", "NoCapacity", "the region has none left")
        recorder.event(subject("other"), "Warning", "NoCapacity", "the region has none left")
        eventually(lambda: [name for name, *_ in written(server)] == ["phi", "phi", "other"])


@pytest.mark.parametrize("separator", [".", "-", ".-"], ids=["a dot", "a dash", "both"])
def test_an_event_of_an_object_with_the_longest_name_has_a_name_that_is_one(tmp_path: Path, separator: str) -> None:
    """RFC 1123, as the API server asks: each part begins and ends with a letter or a digit, 253 characters at most."""
    begin = "a" * (230 - len(separator)) + separator
    with recording(tmp_path, gather=0.0) as (recorder, server):
        recorder.event(subject(begin + "b" * (253 - len(begin))), "Warning", "Evicted", "it had to go")
        assert recorder.flush(PATIENCE)
        name = server.requests[0].json["metadata"]["name"]
        assert len(name) <= 253
        assert all(part and part[0].isalnum() and part[-1].isalnum() for part in name.split("."))


def test_texts_that_are_too_long_together_stay_events_of_their_own(tmp_path: Path) -> None:
    with recording(tmp_path, gather=LONG) as (recorder, server):
        for letter in "ab":
            recorder.event(subject(), "Normal", "Seen", letter * 600)
        assert recorder.flush(PATIENCE)
        assert [message for *_, message in written(server)] == ["a" * 600, "b" * 600]


@pytest.mark.parametrize("gather", [0.0, LONG])
def test_what_was_gathered_is_written_at_the_end(tmp_path: Path, gather: float) -> None:
    with recording(tmp_path, gather=gather) as (recorder, server):
        recorder.event(subject(), "Normal", "Bought", "one node")
        recorder.close(PATIENCE)
        assert written(server) == [("phi", "Normal", "Bought", "one node")]
        recorder.event(subject(), "Normal", "Ready", "too late")
        assert recorder.flush(PATIENCE)
        assert len(server.requests) == 1
