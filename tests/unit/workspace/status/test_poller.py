"""Asking Pods beside the reconciles: nobody waits for a Pod that does not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.answering import PORT, answering
from tests.eventually import eventually

from kaito_hooks.runtime import Controller, Key, Result
from kaito_hooks.workspace.status.poller import LONGEST_PAUSE, WORKERS, ProgressPoller
from kaito_hooks.workspace.status.progress import PERIOD

Obj = dict[str, Any]
KEY = Key("models", "phi")
LOADING = {"state": "loading", "message": "loading weights"}
REFUSING = "127.255.255.1", 1


class Polled:
    """A poller; ``wanted`` and ``told``: the Workspaces that it has polled and that it has told something of."""

    def __init__(self) -> None:
        self.poller = ProgressPoller()
        self.wanted: list[Key] = []
        self.told: list[Key] = []
        self.poller.connect(poll=self.wanted.append, tell=self.told.append)


def test_what_a_pod_answers_is_there_at_the_next_look_and_told_once() -> None:
    polled = Polled()
    with answering(LOADING) as server:
        places = {"uid-1": (server.address, PORT)}
        assert polled.poller.answers(KEY, places) == {}
        assert (polled.wanted, server.asked) == ([KEY], [])
        assert polled.poller.poll(KEY) == Result(requeue_after=PERIOD)
        assert polled.poller.answers(KEY, places) == {"uid-1": LOADING}
        assert polled.told == [KEY]
        polled.poller.poll(KEY)
        assert polled.told == [KEY]
        server.said = {"state": "restarting", "message": "out of memory"}
        polled.poller.poll(KEY)
        assert polled.told == [KEY, KEY]
        assert polled.poller.answers(KEY, places) == {"uid-1": server.said}
        assert polled.wanted == [KEY]


def test_only_the_pods_of_the_last_look_are_asked() -> None:
    polled = Polled()
    with answering(LOADING) as one, answering({"state": "failed"}) as other:
        places = {"uid-1": (one.address, PORT)}
        polled.poller.answers(KEY, places)
        polled.poller.poll(KEY)
        both = places | {"uid-2": (other.address, PORT)}
        assert polled.poller.answers(KEY, both) == {"uid-1": LOADING}
        polled.poller.poll(KEY)
        assert polled.poller.answers(KEY, both) == {"uid-1": LOADING, "uid-2": {"state": "failed"}}
        assert polled.wanted == [KEY, KEY]
        assert polled.poller.answers(KEY, {}) == {}
        assert polled.poller.poll(KEY) == Result()
        assert (len(one.asked), len(other.asked)) == (2, 1)
        assert polled.poller.answers(KEY, places) == {}


@pytest.fixture
def mute() -> Iterator[tuple[str, int]]:
    """Where a connection is taken and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()


def test_who_lets_wait_is_asked_ever_more_seldom_until_it_answers(mute: tuple[str, int]) -> None:
    polled = Polled()
    with answering(LOADING) as server:
        polled.poller.answers(KEY, {"uid-1": mute})
        pauses = [polled.poller.poll(KEY).requeue_after for _ in range(5)]
        assert pauses == [PERIOD, 2 * PERIOD, 4 * PERIOD, LONGEST_PAUSE, LONGEST_PAUSE]
        assert polled.told == []
        polled.poller.answers(KEY, {"uid-1": mute, "uid-2": (server.address, PORT)})
        assert polled.poller.poll(KEY).requeue_after == PERIOD
        assert polled.poller.answers(KEY, {"uid-1": mute}) == {}
        assert polled.poller.poll(KEY).requeue_after == PERIOD


def test_a_container_that_only_starts_is_asked_as_often_as_one_that_answers() -> None:
    polled = Polled()
    polled.poller.answers(KEY, {"uid-1": REFUSING})
    assert [polled.poller.poll(KEY).requeue_after for _ in range(4)] == [PERIOD] * 4


def test_an_answer_counts_for_nothing_once_its_pod_is_not_to_be_asked(mute: tuple[str, int]) -> None:
    polled = Polled()
    polled.poller.answers(KEY, {"uid-1": mute})
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(polled.poller.poll, KEY)
        polled.poller.answers(KEY, {})
        assert asking.result() == Result()
    assert polled.told == []


def test_reconciles_go_on_while_every_worker_waits_for_pods_that_do_not_answer(mute: tuple[str, int]) -> None:
    poller, looked = ProgressPoller(), []
    crowd = [Key("models", f"mute-{n}") for n in range(100)]

    def reconcile(key: Key) -> Result:
        looked.append(key)
        poller.answers(key, {"uid": mute} if key in crowd else {})
        return Result()

    polling = Controller("progress", reconcile=poller.poll, workers=WORKERS, resync=None)
    controller = Controller("workspace", reconcile=reconcile, workers=1, resync=None)
    poller.connect(poll=polling.enqueue, tell=controller.enqueue)
    polling.start()
    controller.start()
    try:
        for key in (*crowd, KEY):
            controller.enqueue(key)
        eventually(lambda: KEY in looked)
    finally:
        controller.stop()
        polling.stop()
        assert controller.join(60.0)
        assert polling.join(60.0)
