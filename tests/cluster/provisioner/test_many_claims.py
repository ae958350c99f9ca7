"""Many claims at once cost few requests each, and no slow answer of the cloud delays anybody else (S10).

The provisioner lives by the real clock. The cloud's clock runs faster, and what of the provisioner's settings counts
minutes (the age of the shared listing, the time between sweeps) is divided by the same number, so that as many listings
fall into the life of a claim as in a real cloud. What cannot be divided, the work for each claim, makes the scaled run
the harder one.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.provisioner.accounts import Account
from tests.cluster.provisioner.conftest import Claims, Provisioners, emulated
from tests.cluster.proxy import FaultProxy, Freeze
from tests.eventually import PATIENCE, eventually

from kaito_hooks.api.claim import Claim
from kaito_hooks.runtime import Client
from kaito_local.aks import Durations, Emulator, Limits
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.machine.pki import Authority

REALISTIC = Durations(create_gpu=(180.0, 300.0), delete=(120.0, 180.0), node_ready=5.0, gpu_delay=30.0)
POLL_SECONDS, SWEEP_SECONDS = 5.0, 120.0
PAGE = 100
WORKERS = 16


class Crowd:
    """Claims that are asked for together and given back together."""

    def __init__(self, claims: Claims, admin: Client, count: int) -> None:
        self._claims, self._admin = claims, admin
        self.names = [f"ws{number:09}" for number in range(count)]

    def ask(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._claims.ask, self.names))

    def delete(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._claims.delete, self.names))

    def found(self) -> dict[str, Claim]:
        return {c["metadata"]["name"]: Claim.read(c) for c in self._admin.list(self._claims.resource).items}

    def until_ready(self, *, timeout: float = PATIENCE) -> None:
        def waiting() -> list[str]:
            found = self.found()
            return [name for name in self.names if name not in found or not found[name].ready]

        eventually(lambda: not waiting(), timeout=timeout, every=0.3, what="claims are not Ready")

    def until_gone(self, *, timeout: float = PATIENCE) -> None:
        eventually(lambda: not self.found(), timeout=timeout, every=0.3, what="claims are not gone")


def life(crowd: Crowd, cloud: Emulator, *, speed: float, provisioners: Provisioners, claims: Claims) -> float:
    """All of them from creation to the end; the real seconds that it took."""
    provisioners.start(cloud, nodeAPI=claims.kind, **scaled(speed))
    began = time.monotonic()
    crowd.ask()
    crowd.until_ready(timeout=600)
    crowd.delete()
    crowd.until_gone(timeout=600)
    return time.monotonic() - began


def scaled(speed: float) -> dict[str, Any]:
    """The provisioner's default durations, for a cloud whose clock runs that much faster."""
    return {
        "poolPollInterval": f"{POLL_SECONDS / speed * 1000:.0f}ms",
        "gcInterval": f"{SWEEP_SECONDS / speed * 1000:.0f}ms",
    }


def requests_by_verb(cloud: Emulator) -> Counter[str]:
    """ARM requests; a listing counts once per page."""
    return Counter(r["verb"] for r in cloud.requests() if r["verb"] != "TOKEN")


@pytest.fixture
def fast_cloud(request: pytest.FixtureRequest, plane: ControlPlane, tmp_path: Path, admin: Client) -> Iterator[Any]:
    """A cloud with the latencies of AKS, whose clock runs ``request.param`` times as fast."""
    limits = Limits(pools=200)
    changes = {"durations": REALISTIC, "clock_speed": request.param, "page_size": PAGE, "limits": limits}
    with contextlib.contextmanager(emulated)(plane, tmp_path / "fast", admin, **changes) as cloud:
        yield cloud


@pytest.mark.parametrize("count", [20, pytest.param(50, marks=pytest.mark.soak)])
@pytest.mark.parametrize("fast_cloud", [40.0], indirect=True)
def test_claims_at_once_share_their_listings(
    fast_cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client, count: int
) -> None:
    crowd = Crowd(machines, admin, count)
    took = life(crowd, fast_cloud, speed=40.0, provisioners=provisioners, claims=machines)
    account = Account.of(fast_cloud, admin)
    made = requests_by_verb(fast_cloud)
    assert account.problems(()) == []
    assert sum(account.created.values()) == count
    assert (made["PUT"], made["DELETE"]) == (count, count)
    # One before the purchase, one before the deletion, one to see the end; and workers that find no listing yet ask.
    assert made["GET"] <= 3 * count + WORKERS
    assert made["LIST"] <= 2 + took * 40 / POLL_SECONDS + took * 40 / SWEEP_SECONDS


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fast_cloud", [5.0], indirect=True)
def test_two_hundred_claims_at_once_cost_less_than_six_requests_each(
    fast_cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client
) -> None:
    crowd = Crowd(machines, admin, 200)
    took = life(crowd, fast_cloud, speed=5.0, provisioners=provisioners, claims=machines)
    account = Account.of(fast_cloud, admin)
    made = requests_by_verb(fast_cloud)
    print(f"\n200 claims: {took:.0f} s, {made.total() / 200:.2f} ARM requests per claim: {dict(made)}", flush=True)
    assert account.problems(()) == []
    assert sum(account.created.values()) == 200
    assert made.total() < 6 * 200


def test_requests_that_are_never_answered_delay_no_other_claim(
    cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client
) -> None:
    crowd = Crowd(machines, admin, 12)
    hung = {"PUT": crowd.names[3], "GET": crowd.names[5]}
    with FaultProxy.before(cloud.endpoints.arm, Authority.open(cloud.settings.directory / "pki")) as arm:
        rules = [arm.on(method, f"/agentPools/{name}", Freeze(), times=None) for method, name in hung.items()]
        rules.append(arm.on("GET", r"/agentPools\?", Freeze(), skip=1))
        provisioners.start(cloud, arm=arm.url)
        crowd.ask()

        def ready() -> set[str]:
            return {name for name, claim in crowd.found().items() if claim.ready}

        # The provisioner itself gives a request up after 30 s. Whoever asked for the listing waits with it: one of the
        # others, or one of the two that are to hang, whose own request then comes after that.
        eventually(lambda: len(ready() - set(hung.values())) >= 9, every=0.2)
        assert len(arm.seen("PUT", f"/agentPools/{hung['PUT']}")) <= 1, "they waited until that request was given up"
        for rule in rules:
            rule.wait()
        assert ready().isdisjoint(hung.values())
        for rule in rules:
            rule.stop()
        arm.cut()
        crowd.until_ready()
        crowd.delete()
        crowd.until_gone()
    assert Account.of(cloud, admin).problems(()) == []
