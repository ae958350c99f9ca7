from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest
from tests.cluster.proxy import Answer, DropAfter, FaultProxy, Freeze
from tests.cluster.runtime.objects import CONFIG_MAP, LEASE, config_map
from tests.eventually import PATIENCE, eventually, never
from tests.unit.runtime.clocks import TurnedClock

from kaito_hooks.runtime import Client, LeaderElection, LeadershipLost, SystemClock
from kaito_hooks.runtime.manager.leader import Elector

Times = tuple[float, float, float]
BRISK: Times = (5.0, 3.5, 0.5)
"""For leaders that must lose their lease by themselves: duration, renew deadline and retry period."""
PATIENT: Times = (60.0, 50.0, 0.5)
"""For leaders that must not, whatever the machine does."""
LEASES = r"/leases"


class Ledger:
    """What the writers wrote, in the order in which the API server took it."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    def writers(self) -> list[str]:
        found = self.client.list(CONFIG_MAP, namespace=self.namespace, label_selector="ledger=entry").items
        found.sort(key=lambda obj: int(obj["metadata"]["resourceVersion"]))
        return [obj["data"]["writer"] for obj in found]

    def reigns(self) -> list[str]:
        """The writers without immediate repetitions: two names that alternate are two leaders at once."""
        return [writer for writer, _ in groupby(self.writers())]

    def count(self, writer: str) -> int:
        return self.writers().count(writer)

    def end_lease(self) -> None:
        """Have a lease that nobody renews any more run out, without the time that it would take."""
        self.client.patch(LEASE, "ledger", {"spec": {"leaseDurationSeconds": 1}}, namespace=self.namespace)

    def renewed(self) -> str:
        return str(self.client.get(LEASE, "ledger", namespace=self.namespace)["spec"]["renewTime"])

    def holder(self) -> str:
        found = self.client.list(LEASE, namespace=self.namespace).items
        return str(found[0]["spec"]["holderIdentity"]) if found else ""


@pytest.fixture
def ledger(client: Client, namespace: str) -> Ledger:
    return Ledger(client, namespace)


@pytest.fixture
def start(namespace: str, kubeconfig: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a writer as a process of its own."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(identity: str, through: Path = kubeconfig, *, times: Times = BRISK) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.cluster.runtime.leading", str(through), namespace, identity]
        command += map(str, times)
        with (tmp_path / f"{identity}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=Path(__file__).parents[3], stderr=log)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


def test_a_leader_killed_with_kill_9_is_followed_by_the_other(
    ledger: Ledger, start: Callable[..., subprocess.Popen[bytes]], proxy: FaultProxy
) -> None:
    first = start("first", times=PATIENT)
    eventually(lambda: ledger.count("first") > 3)
    second = start("second", proxy.kubeconfig, times=PATIENT)
    eventually(lambda: len(proxy.seen("GET", LEASES)) >= 3, what="the second does not look at the lease")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(PATIENCE)
    assert ledger.count("second") == 0
    ledger.end_lease()
    eventually(lambda: ledger.count("second") > 3)
    assert ledger.reigns() == ["first", "second"]
    assert second.poll() is None


# By the machine's clock, which must not stand still for long; by one that the test turns: the next test.
@pytest.mark.soak
def test_a_standby_does_nothing_while_the_leader_lives_and_takes_over_when_its_lease_ran_out(
    ledger: Ledger, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first = start("first")
    eventually(lambda: ledger.count("first") > 3)
    start("second")
    never(lambda: ledger.count("second"), within=BRISK[0] + 1)
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: ledger.count("second") > 3)
    assert ledger.reigns() == ["first", "second"]


def test_a_lease_is_taken_over_when_nobody_renewed_it_for_its_duration_and_not_before(
    client: Client, proxied: Client, proxy: FaultProxy, namespace: str
) -> None:
    election = LeaderElection(namespace, "turned", lease_duration=60, renew_deadline=40, retry_period=0.05)
    clock, stop, led = TurnedClock(), threading.Event(), threading.Event()
    dead = Elector(client, election, identity="dead", clock=clock)
    assert dead.acquire(stop)
    standby = Elector(proxied, election, identity="standby", clock=clock)

    def wait_to_lead() -> None:
        if standby.acquire(stop):
            led.set()

    def let_it_look() -> None:
        seen = len(proxy.seen("GET", LEASES))
        eventually(lambda: len(proxy.seen("GET", LEASES)) >= seen + 3)

    waiting = threading.Thread(target=wait_to_lead, daemon=True)
    waiting.start()
    let_it_look()
    clock.turn(59)
    let_it_look()
    assert not led.is_set()
    # A renewal in the last moment gives the lease its whole duration again.
    before = client.get(LEASE, "turned", namespace=namespace)["spec"]["renewTime"]
    enough = threading.Event()
    holding = threading.Thread(target=dead.hold, args=(enough,), daemon=True)
    holding.start()
    eventually(lambda: client.get(LEASE, "turned", namespace=namespace)["spec"]["renewTime"] != before)
    enough.set()
    holding.join(PATIENCE)
    let_it_look()
    clock.turn(59)
    let_it_look()
    assert not led.is_set()
    clock.turn(2)
    assert led.wait(PATIENCE)
    with pytest.raises(LeadershipLost):
        dead.fence()
    stop.set()
    waiting.join(PATIENCE)


def test_a_leader_that_was_paused_writes_nothing_when_it_wakes_up(
    ledger: Ledger, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first = start("first")
    eventually(lambda: ledger.count("first") > 3)
    start("second", times=PATIENT)
    os.kill(first.pid, signal.SIGSTOP)
    eventually(lambda: ledger.count("second") > 3)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(PATIENCE) == 1
    eventually(lambda: ledger.count("second") > 20)
    assert ledger.reigns() == ["first", "second"]


@pytest.mark.parametrize("fault", [Answer(500), Freeze(), Answer(409)], ids=["errors", "silence", "conflicts"])
def test_a_leader_that_cannot_renew_stops_writing_before_anybody_else_may(
    ledger: Ledger,
    start: Callable[..., subprocess.Popen[bytes]],
    proxy: FaultProxy,
    fault: Answer | Freeze,
) -> None:
    first = start("first", proxy.kubeconfig)
    eventually(lambda: ledger.count("first") > 3)
    start("second", times=PATIENT)
    proxy.on(None, LEASES, fault, times=None)
    assert first.wait(PATIENCE) == 1
    eventually(lambda: ledger.count("second") > 3)
    assert ledger.reigns() == ["first", "second"]


def test_renewals_whose_answers_are_lost_cost_no_leadership(
    ledger: Ledger, start: Callable[..., subprocess.Popen[bytes]], proxy: FaultProxy
) -> None:
    first = start("first", proxy.kubeconfig, times=PATIENT)
    eventually(lambda: ledger.count("first") > 3)
    for _ in range(3):
        lost = proxy.on("PUT", LEASES, DropAfter(), times=2)
        lost.wait(2)
        renewed = ledger.renewed()
        eventually(lambda: ledger.renewed() != renewed, what="the lease is renewed no more")  # noqa: B023
    written = ledger.count("first")
    eventually(lambda: ledger.count("first") > written)
    assert first.poll() is None
    assert ledger.reigns() == ["first"]


def test_a_leader_without_its_api_server_ends_and_takes_up_again_when_restarted(
    ledger: Ledger, start: Callable[..., subprocess.Popen[bytes]], proxy: FaultProxy
) -> None:
    first = start("first", proxy.kubeconfig)
    eventually(lambda: ledger.count("first") > 3)
    proxy.refuse()
    assert first.wait(PATIENCE) == 1
    again = start("first-again", proxy.kubeconfig, times=PATIENT)
    never(lambda: again.poll() is not None, within=2)
    proxy.accept()
    eventually(lambda: ledger.count("first-again") > 3)


def test_a_leader_that_is_asked_to_stop_finishes_its_work_and_frees_the_lease(
    client: Client, namespace: str, ledger: Ledger, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first = start("first", times=PATIENT)
    eventually(lambda: ledger.count("first") > 3)
    second = start("second", times=PATIENT)
    client.create(CONFIG_MAP, config_map(namespace, "slow"))
    eventually(lambda: client.list(CONFIG_MAP, namespace=namespace, field_selector="metadata.name=slow-begun").items)
    first.terminate()
    assert first.wait(PATIENCE) == 0
    assert ledger.holder() in ("", "second")
    assert client.get(CONFIG_MAP, "slow-done", namespace=namespace)
    eventually(lambda: ledger.count("second") > 3)
    assert ledger.reigns() == ["first", "second"]
    second.send_signal(signal.SIGINT)
    assert second.wait(PATIENCE) == 0
    eventually(lambda: ledger.holder() == "")


def test_of_many_candidates_at_once_exactly_one_leads(client: Client, namespace: str) -> None:
    election = LeaderElection(namespace, "race", lease_duration=60, renew_deadline=50, retry_period=0.2)
    electors = [Elector(client, election, identity=f"c{number}", clock=SystemClock()) for number in range(8)]
    leaders: list[Elector] = []
    stop = threading.Event()

    def run(elector: Elector) -> None:
        if elector.acquire(stop):
            leaders.append(elector)

    threads = [threading.Thread(target=run, args=(elector,)) for elector in electors]
    for thread in threads:
        thread.start()
    eventually(lambda: leaders)
    never(lambda: len(leaders) > 1, within=2)
    assert leaders[0].fence() > 0
    for elector in electors:
        if elector is not leaders[0]:
            with pytest.raises(LeadershipLost):
                elector.fence()
    leaders[0].release()
    with pytest.raises(LeadershipLost):
        leaders[0].fence()
    eventually(lambda: len(leaders) == 2)
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)


def test_a_restarted_process_of_the_same_identity_goes_on_at_once(client: Client, namespace: str) -> None:
    election = LeaderElection(namespace, "again", lease_duration=60, renew_deadline=40, retry_period=1)
    stop = threading.Event()
    for _ in range(2):
        assert Elector(client, election, identity="pod-0", clock=SystemClock()).acquire(stop)
    lease = client.get(LEASE, "again", namespace=namespace)
    assert lease["spec"]["leaseTransitions"] == 0


def test_a_deleted_lease_is_made_again_by_its_holder(client: Client, namespace: str) -> None:
    election = LeaderElection(namespace, "gone", lease_duration=60, renew_deadline=50, retry_period=0.1)
    elector = Elector(client, election, identity="me", clock=SystemClock())
    stop = threading.Event()
    assert elector.acquire(stop)
    holding = threading.Thread(target=elector.hold, args=(stop,))
    holding.start()
    client.delete(LEASE, "gone", namespace=namespace)
    eventually(lambda: client.list(LEASE, namespace=namespace).items)
    assert elector.fence() > 0
    stop.set()
    holding.join(PATIENCE)


@pytest.mark.parametrize("times", [(10, 10, 2), (15, 10, 10), (15, 10, 0), (10, 15, 2)])
def test_times_that_make_no_sense_are_refused(times: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="lease_duration > renew_deadline > retry_period > 0"):
        LeaderElection("ns", "name", *times)
