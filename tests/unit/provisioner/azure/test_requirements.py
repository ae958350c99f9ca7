"""What a claim requires of its machine: zones, spot, architecture. What cannot be had is refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.unit.provisioner.azure.test_aks_provider import Provider
from tests.unit.provisioner.budget import LAUNCH, ORDER
from tests.unit.provisioner.world import World

from kaito_hooks.api.claim import Claim, ClaimSpec, NodeAPI, encode
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.azure.agent_pool import order
from kaito_hooks.provisioner.cloud import Order
from kaito_hooks.provisioner.errors import InvalidRequest
from kaito_hooks.runtime import Obj, SystemClock
from kaito_local.aks import Emulator
from kaito_local.aks import Settings as CloudSettings

ZONE, CAPACITY = "topology.kubernetes.io/zone", "karpenter.sh/capacity-type"
ARCH, REGION = "kubernetes.io/arch", "topology.kubernetes.io/region"
SYSTEM = "kubernetes.io/os"
CLAIM = "ws000000001"


def requires(key: str, operator: str, *values: str) -> Obj:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def wanted(*requirements: Obj, instance_type: str = "Standard_NC6s_v3", kind: NodeAPI = "NodeClaim") -> Order:
    """The order for a claim with further requirements."""
    obj = encode(ClaimSpec(CLAIM, {"kaito.sh/workspace": "w"}, instance_type), kind)
    obj["metadata"]["uid"] = "uid-a"
    given = {requirement["key"] for requirement in requirements}
    kept = [requirement for requirement in obj["spec"]["requirements"] if requirement["key"] not in given]
    obj["spec"]["requirements"] = [*kept, *requirements]
    return order(Claim.read(obj), SystemClock().now())


@pytest.mark.parametrize("kind", get_args(NodeAPI))
def test_who_asks_for_nothing_gets_a_regional_machine_on_demand(kind: NodeAPI) -> None:
    found = wanted(kind=kind)
    assert (found.zones, found.spot, found.region) == ((), False, "")


@pytest.mark.parametrize(
    ("requirements", "zones"),
    [
        ([requires(ZONE, "In", "eastus-2")], ("eastus-2",)),
        ([requires(ZONE, "In", "eastus-3", "eastus-1")], ("eastus-1", "eastus-3")),
        ([requires(ZONE, "In", "eastus-1", "eastus-2"), requires(ZONE, "NotIn", "eastus-1")], ("eastus-2",)),
        ([requires(ZONE, "In", "eastus-1", "eastus-2"), requires(ZONE, "In", "eastus-2", "eastus-3")], ("eastus-2",)),
        ([requires(ZONE, "Exists")], ()),
        ([requires(ZONE, "Exists"), requires(ZONE, "In", "eastus-1")], ("eastus-1",)),
    ],
    ids=["one", "several", "but one", "two that overlap", "any", "any of one"],
)
def test_the_zones_that_all_requirements_admit_are_ordered(requirements: list[Obj], zones: tuple[str, ...]) -> None:
    assert wanted(*requirements).zones == zones


@pytest.mark.parametrize(
    ("requirements", "spot"),
    [
        ([requires(CAPACITY, "In", "spot")], True),
        ([requires(CAPACITY, "In", "on-demand")], False),
        ([requires(CAPACITY, "In", "spot", "on-demand")], False),
        ([requires(CAPACITY, "NotIn", "on-demand")], True),
        ([requires(CAPACITY, "NotIn", "spot")], False),
        ([requires(CAPACITY, "In", "spot", "on-demand"), requires(CAPACITY, "NotIn", "on-demand")], True),
        ([requires(CAPACITY, "Exists")], False),
    ],
    ids=["spot", "on-demand", "either", "not on-demand", "not spot", "either, but not on-demand", "any"],
)
def test_spot_is_ordered_where_nothing_else_is_admitted(requirements: list[Obj], spot: bool) -> None:
    assert wanted(*requirements).spot is spot


@pytest.mark.parametrize(
    ("instance_type", "architecture"),
    [
        ("Standard_NC6s_v3", "amd64"),
        ("Standard_ND96isr_H100_v5", "amd64"),
        ("Standard_NC24ads_A100_v4", "amd64"),
        ("Standard_D2s_v5", "amd64"),
        ("Standard_D2ps_v5", "arm64"),
        ("Standard_E4pds_v6", "arm64"),
        ("Standard_E32-16ps_v6", "arm64"),
        ("Standard_ND128isr_NDR_GB200_v6", "arm64"),
        ("Standard_ND128isr_GB300_v6", "arm64"),
    ],
)
def test_the_architecture_is_that_of_the_instance_type(instance_type: str, architecture: str) -> None:
    other = {"amd64": "arm64", "arm64": "amd64"}[architecture]
    for admitted in (("In", architecture), ("In", "arm64", "amd64"), ("NotIn", other), ("Exists",)):
        wanted(requires(ARCH, *admitted), instance_type=instance_type)
    for refused in (("In", other), ("NotIn", architecture), ("DoesNotExist",)):
        with pytest.raises(InvalidRequest) as caught:
            wanted(requires(ARCH, *refused), instance_type=instance_type)
        assert instance_type in caught.value.message
        assert f"architecture {architecture}" in caught.value.message


@pytest.mark.parametrize(
    ("requirements", "words"),
    [
        ([requires(ZONE, "NotIn", "eastus-1")], "with operator In"),
        ([requires(ZONE, "DoesNotExist")], "leave no zone"),
        ([requires(ZONE, "In", "eastus-1"), requires(ZONE, "In", "eastus-2")], "leave no zone"),
        ([requires(ZONE, "Gt", "1")], "leave no zone"),
        ([requires(ZONE, "In", "us-east-1a")], "'us-east-1a' is not a region and the number of a zone"),
        ([requires(ZONE, "In", "1")], "'1' is not a region"),
        ([requires(CAPACITY, "In", "reserved")], "neither on-demand nor spot"),
        ([requires(CAPACITY, "NotIn", "spot", "on-demand")], "neither on-demand nor spot"),
        ([requires(CAPACITY, "DoesNotExist")], "neither on-demand nor spot"),
        ([requires(SYSTEM, "In", "windows")], "the requirements for kubernetes.io/os do not admit linux"),
        ([requires(SYSTEM, "NotIn", "linux")], "the requirements for kubernetes.io/os do not admit linux"),
    ],
)
def test_what_cannot_be_fulfilled_is_refused(requirements: list[Obj], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wanted(*requirements)
    assert words in caught.value.message


def test_one_of_several_operating_systems_may_be_linux() -> None:
    wanted(requires(SYSTEM, "In", "windows", "linux"))


@pytest.mark.parametrize(("kind", "expected"), [("spot", "spot"), ("on-demand", "on-demand")])
def test_claim_and_node_say_how_the_machine_is_paid_for(kind: str, expected: str) -> None:
    world = World(node_api="NodeClaim")
    world.allow(LAUNCH)
    claim = world.ask()
    claim["spec"]["requirements"] += [requires(CAPACITY, "NotIn", {"spot": "on-demand"}.get(kind, "spot"))]
    world.cluster.put(resources.NODE_CLAIM, claim)
    world.run(200)
    node = world.node_of()
    assert node is not None
    assert world.there().labels[CAPACITY] == expected
    assert node["metadata"]["labels"][CAPACITY] == expected


def test_a_claim_that_cannot_be_fulfilled_says_so_and_costs_nothing() -> None:
    world = World(node_api="NodeClaim")
    world.allow(ORDER)
    claim = world.ask()
    claim["spec"]["requirements"] += [requires(ARCH, "In", "arm64")]
    world.cluster.put(resources.NODE_CLAIM, claim)
    world.run(30)
    state = world.there().steps["launched"]
    assert state.reason == "InvalidRequest"
    assert "instance type Standard_NC6s_v3 has architecture amd64" in state.message
    assert world.cloud.created == []


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with Emulator(CloudSettings(directory=tmp_path / "cloud", clock_speed=0)) as emulator:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(emulator.endpoints.authority))
        yield emulator


def asked(cloud: Emulator) -> dict[str, Any]:
    """The properties in the body of the PUT."""
    return next(r for r in cloud.requests() if r["method"] == "PUT")["body"]["properties"]  # type: ignore[no-any-return]


def test_zones_and_spot_are_asked_of_aks(cloud: Emulator, tmp_path: Path) -> None:
    provider = Provider(cloud, tmp_path, location="East US")
    provider.pools.ensure(wanted(requires(ZONE, "In", "eastus-1", "eastus-3"), requires(CAPACITY, "In", "spot")))
    body = asked(cloud)
    assert body["availabilityZones"] == ["1", "3"]
    assert body["scaleSetPriority"] == "Spot"
    assert body["scaleSetEvictionPolicy"] == "Delete"
    assert body["spotMaxPrice"] == -1
    assert body["nodeTaints"] == ["sku=gpu:NoSchedule", "kubernetes.azure.com/scalesetpriority=spot:NoSchedule"]


def test_nothing_of_it_is_asked_for_a_regional_machine_on_demand(cloud: Emulator, tmp_path: Path) -> None:
    Provider(cloud, tmp_path).pools.ensure(wanted())
    assert {"availabilityZones", "scaleSetPriority", "scaleSetEvictionPolicy", "spotMaxPrice"}.isdisjoint(asked(cloud))


@pytest.mark.parametrize(
    "requirement", [requires(ZONE, "In", "westus-1"), requires(REGION, "In", "westus")], ids=["zone", "region"]
)
def test_a_zone_of_another_region_is_refused_where_the_clusters_is_known(
    cloud: Emulator, tmp_path: Path, requirement: Obj
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Provider(cloud, tmp_path, location="eastus").pools.ensure(wanted(requirement))
    assert caught.value.message == "InvalidClaim: region westus is asked for, but the cluster is in eastus"
    assert [r for r in cloud.requests() if r["method"] == "PUT"] == []
