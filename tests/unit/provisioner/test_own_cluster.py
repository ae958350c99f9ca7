"""The configured cluster must be the one whose claims and Nodes we see before anything of it is given up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.driven.cluster import MemoryInformer
from tests.unit.provisioner.azure.test_aks_provider import Provider
from tests.unit.provisioner.memory_cloud import MemoryCloud
from tests.unit.provisioner.world import World

from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.cloud import Instance, State
from kaito_hooks.provisioner.errors import (
    AuthenticationFailed,
    CloudError,
    ConfigurationError,
    LaunchFailed,
    WrongCluster,
)
from kaito_hooks.provisioner.nodes import Nodes
from kaito_hooks.provisioner.own_cluster import OwnCluster
from kaito_hooks.provisioner.phases.collection import Collection
from kaito_local.aks import Emulator
from kaito_local.aks import Settings as CloudSettings

OURS = "azure:///subscriptions/s-1/resourceGroups/MC_kaito_kaito_eastus/"
SCALE_SET = "providers/Microsoft.Compute/virtualMachineScaleSets/aks-system-12345678-vmss/virtualMachines/0"
HERE = f"azure:///subscriptions/s-1/resourceGroups/mc_kaito_kaito_eastus/{SCALE_SET}"
ELSEWHERE = f"azure:///subscriptions/s-1/resourceGroups/mc_other_other_eastus/{SCALE_SET}"
OTHER_SUBSCRIPTION = f"azure:///subscriptions/s-2/resourceGroups/mc_kaito_kaito_eastus/{SCALE_SET}"
CLAIM = "ws000000001"
ORPHAN = {"kaito.sh/claim-uid": "uid-of-nobody"}


class CloudOfACluster(MemoryCloud):
    """``refusal``: what the cloud answers when it is asked where its cluster's machines lie."""

    refusal: CloudError | None = None
    asked = 0

    def provider_id_prefix(self) -> str:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        return OURS

    def is_machine(self, provider_id: str) -> bool:
        return provider_id.startswith("azure:///subscriptions/")


class Scene:
    """A cloud with an orphaned pool, and a cluster whose Nodes have these providerIDs."""

    def __init__(self, *provider_ids: str) -> None:
        self.world = World()
        self.inner = CloudOfACluster(self.world.clock)
        self.inner.add_foreign(CLAIM, ORPHAN)
        for number, provider_id in enumerate(provider_ids):
            self.add_node(f"node-{number}", provider_id)
        self.cache = MemoryInformer(self.world.cluster, resources.NODE, nodes.indexes("agentpool"))
        self.cache.sync()
        self.cloud = OwnCluster(self.inner, Nodes(self.cache))
        env = dataclasses.replace(self.world.env, cloud=self.cloud, nodes=Nodes(self.cache))
        self.collection = Collection(env, self.world.kinds, required="Machine")

    def add_node(self, name: str, provider_id: str) -> None:
        self.world.cluster.put(resources.NODE, {"metadata": {"name": name}, "spec": {"providerID": provider_id}})

    def sweep(self, times: int = 2) -> None:
        for _ in range(times):
            self.cache.sync()
            self.collection.sweep()

    @property
    def orphan_is_left_alone(self) -> bool:
        return self.inner.pools[CLAIM].state is State.SUCCEEDED


def test_an_orphan_goes_once_a_node_lies_where_the_clusters_machines_lie() -> None:
    scene = Scene(ELSEWHERE, HERE)
    scene.sweep()
    assert not scene.orphan_is_left_alone
    assert scene.cloud.problem() is None


@pytest.mark.parametrize("provider_id", [ELSEWHERE, OTHER_SUBSCRIPTION], ids=["resource group", "subscription"])
def test_another_clusters_orphans_are_left_alone_and_one_sentence_says_why(provider_id: str) -> None:
    scene = Scene(provider_id)
    scene.sweep(times=5)
    assert scene.orphan_is_left_alone
    problem = scene.cloud.problem()
    assert problem is not None
    assert OURS in problem
    assert provider_id in problem
    assert "settings.azure.clusterName" in problem
    assert "\n" not in problem


def test_in_another_cluster_nothing_is_bought_deleted_or_believed_to_be_gone() -> None:
    scene = Scene(ELSEWHERE)
    with pytest.raises(WrongCluster):
        scene.cloud.get("ws00000000b")
    with pytest.raises(WrongCluster):
        scene.cloud.delete(Instance(CLAIM, State.SUCCEEDED, ORPHAN))
    scene.world.ask("ws00000000b")
    env = dataclasses.replace(scene.world.env, cloud=scene.cloud)
    scene.world.env = env
    scene.world.lifecycles = {
        kind: dataclasses.replace(lifecycle, env=env) for kind, lifecycle in scene.world.lifecycles.items()
    }
    scene.world.reconcile("ws00000000b")
    state = scene.world.there("ws00000000b").steps["launched"]
    assert state.reason == "ConfigurationError"
    assert "the configured cluster is another one" in state.message
    assert scene.inner.created == []
    scene.world.give_back("ws00000000b")
    scene.world.reconcile("ws00000000b")
    assert scene.world.claim("ws00000000b") is not None, "an absence in another cluster is no absence"


@pytest.mark.parametrize(
    "provider_ids",
    [(), ("azure:///local/system",), ("kind://docker/kind/kind-control-plane", "")],
    ids=["no Node", "no place", "other clouds"],
)
def test_without_a_node_of_the_cloud_nothing_is_swept_but_the_first_one_can_be_bought(
    provider_ids: tuple[str, ...],
) -> None:
    scene = Scene(*provider_ids)
    scene.sweep()
    assert scene.orphan_is_left_alone
    assert OURS in str(scene.cloud.problem())
    assert scene.cloud.get("ws00000000b") is None
    scene.add_node("bought", HERE)
    scene.sweep()
    assert not scene.orphan_is_left_alone
    assert scene.cloud.problem() is None


@pytest.mark.parametrize(
    "refusal",
    [AuthenticationFailed("AuthorizationFailed", "no"), LaunchFailed("x", "later", transient=True)],
    ids=["forbidden", "broken"],
)
def test_a_cluster_that_cannot_be_looked_at_is_not_swept(refusal: CloudError) -> None:
    scene = Scene(HERE)
    scene.inner.refusal = refusal
    scene.sweep()
    assert scene.orphan_is_left_alone
    assert scene.cloud.problem() == refusal.message
    scene.inner.refusal = None
    scene.sweep()
    assert not scene.orphan_is_left_alone


@pytest.mark.parametrize("provider_ids", [(), (HERE,), (ELSEWHERE,)], ids=["unknown", "proven", "disproven"])
def test_the_cloud_is_asked_once_where_the_machines_lie(provider_ids: tuple[str, ...]) -> None:
    scene = Scene(*provider_ids)
    scene.sweep(times=10)
    assert scene.inner.asked == 1


def test_a_proof_outlives_the_node_that_gave_it() -> None:
    scene = Scene(HERE)
    scene.sweep()
    scene.world.cluster.drop(resources.NODE, "node-0")
    scene.cache.sync()
    assert scene.cloud.get(CLAIM) is not None
    assert scene.cloud.list() != []


def test_hints_cost_no_look_at_the_cluster() -> None:
    scene = Scene(ELSEWHERE)
    assert scene.cloud.get(CLAIM, max_age=5.0) is not None
    assert scene.inner.asked == 0


@pytest.fixture
def arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with Emulator(CloudSettings(directory=tmp_path / "cloud", clock_speed=0)) as emulator:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(emulator.endpoints.authority))
        yield emulator


def test_arm_says_where_the_clusters_machines_lie(arm: Emulator, tmp_path: Path) -> None:
    settings = arm.settings
    pools = Provider(arm, tmp_path).pools
    prefix = pools.provider_id_prefix()
    assert prefix == f"azure:///subscriptions/{settings.subscription}/resourceGroups/{settings.node_resource_group}/"
    assert pools.is_machine(HERE)
    assert not pools.is_machine("azure:///local/system")


def test_a_cluster_that_does_not_exist_is_a_configuration_error(arm: Emulator, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        Provider(arm, tmp_path, cluster_name="elsewhere").pools.provider_id_prefix()
