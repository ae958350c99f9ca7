"""What the log says of how the replicas are: how far they are now and then, and changes once."""

from __future__ import annotations

import logging

import pytest

from kaito_serving.engine.base import State
from kaito_serving.http.contract import Progress
from kaito_serving.run.supervision import Narrator


@pytest.fixture
def lines(caplog):
    """Tells a narrator what is given, each half a second after the one before; the lines that it writes."""
    caplog.set_level(logging.INFO, logger="kaito_serving")
    now = [100.0]
    narrator = Narrator(began=100.0, monotonic=lambda: now[0])

    def hear(*told: Progress) -> list[str]:
        caplog.clear()
        for each in told:
            now[0] += 0.5
            narrator.hear(each)
        return caplog.messages

    return hear


def loading(part, state=State.LOADING, message="loading weights"):
    return Progress(state=state, progress=part, message=message)


READY = Progress(state=State.READY)
FAILED = Progress(state=State.FAILED, message="The weights cannot be read.")
RESTARTING = Progress(state=State.RESTARTING, message="A process of the model died.")


def test_the_part_that_is_loaded_is_told_every_five_seconds(lines):
    parts = [loading(number / 100) for number in range(41)]
    assert lines(*parts) == [f"Loading weights: {part} %" for part in (9, 19, 29, 39)]


def test_a_start_without_a_known_part_is_told_when_it_is_over(lines):
    assert lines(*[loading(None)] * 40, READY, READY) == ["Ready after 20 s"]


def test_a_death_and_the_return_are_told_once_each(lines):
    lines(READY)
    again = loading(None, State.RESTARTING, "A process of the model died. Starting again: loading weights")
    assert lines(RESTARTING, RESTARTING, again, again, READY) == [
        "Not ready: A process of the model died.",
        "Ready again",
    ]


def test_every_attempt_that_fails_is_told_once(lines):
    lines(READY)
    again = loading(None, State.RESTARTING)
    sentence = "Not ready: The weights cannot be read."
    assert lines(RESTARTING, FAILED, FAILED, again, FAILED)[1:] == [sentence, sentence]


def test_fewer_replicas_than_wanted_are_told_although_requests_are_answered(lines):
    lines(READY)
    few = Progress(state=State.READY, message="3 of 4 replicas answer.")
    assert lines(few, few, READY) == ["3 of 4 replicas answer.", "Ready again"]
