"""kill -9 in the middle of a claim's life: one pool is made, and nothing is left (S1, S3, S4, S13)."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from tests.cluster.provisioner.conftest import Claims, Provisioners, age, created, nodes_of
from tests.cluster.proxy import FaultProxy, Hold
from tests.eventually import eventually, never

from kaito_hooks.runtime import Client
from kaito_local.aks import Emulator
from kaito_local.aks.errors import Refusal
from kaito_local.machine.pki import Authority


def test_killed_before_the_answer_to_the_put_arrives(
    cloud: Emulator, provisioners: Provisioners, claims: Claims, admin: Client
) -> None:
    """Another process takes over, before or after the cloud has dealt with the request."""
    name = "ws0000000b2"
    fault = cloud.fault(method="PUT", delay=5.0)
    first = provisioners.start(cloud, nodeAPI=claims.kind)
    claims.ask(name)
    eventually(lambda: not cloud.faults.waiting())
    first.kill()
    provisioners.start(cloud, nodeAPI=claims.kind)
    claims.until_ready(name)
    eventually(lambda: any(request["fault"] == fault.id for request in cloud.requests()))
    assert created(cloud) == [name]
    claims.delete(name)
    claims.until_gone(name)
    assert cloud.agent_pools() == []
    assert nodes_of(admin, name) == []
    assert created(cloud) == [name]


def test_a_purchase_that_was_on_its_way_when_its_claim_went_is_given_back(
    cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client
) -> None:
    name, gate = "ws0000000b7", threading.Event()
    with FaultProxy.before(cloud.endpoints.arm, Authority.open(cloud.settings.directory / "pki")) as arm:
        held = arm.on("PUT", f"/agentPools/{name}", Hold(gate))
        first = provisioners.start(cloud, arm=arm.url)
        machines.ask(name)
        held.wait()
        first.kill()
        machines.delete(name)
        provisioners.start(cloud)
        machines.until_gone(name)
        assert created(cloud) == []
        gate.set()
        eventually(lambda: created(cloud) == [name])
    # Where all this took more than half a minute it may be swept already.
    with suppress(Refusal):
        eventually(lambda: cloud.pools.get(name).state == "Succeeded")
        age(cloud, name)
    eventually(lambda: cloud.agent_pools() == [], every=0.2)
    eventually(lambda: nodes_of(admin, name) == [])
    assert created(cloud) == [name]


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_that_breaks_around_the_put_costs_nothing(
    cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client, cut: str
) -> None:
    cloud.fault(method="PUT", cut=cut)
    provisioners.start(cloud)
    machines.ask("ws0000000b3")
    machines.until_ready("ws0000000b3")
    (pool,) = cloud.agent_pools()
    assert len(created(cloud)) == 1 or cut == "after"
    machines.delete("ws0000000b3")
    machines.until_gone("ws0000000b3")
    assert len([e for e in cloud.ledger.events() if e["event"] == "Created"]) == 1
    assert pool.name == "ws0000000b3"


NO_CLUSTER = {"code": "ResourceNotFound", "message": "The Resource 'managedClusters/kaito' was not found."}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        # Each of them at a purchase: test_taxonomy.py.
        pytest.param(403, {"code": "AuthorizationFailed", "message": "no"}, marks=pytest.mark.soak),
        pytest.param(429, {"code": "TooManyRequests", "message": "no"}, marks=pytest.mark.soak),
        (500, {"code": "InternalServerError", "message": "no"}),
        (404, NO_CLUSTER),
    ],
    ids=["forbidden", "throttled", "broken", "no cluster"],
)
def test_a_claim_does_not_go_before_the_cloud_has_said_that_its_pool_is_gone(
    cloud: Emulator, provisioners: Provisioners, machines: Claims, status: int, error: dict[str, str]
) -> None:
    first = provisioners.start(cloud)
    machines.ask("ws0000000b6")
    machines.until_ready("ws0000000b6")
    # The look before the deletion is answered, all looks for the pool's end are not.
    cloud.fault(method="GET", pool="ws0000000b6", nth=2, times=None, status=status, body={"error": error})
    machines.delete("ws0000000b6")
    eventually(lambda: cloud.agent_pools() == [])
    never(lambda: machines.read("ws0000000b6") is None, within=3.0, every=0.2)
    cloud.faults.remove()
    first.kill()
    provisioners.start(cloud)
    machines.until_gone("ws0000000b6")


def test_two_leaders_at_once_buy_one_pool(cloud: Emulator, provisioners: Provisioners, machines: Claims) -> None:
    for _ in range(2):
        provisioners.start(cloud)
    for number in range(5):
        machines.ask(f"ws000000c0{number}")
    for number in range(5):
        machines.until_ready(f"ws000000c0{number}")
    assert sorted(created(cloud)) == [f"ws000000c0{number}" for number in range(5)]
