from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from tests.cluster.proxy import FaultProxy, Freeze
from tests.cluster.runtime.objects import CONFIG_MAP, config_map
from tests.eventually import PATIENCE, eventually, never

from kaito_hooks.runtime import (
    Client,
    Controller,
    Informer,
    Key,
    LeaderElection,
    LeadershipLost,
    Manager,
    Metrics,
    Result,
)
from kaito_local.machine.ports import free_ports


class Running:
    """A manager that runs in a thread."""

    def __init__(self, client: Client, namespace: str, *, lead: bool = True, identity: str = "me") -> None:
        self.metrics = Metrics()
        election = LeaderElection(namespace, "lease", lease_duration=60, renew_deadline=50, retry_period=0.2)
        self.manager = Manager(
            client,
            name="kaito-test",
            identity=identity,
            leader_election=election if lead else None,
            health_port=0,
            metrics_port=0,
            bind_address="127.0.0.1",
            registry=self.metrics,
            drain=PATIENCE,
        )
        self.informer = Informer(self.manager.client, CONFIG_MAP, namespace=namespace)
        self.keys: list[Key] = []
        self.controller = Controller("c", reconcile=self.reconcile)
        self.controller.watch(self.informer)
        self.manager.add_controller(self.controller)
        self.ticks = 0
        self.manager.add_periodic("tick", 0.1, self.tick)
        self.stop = threading.Event()
        self.code: int | None = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def reconcile(self, key: Key) -> Result:
        self.keys.append(key)
        return Result()

    def tick(self) -> None:
        self.ticks += 1
        raise RuntimeError("every tick fails")

    def run(self) -> None:
        self.code = self.manager.run(self.stop)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(PATIENCE)

    def fetch(self, path: str) -> tuple[int, str]:
        port = self.manager.metrics_port if path == "/metrics" else self.manager.health_port
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=PATIENCE) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def running(client: Client, namespace: str) -> Iterator[Running]:
    one = Running(client, namespace)
    yield one
    one.end()


def test_a_manager_lives_from_start_to_an_orderly_end(client: Client, namespace: str, running: Running) -> None:
    with pytest.raises(LeadershipLost):
        running.manager.client.create(CONFIG_MAP, config_map(namespace, "too-early"))
    running.thread.start()
    eventually(lambda: running.manager.leading)
    client.create(CONFIG_MAP, config_map(namespace, "a"))
    eventually(lambda: Key(namespace, "a") in running.keys)
    eventually(lambda: running.ticks >= 3)
    assert running.fetch("/healthz") == (200, "ok\n")
    assert running.fetch("/readyz") == (200, "ok\n")
    for line in (
        'leader_election_master_status{name="kaito-test"} 1.0',
        'controller_runtime_max_concurrent_reconciles{controller="c"} 2.0',
        'workqueue_depth{controller="c",name="c"} 0.0',
        'controller_runtime_reconcile_total{controller="c",result="success"}',
        'rest_client_requests_total{code="200"',
    ):
        eventually(lambda line=line: (answer := running.fetch("/metrics"))[0] == 200 and line in answer[1], what=line)
    running.end()
    assert running.code == 0
    assert running.fetch("/healthz")[0] == 0


def test_a_manager_is_alive_but_not_ready_while_its_caches_fill(
    proxy: FaultProxy, proxied: Client, namespace: str
) -> None:
    rule = proxy.on("GET", "/configmaps", Freeze(), times=None)
    running = Running(proxied, namespace)
    running.manager.add_ready_check("catalogue", lambda: "no Catalog yet")
    running.thread.start()
    rule.wait()
    eventually(lambda: running.fetch("/healthz") == (200, "ok\n"))
    status, text = running.fetch("/readyz")
    assert status == 503
    assert "has not listed yet" in text
    assert "catalogue: no Catalog yet" in text
    assert not running.manager.leading
    running.end()
    assert running.code == 0


def test_a_standby_is_ready_with_full_caches_and_does_not_work(
    client: Client, namespace: str, running: Running
) -> None:
    running.thread.start()
    eventually(lambda: running.manager.leading)
    standby = Running(client, namespace, identity="other")
    standby.thread.start()
    eventually(lambda: standby.fetch("/readyz")[0] == 200)
    client.create(CONFIG_MAP, config_map(namespace, "a"))
    eventually(lambda: standby.informer.get(Key(namespace, "a")))
    never(lambda: standby.keys or standby.ticks, within=1)
    with pytest.raises(LeadershipLost):
        standby.manager.client.create(CONFIG_MAP, config_map(namespace, "b"))
    running.end()
    eventually(lambda: Key(namespace, "a") in standby.keys)
    standby.end()
    assert (running.code, standby.code) == (0, 0)


def test_a_taken_port_ends_the_process_with_an_error(client: Client, namespace: str, running: Running) -> None:
    running.thread.start()
    eventually(lambda: running.fetch("/healthz")[0] == 200)
    taken = running.manager.health_port
    second = Manager(
        client,
        name="second",
        leader_election=None,
        health_port=taken,
        metrics_port=0,
        bind_address="127.0.0.1",
        registry=Metrics(),
    )
    assert second.run(threading.Event()) == 1


def test_one_port_can_serve_health_and_metrics(client: Client) -> None:
    [port] = free_ports(1)
    manager = Manager(
        client,
        name="one-port",
        leader_election=None,
        health_port=port,
        metrics_port=port,
        bind_address="127.0.0.1",
        registry=Metrics(),
    )
    stop = threading.Event()
    thread = threading.Thread(target=manager.run, args=(stop,), daemon=True)
    thread.start()
    for path in ("healthz", "metrics"):
        eventually(lambda: answers(port, path))  # noqa: B023
    stop.set()
    thread.join(PATIENCE)


def test_stopping_while_others_lead_needs_no_lease(client: Client, namespace: str, running: Running) -> None:
    running.thread.start()
    eventually(lambda: running.manager.leading)
    standby = Running(client, namespace, identity="other")
    standby.thread.start()
    eventually(lambda: standby.informer.synced)
    standby.end()
    assert standby.code == 0
    assert running.manager.leading
