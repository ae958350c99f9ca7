from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.cluster.proxy import Answer, Delay, DropAfter, DropBefore, FaultProxy
from tests.cluster.runtime.objects import CONFIG_MAP, config_map
from tests.eventually import PATIENCE, eventually, never

from kaito_hooks.runtime import (
    AlreadyExists,
    Backoff,
    Client,
    Controller,
    Informer,
    Key,
    Manager,
    Metrics,
    NotFound,
    Result,
)

ROUNDS = 12


class Doubler:
    """A controller in a manager of its own: every ConfigMap labelled "parent" gets one child and is marked done once.

    It is written as controllers here are: from the cache, with deterministic names and the resourceVersion that it saw.
    """

    def __init__(self, client: Client, namespace: str, **settings: Any) -> None:
        self.metrics = Metrics()
        self.manager = Manager(
            client,
            name="doubler",
            leader_election=None,
            health_port=0,
            metrics_port=0,
            bind_address="127.0.0.1",
            registry=self.metrics,
        )
        self.namespace = namespace
        self.calls: list[Key] = []
        self.informer = Informer(
            self.manager.client,
            CONFIG_MAP,
            namespace=namespace,
            label_selector="role=parent",
            backoff=Backoff(minimum=0.05, maximum=0.5),
        )
        controller = Controller("doubler", reconcile=self.reconcile, workers=3, **settings)
        controller.watch(self.informer)
        self.manager.add_controller(controller)
        self._stop = threading.Event()
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.code = self.manager.run(self._stop)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)

    def reconcile(self, key: Key) -> Result:
        self.calls.append(key)
        parent = self.informer.get(key)
        if parent is None or parent["data"].get("done"):
            return Result()
        with contextlib.suppress(AlreadyExists):
            self.manager.client.create(CONFIG_MAP, config_map(key.namespace, f"{key.name}-child"))
        count = int(parent["data"].get("count", "0")) + 1
        data = {"count": str(count), "done": "yes"}
        self.manager.client.update(CONFIG_MAP, {**parent, "data": data})
        return Result()

    def errors(self) -> float:
        value = self.metrics.registry.get_sample_value
        return value("controller_runtime_reconcile_errors_total", {"controller": "doubler"}) or 0.0


@pytest.fixture
def double(namespace: str) -> Iterator[Callable[..., Doubler]]:
    running: list[Doubler] = []

    def begin(client: Client, **settings: Any) -> Doubler:
        running.append(Doubler(client, namespace, **settings))
        return running[-1]

    yield begin
    for doubler in running:
        doubler.close()
        assert doubler.code == 0


def make_parent(client: Client, namespace: str, name: str) -> None:
    parent = config_map(namespace, name, count="0")
    parent["metadata"]["labels"] = {"role": "parent"}
    client.create(CONFIG_MAP, parent)


def counts(client: Client, namespace: str) -> list[str]:
    """How often each finished parent was counted."""
    found = client.list(CONFIG_MAP, namespace=namespace, label_selector="role=parent").items
    return [obj["data"]["count"] for obj in found if obj["data"].get("done")]


def test_two_controllers_at_once_do_everything_exactly_once(
    client: Client, namespace: str, double: Callable[..., Doubler]
) -> None:
    first, second = double(client), double(client)
    for number in range(ROUNDS):
        make_parent(client, namespace, f"p{number}")
    eventually(lambda: len(counts(client, namespace)) == ROUNDS)
    never(lambda: set(counts(client, namespace)) != {"1"}, within=0.5, every=0.1)
    assert first.errors() == second.errors() == 0
    for number in range(ROUNDS):
        assert client.get(CONFIG_MAP, f"p{number}-child", namespace=namespace)


def test_a_409_is_tried_again_and_is_no_error(
    client: Client, proxied: Client, proxy: FaultProxy, namespace: str, double: Callable[..., Doubler]
) -> None:
    rule = proxy.on("PUT", r"/configmaps/p", Answer(409), times=5)
    doubler = double(proxied)
    make_parent(client, namespace, "p")
    eventually(lambda: counts(client, namespace) == ["1"])
    assert rule.hits == 5
    assert doubler.errors() == 0


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_is_waited_for(
    client: Client,
    proxied: Client,
    proxy: FaultProxy,
    namespace: str,
    double: Callable[..., Doubler],
    status: int,
) -> None:
    rule = proxy.on("PUT", r"/configmaps/p", Answer(status, headers={"Retry-After": "2"}), times=2)
    double(proxied)
    make_parent(client, namespace, "p")
    rule.wait()
    for number in range(5):
        client.patch(CONFIG_MAP, "p", {"data": {"noise": str(number)}}, namespace=namespace)
    eventually(lambda: counts(client, namespace) == ["1"])
    # A third attempt may meet a newer object, and be made again at once.
    attempts = [seen.at for seen in proxy.seen("PUT", "/configmaps/p")][:3]
    assert len(attempts) == 3
    assert all(later - earlier >= 1.9 for earlier, later in itertools.pairwise(attempts))


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    "fault", [DropBefore(), DropAfter(), Delay(0.5), Answer(500), Answer(504)], ids=lambda fault: type(fault).__name__
)
def test_a_write_that_fails_or_whose_answer_is_lost_happens_once(
    client: Client,
    proxied: Client,
    proxy: FaultProxy,
    namespace: str,
    double: Callable[..., Doubler],
    method: str,
    fault: Any,
) -> None:
    rule = proxy.on(method, r"/configmaps", fault, times=2)
    double(proxied)
    make_parent(client, namespace, "p")
    make_parent(client, namespace, "q")
    eventually(lambda: counts(client, namespace) == ["1", "1"])
    assert rule.hits == 2
    assert client.get(CONFIG_MAP, "p-child", namespace=namespace)


def test_a_reconcile_that_raises_holds_nobody_up_and_is_healed_by_the_object(
    client: Client, namespace: str, double: Callable[..., Doubler]
) -> None:
    doubler = double(client)
    make_parent(client, namespace, "broken")
    eventually(lambda: counts(client, namespace) == ["1"])
    client.patch(CONFIG_MAP, "broken", {"data": {"count": "not a number", "done": None}}, namespace=namespace)
    eventually(lambda: doubler.errors() >= 3)
    make_parent(client, namespace, "well")
    eventually(lambda: len(counts(client, namespace)) == 1)
    client.patch(CONFIG_MAP, "broken", {"data": {"count": "6"}}, namespace=namespace)
    eventually(lambda: sorted(counts(client, namespace)) == ["1", "7"])


def test_what_could_not_be_written_while_the_api_server_was_away_is_written_when_it_is_back(
    client: Client, proxied: Client, proxy: FaultProxy, namespace: str, double: Callable[..., Doubler]
) -> None:
    doubler = double(proxied)
    make_parent(client, namespace, "before")
    eventually(lambda: counts(client, namespace) == ["1"])
    held = proxy.on("POST", r"/configmaps", DropBefore(), times=None)
    for number in range(ROUNDS):
        make_parent(client, namespace, f"p{number}")
    held.wait(ROUNDS)
    proxy.refuse()
    make_parent(client, namespace, "meanwhile")
    never(lambda: doubler.informer.deaf(), within=5)
    proxy.clear()
    proxy.accept()
    eventually(lambda: counts(client, namespace) == ["1"] * (ROUNDS + 2))


def test_the_periodic_resync_finds_what_no_event_told(client: Client, namespace: str) -> None:
    informer = Informer(client, CONFIG_MAP, namespace=namespace)
    outside = threading.Event()
    seen: list[bool] = []

    def reconcile(key: Key) -> Result:
        if key.name == "a":
            seen.append(outside.is_set())
        return Result()

    controller = Controller("resync", reconcile=reconcile, resync=0.5)
    controller.watch(informer)
    informer.start()
    controller.start()
    client.create(CONFIG_MAP, config_map(namespace, "a"))
    eventually(lambda: seen)
    outside.set()
    eventually(lambda: True in seen)
    controller.stop()
    informer.stop()
    assert controller.join(PATIENCE)


def test_a_deleted_object_is_reconciled_once_more(
    client: Client, namespace: str, double: Callable[..., Doubler]
) -> None:
    doubler = double(client)
    make_parent(client, namespace, "p")
    eventually(lambda: counts(client, namespace) == ["1"])
    before = len(doubler.calls)
    client.delete(CONFIG_MAP, "p", namespace=namespace)
    eventually(lambda: len(doubler.calls) > before)
    with pytest.raises(NotFound):
        client.get(CONFIG_MAP, "p", namespace=namespace)
