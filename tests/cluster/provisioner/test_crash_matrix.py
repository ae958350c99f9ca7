"""kill -9 at the n-th request, from outside: by proxies between the provisioner and the API server, ARM and tokens.

Each point is a process that dies with its n-th request about one claim, before the request is passed on or after it was
answered. The process of the next point takes over what the dead one left, while it works towards its own end. The
ordinary run dies at a few requests of each phase; ``make soak`` at every one, until a phase ends without the n-th.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.cluster.provisioner.accounts import Account
from tests.cluster.provisioner.conftest import Claims, Provisioner, Provisioners, age, emulated, nodes_of
from tests.cluster.proxy import FaultProxy, Interrupt, Rule
from tests.eventually import eventually

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.runtime import Client, Obj
from kaito_local.aks import Durations, Emulator
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.machine.pki import Authority

BRISK = Durations(create_cpu=0.4, create_gpu=0.4, update=0.2, delete=0.3, abort=0.1, node_ready=0.1, gpu_delay=0.1)
LAUNCH, END, ABANDONED, ROBBED = "launch", "end", "pool without claim", "claim without pool"
PHASES = (LAUNCH, END, ABANDONED, ROBBED)
SWEEPING = (ABANDONED, ROBBED)
BATCH = 20
_CLAIM = re.compile(r"ws\d{9}")


@dataclass(frozen=True, slots=True)
class Point:
    """The ``nth`` request of a process that matches, in a phase; ``after``: it was answered, but nobody hears it."""

    phase: str
    nth: int = 1
    method: str | None = None
    pattern: str = ""
    after: bool = False

    def __str__(self) -> str:
        what = f"{self.method or 'request'} {self.pattern}".strip()
        return f"{self.phase}: {'after' if self.after else 'before'} {what} {self.nth}"


_NODE, _POOL, _CLAIMS = r"/nodes/aks-", r"/agentPools/", r"/(machines|nodeclaims)/"
SAMPLE: dict[NodeAPI, tuple[Point, ...]] = {
    "Machine": (
        Point(LAUNCH, method="PATCH", pattern=_CLAIMS, after=True),  # the finalizer
        Point(LAUNCH, method="PUT", pattern=_POOL),
        Point(LAUNCH, method="PUT", pattern=_POOL, after=True),
        Point(LAUNCH, method="PUT", pattern=_CLAIMS + r".*/status", after=True),
        Point(LAUNCH, method="PUT", pattern=_NODE, after=True),  # registered
        Point(END, method="DELETE", pattern=_NODE, after=True),
        Point(END, method="DELETE", pattern=_POOL, after=True),
        Point(END, method="PATCH", pattern=_NODE, after=True),  # its finalizer goes, the claim's is left
        Point(ABANDONED, method="DELETE", pattern=_POOL, after=True),
        Point(ABANDONED, method="PATCH", pattern=_NODE),
    ),
    "NodeClaim": (
        Point(LAUNCH, method="POST", pattern=r"/oauth2/"),
        Point(LAUNCH, method="PUT", pattern=_POOL, after=True),
        Point(LAUNCH, method="PUT", pattern=_NODE),
        Point(END, method="DELETE", pattern=_POOL),
        Point(END, method="PATCH", pattern=_CLAIMS),
        Point(ROBBED, method="DELETE", pattern=_CLAIMS, after=True),
    ),
}


class Fuse(Rule):
    """Burns with each request about one claim, and then kills.

    In the launch, with which the life of the process begins, requests about no claim in particular (tokens, lists)
    count as well, each kind once: how often waiting claims look depends on the machine. Watches never count.
    """

    def __init__(self, point: Point, name: str, kill: Callable[[], None]) -> None:
        deed = Interrupt(self._burn, after=point.after)
        super().__init__(point.method, point.pattern, deed, skip=point.nth - 1, times=1, body=b"")
        self.burnt = threading.Event()
        self._kill = kill
        self._name = name
        self._all = point.phase == LAUNCH
        self._shared: set[tuple[str, str]] = set()
        self.killed_at = ""

    def take(self, method: str, target: str, body: bytes) -> bool:
        named = _CLAIM.findall(f"{target} {body.decode(errors='replace')}")
        if "watch=true" in target or not (self._name in named if named else self._is_new(method, target)):
            return False
        taken = super().take(method, target, body)
        if taken:
            self.killed_at = f"{method} {_CLAIM.sub('NAME', target.partition('?')[0])}"
        return taken

    def _is_new(self, method: str, target: str) -> bool:
        shared = (method, target.partition("?")[0])
        if not self._all or shared in self._shared:
            return False
        self._shared.add(shared)
        return True

    def _burn(self) -> None:
        self._kill()
        self.burnt.set()


@dataclass(slots=True)
class Matrix:
    """Kills provisioners of one kind of claim, one after the other, and keeps the books."""

    claims: Claims
    cloud: Emulator
    admin: Client
    provisioners: Provisioners
    doors: Sequence[FaultProxy]
    kubeconfig: Path
    process: Provisioner | None = None
    points: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    launched: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _stock: list[str] = field(default_factory=list)
    _open: dict[str, str] = field(default_factory=dict)

    def die_at(self, point: Point) -> str:
        """What the process was killed at; "" when the phase ended without such a request."""
        name = self._subject(point.phase)
        fuse = Fuse(point, name, self._kill)
        for door in self.doors:
            door.add(fuse)
        self._open[name] = point.phase
        self._begin(name, point.phase)
        self._start(sweeping=point.phase in SWEEPING)

        def is_done() -> bool:
            # Between taking a request and having killed the process there is the server's answer.
            return fuse.burnt.is_set() or (fuse.hits == 0 and self._is_over(name))

        eventually(is_done, every=0.03, what=f"{point}: {name} is stuck")
        self._kill()
        for door in self.doors:
            door.clear()
            door.cut()
        if fuse.hits:
            self.points += 1
            self.kills[point.phase] += 1
        return fuse.killed_at

    def die_at_every_request(self, phase: str) -> None:
        """From the first to the last, before and after."""
        for after in (False, True):
            for nth in itertools.count(1):
                if not self.die_at(Point(phase, nth, after=after)):
                    break
            print(
                f"{self.claims.kind}, {phase}: {nth - 1} kills {'after' if after else 'before'} a request", flush=True
            )
            self.see_over()

    def see_over(self) -> None:
        """A process that is left alone brings what the killed ones left to its end."""
        if not self._open:
            return
        self._start(sweeping=not set(self._open.values()).isdisjoint(SWEEPING))
        for name, phase in self._open.items():
            eventually(lambda n=name: self._is_over(n), every=0.03, what=f"{phase}: {name} is stuck")
            if phase == LAUNCH:
                self._stock.append(name)
            elif name in {pool.name for pool in self.cloud.agent_pools()}:
                self.problems.append(f"{phase}: {name} went before its pool")
        self._open.clear()
        self._kill()

    def close_the_books(self) -> Account:
        """Every claim is deleted, and a last process gives everything back."""
        self._start(sweeping=True)
        for name in self._stock:
            self.claims.delete(name)
        for name in self._stock:
            self.claims.until_gone(name)
        account = Account.of(self.cloud, self.admin)
        self.problems += account.problems(self.launched)
        print(f"{self.claims.kind}: {self.points} points, {sum(self.kills.values())} kills {dict(self.kills)}")
        print(f"{self.claims.kind}: {account.told(self.launched)}", flush=True)
        return account

    def _subject(self, phase: str) -> str:
        """A claim to which the phase is to happen."""
        if phase == LAUNCH:
            return f"ws{next(self._numbers):09}"
        if not self._stock:
            self._lay_in()
        if phase == ABANDONED:
            name = self._stock.pop()
            age(self.cloud, name)
            return name
        return self._stock.pop()

    def _lay_in(self) -> None:
        """Ready claims for the phases that begin with one."""
        for _ in range(BATCH):
            name = self._subject(LAUNCH)
            self._open[name] = LAUNCH
            self._begin(name, LAUNCH)
        self.see_over()

    def _begin(self, name: str, phase: str) -> None:
        if phase == LAUNCH:
            self.launched.add(self.claims.ask(name).uid)
        elif phase == END:
            self.claims.delete(name)
        elif phase == ABANDONED:
            self.claims.delete(name)
            self.admin.patch(self.claims.resource, name, {"metadata": {"finalizers": None}})
        else:
            self.cloud.pools.delete(name)

    def _is_over(self, name: str) -> bool:
        claim = self.claims.read(name)
        if self._open[name] == LAUNCH:
            return claim is not None and claim.ready
        if self._open[name] == ABANDONED:
            return all(pool.name != name for pool in self.cloud.agent_pools()) and not nodes_of(self.admin, name)
        return claim is None

    def _start(self, *, sweeping: bool) -> None:
        api, arm = self.doors
        self.process = self.provisioners.start(
            self.cloud,
            nodeAPI=self.claims.kind,
            arm=arm.url,
            kubeconfig=api.kubeconfig,
            gcInterval="300ms" if sweeping else "1h",
            poolPollInterval="200ms",
        )

    def _kill(self) -> None:
        assert self.process is not None
        self.process.kill()


@pytest.fixture
def brisk_cloud(plane: ControlPlane, tmp_path: Path, admin: Client) -> Iterator[Emulator]:
    with contextlib.contextmanager(emulated)(plane, tmp_path / "cloud", admin, durations=BRISK) as cloud:
        yield cloud


@pytest.fixture
def matrix(
    request: pytest.FixtureRequest,
    plane: ControlPlane,
    account: str,
    chart: Callable[..., list[Obj]],
    brisk_cloud: Emulator,
    admin: Client,
    tmp_path: Path,
) -> Iterator[Matrix]:
    provisioners = Provisioners(plane, account, chart, tmp_path)
    kubeconfig = provisioners.identify("kubeconfig")
    authority = Authority.open(brisk_cloud.settings.directory / "pki")
    with (
        FaultProxy.start(kubeconfig, tmp_path) as api,
        FaultProxy.before(brisk_cloud.endpoints.arm, authority) as arm,
        contextlib.closing(provisioners),
    ):
        yield Matrix(Claims(admin, request.param), brisk_cloud, admin, provisioners, (api, arm), kubeconfig=kubeconfig)


@pytest.mark.parametrize("matrix", ["Machine", "NodeClaim"], indirect=True)
def test_killed_at_a_few_requests_of_each_phase_it_is_replaced_without_a_loss(matrix: Matrix) -> None:
    missed = []
    for phase in PHASES:
        for point in SAMPLE[matrix.claims.kind]:
            if point.phase == phase and not matrix.die_at(point):
                missed.append(str(point))
        matrix.see_over()
    account = matrix.close_the_books()
    assert missed == [], "requests that were never made"
    assert matrix.problems == []
    assert sum(account.created.values()) == len(matrix.launched)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("matrix", ["Machine", "NodeClaim"], indirect=True)
def test_killed_at_every_request_of_each_phase_it_is_replaced_without_a_loss(matrix: Matrix) -> None:
    for phase in PHASES:
        matrix.die_at_every_request(phase)
    account = matrix.close_the_books()
    assert matrix.kills.total() >= 30
    assert set(matrix.kills) == set(PHASES)
    assert matrix.problems == []
    assert sum(account.created.values()) == len(matrix.launched)
