from __future__ import annotations

import random
import threading

import pytest
from tests.eventually import PATIENCE, eventually
from tests.unit.runtime.clocks import TurnedClock

from kaito_hooks.runtime import Backoff, Key, Metrics, SystemClock
from kaito_hooks.runtime.queue import WorkQueue

A = Key("ns", "a")
B = Key("ns", "b")


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def queue(clock: TurnedClock) -> WorkQueue:
    return WorkQueue("q", clock=clock, backoff=Backoff(minimum=1.0, maximum=60.0, rng=random.Random(1)))


def test_a_key_added_many_times_is_handed_out_once(queue: WorkQueue) -> None:
    for _ in range(5):
        queue.add(A)
    assert queue.get(0) == A
    queue.done(A)
    assert queue.get(0) is None


def test_keys_are_handed_out_in_the_order_of_their_first_add(queue: WorkQueue) -> None:
    queue.add(B)
    queue.add(A)
    queue.add(B)
    assert [queue.get(0), queue.get(0)] == [B, A]


def test_a_key_in_a_workers_hands_is_not_handed_out_again_until_it_is_done(queue: WorkQueue) -> None:
    queue.add(A)
    assert queue.get(0) == A
    queue.add(A)
    queue.add(A)
    assert queue.get(0) is None
    queue.done(A)
    assert queue.get(0) == A
    queue.done(A)
    assert queue.get(0) is None


def test_a_delayed_key_comes_when_its_time_has_come(queue: WorkQueue, clock: TurnedClock) -> None:
    queue.add(A, after=10)
    assert queue.get(0) is None
    clock.turn(9.9)
    assert queue.get(0) is None
    clock.turn(0.2)
    assert queue.get(0) == A


def test_of_several_delays_the_earliest_holds_and_only_once(queue: WorkQueue, clock: TurnedClock) -> None:
    queue.add(A, after=10)
    queue.add(A, after=5)
    queue.add(A, after=20)
    clock.turn(6)
    assert queue.get(0) == A
    queue.done(A)
    clock.turn(60)
    assert queue.get(0) is None


def test_an_event_overtakes_a_delay(queue: WorkQueue) -> None:
    queue.add(A, after=10)
    queue.add(A)
    assert queue.get(0) == A


def test_the_back_off_of_one_key_grows_and_leaves_other_keys_alone(queue: WorkQueue) -> None:
    delays = [queue.add_failed(A) for _ in range(10)]
    for failures, delay in enumerate(delays):
        full = min(60.0, 2.0**failures)
        assert full / 2 <= delay <= full
    assert queue.add_failed(B) <= 1.0


def test_success_forgets_the_back_off(queue: WorkQueue) -> None:
    for _ in range(10):
        queue.add_failed(A)
    queue.forget(A)
    assert queue.add_failed(A) <= 1.0


def test_an_event_ends_an_ordinary_back_off(queue: WorkQueue) -> None:
    for _ in range(8):
        queue.add_failed(A)
    queue.add(A)
    assert queue.get(0) == A


def test_a_retry_after_is_kept_whatever_else_adds_the_key(queue: WorkQueue, clock: TurnedClock) -> None:
    queue.add(A)
    assert queue.get(0) == A
    queue.add(A)
    delay = queue.add_failed(A, retry_after=30)
    queue.done(A)
    assert 30 <= delay <= 33
    queue.add(A)
    queue.add(A, after=1)
    clock.turn(29.9)
    assert queue.get(0) is None
    clock.turn(3.2)
    assert queue.get(0) == A
    queue.done(A)
    queue.add(A)
    assert queue.get(0) == A


def test_a_closed_queue_hands_out_nothing_and_wakes_its_workers() -> None:
    queue = WorkQueue("q", clock=SystemClock(), backoff=Backoff())
    got: list[Key | None] = []
    workers = [threading.Thread(target=lambda: got.append(queue.get())) for _ in range(3)]
    for worker in workers:
        worker.start()
    queue.close()
    for worker in workers:
        worker.join(PATIENCE)
    assert got == [None, None, None]
    queue.add(A)
    assert queue.get(0) is None


def test_many_workers_never_hold_one_key_twice_and_lose_no_add() -> None:
    queue = WorkQueue("q", clock=SystemClock(), backoff=Backoff())
    keys = [Key("ns", str(number)) for number in range(7)]
    wanted = dict.fromkeys(keys, 0)  # the newest state of each key
    seen = dict.fromkeys(keys, -1)  # the state that the last worker saw
    held: set[Key] = set()
    twice: list[Key] = []
    lock = threading.Lock()

    def work() -> None:
        while (key := queue.get()) is not None:
            with lock:
                if key in held:
                    twice.append(key)
                held.add(key)
                seen[key] = wanted[key]
            with lock:
                held.discard(key)
            queue.done(key)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    rng = random.Random(7)
    for _ in range(5000):
        key = rng.choice(keys)
        with lock:
            wanted[key] += 1
        queue.add(key, after=rng.choice([0, 0, 0, 0.001]))

    def all_seen() -> bool:
        with lock:
            return seen == wanted

    eventually(all_seen)
    queue.close()
    for worker in workers:
        worker.join(PATIENCE)
    assert twice == []
    assert seen == wanted


def test_the_series_carry_the_names_and_values_of_client_gos_workqueue(clock: TurnedClock) -> None:
    metrics = Metrics()
    queue = WorkQueue("q", clock=clock, backoff=Backoff(), metrics=metrics)

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"name": "q", "controller": "q"})

    queue.add(A)
    queue.add(A)
    queue.add(B)
    assert value("workqueue_depth") == 2
    assert value("workqueue_adds_total") == 2
    clock.turn(3)
    assert queue.get(0) == A
    clock.turn(2)
    assert value("workqueue_depth") == 1
    assert value("workqueue_queue_duration_seconds_sum") == pytest.approx(3)
    assert value("workqueue_unfinished_work_seconds") == pytest.approx(2)
    assert value("workqueue_longest_running_processor_seconds") == pytest.approx(2)
    queue.add_failed(A)
    queue.done(A)
    assert value("workqueue_work_duration_seconds_sum") == pytest.approx(2)
    assert value("workqueue_retries_total") == 1
    assert value("workqueue_unfinished_work_seconds") == 0
