"""The fields that an operator gives every agent pool: checked at the start, sent to AKS, and what a claim says wins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.unit.provisioner.azure.test_aks_provider import Provider, claim
from tests.unit.provisioner.azure.test_requirements import ZONE, asked, requires

from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.azure.pool_fields import DECIDED_BY_THE_CLAIM, known_fields, pool_fields
from kaito_hooks.provisioner.configuration import ConfigurationInvalid
from kaito_hooks.provisioner.errors import InvalidRequest
from kaito_hooks.runtime import SystemClock
from kaito_local.aks import Emulator
from kaito_local.aks import Settings as CloudSettings

SCHEMA = Path(__file__).parents[4] / "charts" / "gpu-provisioner" / "values.schema.json"
NETWORK = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/corporate"
SYSTEM_SUBNET, POD_SUBNET, GPU_SUBNET = (f"{NETWORK}/subnets/{name}" for name in ("system", "pods", "gpu"))


def cloud_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, subnet: str, pod_subnet: str = ""
) -> Iterator[Emulator]:
    settings = CloudSettings(directory=tmp_path / "cloud", clock_speed=0, subnet=subnet, pod_subnet=pod_subnet)
    with Emulator(settings) as emulator:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(emulator.endpoints.authority))
        yield emulator


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A cluster in the network that AKS made for it."""
    yield from cloud_in(tmp_path, monkeypatch, subnet="")


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A cluster in a network that its users brought."""
    yield from cloud_in(tmp_path, monkeypatch, subnet=SYSTEM_SUBNET)


def buy(provider: Provider, bought: Claim | None = None) -> None:
    provider.pools.ensure(provider.pools.order(bought or claim(), SystemClock().now()))


def in_zone(zone: str, **changes: Any) -> Claim:
    obj = deepcopy(claim(**changes).object)
    obj["spec"]["requirements"].append(requires(ZONE, "In", zone))
    return Claim.read(obj)


FIELDS: dict[str, Any] = {
    "tags": {"costCenter": "42"},
    "availabilityZones": ["1", "2"],
    "osSKU": "AzureLinux",
    "gpuProfile": {"driver": "None"},
    "maxPods": 30,
    "enableEncryptionAtHost": True,
    "linuxOSConfig": {"sysctls": {"vmMaxMapCount": 262144}},
}


def test_every_pool_has_the_operators_fields_on_the_wire(cloud: Emulator, tmp_path: Path) -> None:
    buy(Provider(cloud, tmp_path, fields=FIELDS))
    assert asked(cloud).items() >= FIELDS.items()
    (pool,) = cloud.agent_pools()
    assert pool.properties["tags"] == {"costCenter": "42"}


def test_what_a_claim_says_wins(cloud: Emulator, tmp_path: Path) -> None:
    provider = Provider(cloud, tmp_path, fields={"availabilityZones": ["2"], "osSKU": "AzureLinux"})
    buy(provider, in_zone("eastus-3", annotations={"kaito.sh/node-image-family": "Ubuntu"}))
    assert asked(cloud)["availabilityZones"] == ["3"]
    assert asked(cloud)["osSKU"] == "Ubuntu"


def test_an_image_family_that_nobody_knows_falls_back_to_the_operators(cloud: Emulator, tmp_path: Path) -> None:
    provider = Provider(cloud, tmp_path, fields={"osSKU": "AzureLinux"})
    order = provider.pools.order(claim(annotations={"kaito.sh/node-image-family": "Debian"}), SystemClock().now())
    assert order.image_family == "AzureLinux"
    assert order.warning.endswith("AzureLinux is used")


def test_a_cluster_in_akss_own_network_is_asked_for_no_subnet(cloud: Emulator, tmp_path: Path) -> None:
    buy(Provider(cloud, tmp_path))
    assert "vnetSubnetID" not in asked(cloud)


def test_in_a_network_of_its_users_a_pool_joins_the_system_pools_subnet(own_network: Emulator, tmp_path: Path) -> None:
    buy(Provider(own_network, tmp_path))
    assert asked(own_network)["vnetSubnetID"] == SYSTEM_SUBNET


def test_where_pods_have_a_subnet_of_their_own_a_pool_joins_the_system_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cloud in cloud_in(tmp_path, monkeypatch, subnet=SYSTEM_SUBNET, pod_subnet=POD_SUBNET):
        buy(Provider(cloud, tmp_path))
        assert (asked(cloud)["vnetSubnetID"], asked(cloud)["podSubnetID"]) == (SYSTEM_SUBNET, POD_SUBNET)


@pytest.mark.parametrize(
    ("fields", "pods"),
    [({"podSubnetID": GPU_SUBNET}, GPU_SUBNET), ({"vnetSubnetID": GPU_SUBNET}, None)],
    ids=["the Pods' own", "the nodes' own, which names the network"],
)
def test_the_operators_pod_subnet_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], pods: str | None
) -> None:
    for cloud in cloud_in(tmp_path, monkeypatch, subnet=SYSTEM_SUBNET, pod_subnet=POD_SUBNET):
        buy(Provider(cloud, tmp_path, fields=fields))
        assert asked(cloud).get("podSubnetID") == pods


def test_where_pods_have_none_a_pool_is_asked_for_none(own_network: Emulator, tmp_path: Path) -> None:
    buy(Provider(own_network, tmp_path))
    assert "podSubnetID" not in asked(own_network)


def test_the_cluster_is_asked_for_its_subnet_once(own_network: Emulator, tmp_path: Path) -> None:
    provider = Provider(own_network, tmp_path)
    for name in ("ws00000000a", "ws00000000b", "ws00000000c"):
        buy(provider, claim(name, f"uid-{name}"))
    assert [request["verb"] for request in own_network.requests()].count("CLUSTER") == 1


def test_the_operators_subnet_is_not_looked_up(own_network: Emulator, tmp_path: Path) -> None:
    buy(Provider(own_network, tmp_path, fields={"vnetSubnetID": GPU_SUBNET}))
    assert asked(own_network)["vnetSubnetID"] == GPU_SUBNET
    assert "CLUSTER" not in [request["verb"] for request in own_network.requests()]


def test_a_subnet_that_aks_refuses_is_told_in_its_words(cloud: Emulator, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        buy(Provider(cloud, tmp_path, fields={"vnetSubnetID": GPU_SUBNET}))
    assert "Cannot use a custom subnet because agent pool nodepool1 is using a managed subnet" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"subnet": "x"}, "agentPool.subnet is no field that AKS knows there; possible are artifactStreamingProfile, "),
        ({"VnetSubnetID": "x"}, "agentPool.VnetSubnetID is no field that AKS knows there; possible are "),
        ({"eTag": "x"}, "agentPool.eTag is no field that AKS knows there; possible are "),
        ({"vmSize": "x"}, "agentPool.vmSize is not for the chart to set: every claim decides it"),
        ({"osSKU": "Debian"}, "agentPool.osSKU is 'Debian'; it must be one of Ubuntu, AzureLinux, "),
        ({"tags": {"a": 1}}, "agentPool.tags.a is 1; it must be a string"),
        ({"tags": "a=1"}, "agentPool.tags is 'a=1'; it must be a mapping"),
        ({"maxPods": "30"}, "agentPool.maxPods is '30'; it must be a whole number"),
        ({"maxPods": True}, "agentPool.maxPods is True; it must be a whole number"),
        ({"enableFIPS": "yes"}, "agentPool.enableFIPS is 'yes'; it must be true or false"),
        ({"availabilityZones": "1"}, "agentPool.availabilityZones is '1'; it must be a list"),
        ({"availabilityZones": [1]}, "agentPool.availabilityZones[0] is 1; it must be a string"),
        ({"gpuProfile": {"driver": "Any"}}, "agentPool.gpuProfile.driver is 'Any'; it must be one of Install, None"),
        ({"gpuProfile": {"drive": "x"}}, "agentPool.gpuProfile.drive is no field that AKS knows there; possible are d"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_one_sentence_that_says_what_is_possible(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        pool_fields(fields)
    assert str(caught.value).startswith(sentence)


def test_no_system_but_linux_is_named_as_possible() -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        pool_fields({"osSKU": "Windows2022"})
    assert "Windows" not in str(caught.value).partition(";")[2]


def test_the_charts_schema_has_exactly_the_fields_that_can_be_set() -> None:
    schema = json.loads(SCHEMA.read_text())["properties"]["agentPool"]
    assert sorted(schema["properties"]) == sorted(known_fields())
    assert DECIDED_BY_THE_CLAIM.isdisjoint(known_fields())


def test_the_charts_schema_names_the_values_that_are_possible() -> None:
    schema = json.loads(SCHEMA.read_text())["properties"]["agentPool"]
    chosen = {name: field["enum"] for name, field in schema["properties"].items() if "enum" in field}
    assert {"osSKU", "osDiskType", "kubeletDiskType", "gpuInstanceProfile"} <= chosen.keys()
    for name, values in chosen.items():
        with pytest.raises(ConfigurationInvalid) as caught:
            pool_fields({name: "none of them"})
        possible = str(caught.value).partition("must be one of ")[2].split(", ")
        assert sorted(values) == sorted(["", *possible]), name
    driver = json.loads(SCHEMA.read_text())["$defs"]["gpuProfile"]["properties"]["driver"]["enum"]
    for value in driver:
        assert pool_fields({"gpuProfile": {"driver": value}})
