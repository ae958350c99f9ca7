"""The leader is killed, again and again, while claims come and go: whoever leads next loses nothing and buys nothing
twice.

What happens when is drawn from a seed that is printed; KAITO_SEED sets it.
"""

from __future__ import annotations

import os
import random
import threading
from types import TracebackType

import pytest
from tests.cluster.provisioner.accounts import Account
from tests.cluster.provisioner.conftest import NAMESPACE, Claims, Provisioner, Provisioners
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import Client, Informer, Obj, Resource
from kaito_local.aks import Emulator

LEASE = Resource("coordination.k8s.io", "v1", "leases", "Lease", namespaced=True)
REPLICAS = 3
CROWD = 12
PAUSE = 0.15
# A leader lives this long at most: about as long as a claim takes to become Ready.
LONGEST_REIGN = 2.0


class Load:
    """Asks for claims and deletes them, mostly those that have a machine, from a thread of its own."""

    def __init__(self, claims: Claims, admin: Client, randomness: random.Random) -> None:
        self.asked: dict[str, str] = {}
        self.alive: set[str] = set()
        self.launched: set[str] = set()
        self._claims, self._random = claims, randomness
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._informer = Informer(admin, claims.resource)
        self._informer.subscribe(self._changed)

    def __enter__(self) -> Load:
        self._informer.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._informer.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(0, 2 * PAUSE)):
            if len(self.alive) < CROWD and self._random.random() < 0.6:
                name = f"ws{len(self.asked):09}"
                self.asked[name] = self._claims.ask(name).uid
                self.alive.add(name)
                continue
            anyone = self._random.random() < 0.1
            doomed = sorted(name for name in self.alive if anyone or self.asked[name] in self.launched)
            if doomed:
                name = self._random.choice(doomed)
                self._claims.delete(name)
                self.alive.remove(name)

    def _changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is not None and (new.get("status") or {}).get("providerID"):
            self.launched.add(new["metadata"]["uid"])


class Reign:
    """Replicas of which one leads; a dead one is replaced, as a Deployment would."""

    def __init__(self, cloud: Emulator, provisioners: Provisioners, admin: Client, claims: Claims) -> None:
        self._cloud, self._provisioners, self._admin, self._claims = cloud, provisioners, admin, claims
        self._kubeconfig = provisioners.identify("kubeconfig")
        self._buried: set[int] = set()
        self.resigned = 0
        for _ in range(REPLICAS):
            self._start()

    def leader(self) -> Provisioner | None:
        """The process that holds the lease, if it is alive."""
        self._replace_dead()
        for lease in self._admin.list(LEASE, namespace=NAMESPACE).items:
            number = (lease["spec"].get("holderIdentity") or "").removeprefix("provisioner-")
            if number and int(number) not in self._buried:
                return self._provisioners.running[int(number)]
        return None

    def kill(self, leader: Provisioner) -> None:
        """kill -9, a lease that runs out at once, and a new replica."""
        if leader.process.poll() is None:
            leader.kill()
            number = self._provisioners.running.index(leader)
            self._buried.add(number)
            for lease in self._admin.list(LEASE, namespace=NAMESPACE).items:
                if lease["spec"].get("holderIdentity") == f"provisioner-{number}":
                    ends = {"spec": {"leaseDurationSeconds": 1}}
                    self._admin.patch(LEASE, lease["metadata"]["name"], ends, namespace=NAMESPACE)
            self._start()

    def _replace_dead(self) -> None:
        for number, provisioner in enumerate(self._provisioners.running):
            if number not in self._buried and provisioner.process.poll() is not None:
                self._buried.add(number)
                self.resigned += 1
                self._start()

    def _start(self) -> None:
        self._provisioners.start(self._cloud, lead=True, kubeconfig=self._kubeconfig, nodeAPI=self._claims.kind)


def survive(
    changes: int, cloud: Emulator, provisioners: Provisioners, claims: Claims, admin: Client
) -> tuple[Account, Load]:
    """So many leaders killed under load, then everything deleted; the books at the end."""
    seed = int(os.environ.get("KAITO_SEED") or random.SystemRandom().randrange(10**6))
    print(f"\nKAITO_SEED={seed}", flush=True)
    randomness = random.Random(seed)
    reign = Reign(cloud, provisioners, admin, claims)
    pause = threading.Event()
    with Load(claims, admin, random.Random(seed + 1)) as load:
        for _ in range(changes):
            leader = eventually(reign.leader, every=0.05, what="nobody leads")
            assert leader is not None
            known = len(cloud.requests())
            eventually(lambda n=known: cloud.requests(after=n), every=0.1, what="the leader does nothing")
            pause.wait(randomness.uniform(0, LONGEST_REIGN))
            reign.kill(leader)
        eventually(lambda: load.launched, every=0.1, what="no claim is launched")
        load.stop()
        for name in load.alive:
            claims.delete(name)
        for name in load.asked:
            claims.until_gone(name, timeout=90)
    # A request of a killed leader that was still on its way may have left a pool to the sweep.
    eventually(lambda: cloud.agent_pools() == [], timeout=90, every=0.2)
    account = Account.of(cloud, admin)
    print(f"{changes} leaders killed, {reign.resigned} resigned, {len(load.asked)} claims asked for, ", end="")
    print(account.told(load.launched), flush=True)
    return account, load


def test_killed_leaders_lose_nothing_and_buy_nothing_twice(
    cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client
) -> None:
    account, load = survive(2, cloud, provisioners, machines, admin)
    assert account.problems(load.launched) == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_killed_leaders_lose_nothing_and_buy_nothing_twice(
    cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client
) -> None:
    account, load = survive(100, cloud, provisioners, machines, admin)
    assert account.problems(load.launched) == []
    assert len(load.launched) >= 50
