from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.eventually import PATIENCE, eventually, never
from tests.unit.runtime.clocks import TurnedClock
from tests.unit.runtime.tiny_server import TinyServer, answer, stream

from kaito_hooks.runtime import (
    Backoff,
    Conflict,
    Controller,
    Informer,
    Key,
    LeadershipLost,
    Metrics,
    Obj,
    Resource,
    Result,
    TooManyRequests,
)
from kaito_hooks.runtime.queue import WorkQueue
from kaito_hooks.runtime.threads import SupervisedThread

A = Key("ns", "a")
FAST = Backoff(minimum=0.001, maximum=0.01, rng=random.Random(5))


class Recorder:
    """Reconciles by script and remembers its calls."""

    def __init__(self, *script: BaseException | Result) -> None:
        self.calls: list[Key] = []
        self.times: list[float] = []
        self._script = list(script)
        self._lock = threading.Lock()

    def __call__(self, key: Key) -> Result:
        with self._lock:
            self.calls.append(key)
            self.times.append(time.monotonic())
            step = self._script.pop(0) if self._script else Result()
        if isinstance(step, BaseException):
            raise step
        return step


def started(reconcile: Recorder, metrics: Metrics | None = None, **settings: object) -> Controller:
    controller = Controller("c", reconcile=reconcile, metrics=metrics, backoff=FAST, **settings)  # type: ignore[arg-type]
    controller.start()
    return controller


def test_a_reconcile_that_raises_comes_back_until_it_succeeds() -> None:
    reconcile = Recorder(RuntimeError("one"), KeyError("two"), ValueError("three"))
    metrics = Metrics()
    controller = started(reconcile, metrics)
    controller.enqueue(A)
    eventually(lambda: len(reconcile.calls) == 4)
    value = metrics.registry.get_sample_value
    eventually(lambda: value("controller_runtime_reconcile_total", {"controller": "c", "result": "success"}) == 1)
    assert value("controller_runtime_reconcile_errors_total", {"controller": "c"}) == 3
    assert value("controller_runtime_reconcile_panics_total", {"controller": "c"}) == 3
    never(lambda: len(reconcile.calls) > 4, within=0.1)
    controller.stop()


def test_even_an_exception_that_is_no_exception_does_not_end_the_workers() -> None:
    reconcile = Recorder(SystemExit(3), KeyboardInterrupt())
    controller = started(reconcile, workers=1)
    controller.enqueue(A)
    eventually(lambda: len(reconcile.calls) == 3)
    assert controller.stuck() is None
    controller.stop()


def test_a_failing_key_does_not_hold_up_the_others() -> None:
    done = Counter[str]()

    def reconcile(key: Key) -> Result:
        done[key.name] += 1
        if key == A:
            raise RuntimeError("always")
        return Result()

    controller = Controller("c", reconcile=reconcile, workers=1)
    controller.start()
    for name in ("a", "b", "c", "d"):
        controller.enqueue(Key("ns", name))
    eventually(lambda: done["b"] and done["c"] and done["d"])
    controller.stop()


def test_a_conflict_comes_back_and_is_not_an_error() -> None:
    reconcile = Recorder(Conflict("somebody wrote first", status=409))
    metrics = Metrics()
    controller = started(reconcile, metrics)
    controller.enqueue(A)
    eventually(lambda: len(reconcile.calls) == 2)
    assert metrics.registry.get_sample_value("controller_runtime_reconcile_errors_total", {"controller": "c"}) == 0
    controller.stop()


def test_a_reconcile_after_lost_leadership_is_not_an_error() -> None:
    reconcile = Recorder(LeadershipLost("gone"))
    metrics = Metrics()
    controller = started(reconcile, metrics)
    controller.enqueue(A)
    eventually(lambda: len(reconcile.calls) == 2)
    assert metrics.registry.get_sample_value("controller_runtime_reconcile_errors_total", {"controller": "c"}) == 0
    controller.stop()


def test_a_retry_after_is_waited_for_although_events_come() -> None:
    reconcile = Recorder(TooManyRequests("slow down", status=429, retry_after=0.5))
    controller = started(reconcile)
    controller.enqueue(A)
    eventually(lambda: len(reconcile.calls) == 1)
    for _ in range(20):
        controller.enqueue(A)
    eventually(lambda: len(reconcile.calls) >= 2)
    controller.stop()
    assert reconcile.times[1] - reconcile.times[0] >= 0.5


def test_a_reconcile_that_asks_to_be_called_again_is() -> None:
    reconcile = Recorder(Result(requeue_after=0.01), Result(requeue_after=0.0))
    metrics = Metrics()
    controller = started(reconcile, metrics)
    controller.enqueue(A)
    eventually(lambda: len(reconcile.calls) == 3)
    controller.stop()
    value = metrics.registry.get_sample_value
    assert value("controller_runtime_reconcile_total", {"controller": "c", "result": "requeue_after"}) == 2


def test_one_key_is_never_reconciled_twice_at_once_and_several_keys_are() -> None:
    inside = Counter[Key]()
    most = Counter[Key]()
    together = 0
    lock = threading.Lock()
    release = threading.Event()

    def reconcile(key: Key) -> Result:
        nonlocal together
        with lock:
            inside[key] += 1
            most[key] = max(most[key], inside[key])
            together = max(together, sum(inside.values()))
        release.wait(0.005)
        with lock:
            inside[key] -= 1
        return Result()

    controller = Controller("c", reconcile=reconcile, workers=4)
    controller.start()
    for round_ in range(200):
        controller.enqueue(Key("ns", str(round_ % 5)), after=0.001 * (round_ % 3))
    eventually(lambda: together == 4)
    release.set()
    controller.stop()
    assert controller.join(PATIENCE)
    assert set(most.values()) == {1}


def test_a_stopped_controller_finishes_what_it_holds_and_starts_nothing_else() -> None:
    entered, leave = threading.Event(), threading.Event()
    calls: list[Key] = []

    def reconcile(key: Key) -> Result:
        calls.append(key)
        entered.set()
        leave.wait(2 * PATIENCE)
        return Result()

    controller = Controller("c", reconcile=reconcile, workers=1)
    controller.start()
    controller.enqueue(A)
    assert entered.wait(PATIENCE)
    controller.enqueue(Key("ns", "b"))
    controller.stop()
    assert not controller.join(0.05)
    leave.set()
    assert controller.join(PATIENCE)
    assert calls == [A]


def test_a_reconcile_that_never_returns_makes_the_controller_stuck() -> None:
    clock = TurnedClock()
    leave = threading.Event()

    def reconcile(key: Key) -> Result:
        leave.wait(2 * PATIENCE)
        return Result()

    controller = Controller("c", reconcile=reconcile, clock=clock, stuck_after=60)
    controller.start()
    controller.enqueue(A)
    clock.turn(1)
    assert controller.stuck() is None
    eventually(lambda: clock.turn(61) or controller.stuck())
    leave.set()
    eventually(lambda: controller.stuck() is None)
    controller.stop()


def test_a_thread_whose_body_fails_or_ends_is_started_again() -> None:
    stop = threading.Event()
    runs: list[int] = []

    def body() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise MemoryError
        if len(runs) == 2:
            return
        stop.wait(PATIENCE)

    thread = SupervisedThread("t", body, stop=stop, pause=0.01)
    thread.start()
    eventually(lambda: len(runs) == 3)
    assert thread.restarts == 2
    assert thread.alive
    stop.set()
    assert thread.join(PATIENCE)


def test_nobody_answering_makes_no_key_wait_for_long() -> None:
    queue = WorkQueue("q", clock=TurnedClock(), backoff=Backoff())
    delays = [queue.add_failed(A, at_most=10.0) for _ in range(40)]
    assert max(delays) <= 10
    assert queue.add_failed(A) > 10


def test_a_mapping_that_fails_for_the_old_state_still_maps_the_new_one(tmp_path: Path) -> None:
    def to_keys(obj: Obj) -> list[Key]:
        return [Key("ns", obj["metadata"]["labels"]["owner"])]

    def item(version: int, labels: dict[str, str]) -> Obj:
        return {"metadata": {"name": "n", "uid": "u", "resourceVersion": str(version), "labels": labels}}

    lists = [answer(200, {"metadata": {"resourceVersion": "1"}, "items": [item(1, {})]})]
    changed = json.dumps({"type": "MODIFIED", "object": item(2, {"owner": "w"})}).encode() + b"\n"

    def script(handler: BaseHTTPRequestHandler) -> None:
        (stream(changed, ends=False) if "watch=true" in handler.path else lists[0])(handler)

    node = Resource(group="", version="v1", plural="nodes", kind="Node", namespaced=False)
    reconcile = Recorder()
    with TinyServer(script) as server:
        informer = Informer(server.client(tmp_path), node)
        controller = Controller("c", reconcile=reconcile)
        controller.watch(informer, to_keys)
        informer.start()
        controller.start()
        eventually(lambda: Key("ns", "w") in reconcile.calls)
        controller.stop()
        assert informer.stop()
