"""What AKS and other people do to a pool that exists, through the unmodified SDK; the clock stands still.

States and codes as AKS writes them: https://learn.microsoft.com/azure/aks/start-stop-nodepools,
https://learn.microsoft.com/azure/aks/quotas-skus-regions and the tests of the Azure CLI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError
from azure.mgmt.containerservice import ContainerServiceClient
from azure.mgmt.containerservice.models import PowerState
from tests.eventually import PATIENCE
from tests.unit.aks.sdk import gpu_pool, sdk

from kaito_local.aks import Durations, Emulator, Limits, MachineSpec, Settings

WHERE = ("kaito", "kaito")
DURATIONS = Durations(
    create_gpu=600, update=30, delete=60, abort=5, upgrade=300, start=120, stop=60, node_lead=30, node_ready=5
)
MEMBER, SURGE = "vmss000000", "vmss000001"


class Rack:
    """Machines that remember what became of them: node name to labels, and every change in order."""

    def __init__(self) -> None:
        self.running: dict[str, Mapping[str, str]] = {}
        self.changes: list[str] = []

    def start(self, spec: MachineSpec) -> None:
        if spec.node_name not in self.running:
            self.running[spec.node_name] = dict(spec.labels)
            self._note("start", spec.node_name)

    def remove(self, pool: str, node_name: str) -> None:
        if self.running.pop(node_name, None) is not None:
            self._note("remove", node_name)

    def reimage(self, spec: MachineSpec) -> None:
        self._note("reimage", spec.node_name)

    def relabel(self, node_name: str, labels: Mapping[str, str | None]) -> None:
        if node_name in self.running:
            merged = {**self.running[node_name], **labels}
            self.running[node_name] = {key: value for key, value in merged.items() if value is not None}

    def stop(self, pool: str) -> None:
        for name, labels in list(self.running.items()):
            if labels["agentpool"] == pool:
                self.remove(pool, name)

    def names(self) -> list[str]:
        return [_short(name) for name in self.running]

    def labels(self, short: str = MEMBER) -> Mapping[str, str]:
        return next(labels for name, labels in self.running.items() if name.endswith(short))

    def _note(self, change: str, node_name: str) -> None:
        self.changes.append(f"{change} {_short(node_name)}")


def _short(node_name: str) -> str:
    return node_name.rpartition("-")[2]


@pytest.fixture
def rack() -> Rack:
    return Rack()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(directory=tmp_path / "cloud", clock_speed=0, durations=DURATIONS)


@pytest.fixture
def cloud(settings: Settings, rack: Rack) -> Iterator[Emulator]:
    with Emulator(settings, machines=rack) as emulator:
        yield emulator


@pytest.fixture
def pool(cloud: Emulator, aks: ContainerServiceClient) -> str:
    """A pool that is Succeeded, with its machine."""
    create(aks)
    cloud.advance(600)
    return "ws1"


def create(aks: ContainerServiceClient, name: str = "ws1", **changed: object) -> None:
    aks.agent_pools.begin_create_or_update(
        *WHERE, name, gpu_pool(**changed), match_condition=MatchConditions.IfMissing, polling=False
    )


def change(aks: ContainerServiceClient, name: str = "ws1", **changed: object) -> None:
    aks.agent_pools.begin_create_or_update(*WHERE, name, gpu_pool(**changed), polling=False)


def switch(aks: ContainerServiceClient, power: str) -> None:
    change(aks, power_state=PowerState(code=power))


def upgrade(aks: ContainerServiceClient) -> None:
    aks.agent_pools.begin_upgrade_node_image_version(*WHERE, "ws1", polling=False)


def state(aks: ContainerServiceClient, name: str = "ws1") -> tuple[str, str]:
    pool = aks.agent_pools.get(*WHERE, name)
    return str(pool.provisioning_state), pool.power_state["code"]


def test_a_pool_s_node_joins_before_the_pool_is_succeeded(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack
) -> None:
    create(aks)
    cloud.advance(569)
    assert rack.names() == []
    cloud.advance(1)
    assert rack.names() == [MEMBER]
    assert state(aks)[0] == "Creating"
    cloud.advance(30)
    assert state(aks)[0] == "Succeeded"
    assert rack.changes == ["start vmss000000"]


def test_a_creation_that_will_fail_boots_nothing(cloud: Emulator, aks: ContainerServiceClient, rack: Rack) -> None:
    cloud.fault("allocation-failed")
    create(aks)
    cloud.advance(600)
    assert state(aks)[0] == "Failed"
    assert rack.changes == []


def test_the_machine_of_a_creation_that_is_preempted_goes_with_it(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack
) -> None:
    create(aks)
    cloud.advance(580)
    aks.agent_pools.begin_delete(*WHERE, "ws1", polling=False)
    cloud.advance(60)
    assert rack.changes == ["start vmss000000", "remove vmss000000"]
    assert cloud.agent_pools() == []


def test_a_late_machine_counts_from_the_pool_s_success(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack
) -> None:
    cloud.fault(target="machine", machine={"late": 40.0})
    create(aks)
    cloud.advance(639)
    assert (state(aks)[0], rack.names()) == ("Succeeded", [])
    cloud.advance(1)
    assert rack.names() == [MEMBER]


def test_a_node_image_upgrade_gives_the_node_back_under_its_name(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack, pool: str
) -> None:
    old = aks.agent_pools.get(*WHERE, pool).node_image_version
    own = dict(rack.labels())
    rack.changes.clear()
    upgrade(aks)
    cloud.settle()
    assert state(aks) == ("UpgradingNodeImageVersion", "Running")
    assert rack.names() == [MEMBER, SURGE]
    assert rack.labels(SURGE)["kaito.sh/claim-uid"] == own["kaito.sh/claim-uid"]
    cloud.advance(100)
    assert rack.names() == [SURGE]
    cloud.advance(100)
    assert rack.names() == [SURGE, MEMBER]
    assert state(aks)[0] == "UpgradingNodeImageVersion"
    cloud.advance(100)
    assert state(aks) == ("Succeeded", "Running")
    assert rack.names() == [MEMBER]
    assert rack.changes == [f"start {SURGE}", f"remove {MEMBER}", f"start {MEMBER}", f"remove {SURGE}"]
    new = aks.agent_pools.get(*WHERE, pool).node_image_version
    assert new != old
    image = "kubernetes.azure.com/node-image-version"
    assert (own[image], rack.labels()[image]) == (old, new)


def test_a_scale_set_gives_no_number_twice(cloud: Emulator, aks: ContainerServiceClient, rack: Rack, pool: str) -> None:
    for _ in range(2):
        upgrade(aks)
        cloud.advance(300)
    switch(aks, "Stopped")
    cloud.advance(60)
    switch(aks, "Running")
    cloud.advance(120)
    assert [c for c in rack.changes if c.startswith("start")] == [
        "start vmss000000",
        "start vmss000001",
        "start vmss000000",
        "start vmss000002",
        "start vmss000000",
        "start vmss000003",
    ]


def test_a_default_poller_waits_for_an_upgrade(tmp_path: Path) -> None:
    durations = replace(DURATIONS, create_gpu=0.1, upgrade=0.3)
    with (
        Emulator(Settings(directory=tmp_path / "cloud", durations=durations)) as cloud,
        sdk(cloud, tmp_path) as aks,
    ):
        aks.agent_pools.begin_create_or_update(*WHERE, "ws1", gpu_pool()).result(timeout=PATIENCE)
        aks.agent_pools.begin_upgrade_node_image_version(*WHERE, "ws1").result(timeout=PATIENCE)
        assert state(aks)[0] == "Succeeded"


def test_a_pool_that_is_being_upgraded_takes_no_other_operation(aks: ContainerServiceClient, pool: str) -> None:
    upgrade(aks)
    with pytest.raises(ResourceExistsError) as caught:
        aks.agent_pools.begin_delete(*WHERE, pool, polling=False)
    assert (caught.value.status_code, caught.value.error.code) == (409, "OperationNotAllowed")
    assert "(ws1 - UpgradingNodeImageVersion) is in progress" in caught.value.error.message


def test_an_upgrade_that_fails_leaves_the_node_as_it_is(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack, pool: str
) -> None:
    old = aks.agent_pools.get(*WHERE, pool).node_image_version
    rack.changes.clear()
    cloud.fault(method="POST", error={"code": "UpgradeVMSSAgentPoolFailed", "message": "no surge machine"})
    upgrade(aks)
    cloud.advance(300)
    failed = aks.agent_pools.get(*WHERE, pool)
    assert failed.provisioning_state == "Failed"
    assert failed.status.provisioning_error.code == "UpgradeVMSSAgentPoolFailed"
    assert (failed.node_image_version, rack.changes) == (old, [])
    upgrade(aks)
    cloud.advance(300)
    assert state(aks)[0] == "Succeeded"


def test_an_upgrade_goes_on_after_a_restart(settings: Settings, rack: Rack, tmp_path: Path) -> None:
    with Emulator(settings, machines=rack) as first, sdk(first, tmp_path) as aks:
        create(aks)
        first.advance(600)
        upgrade(aks)
        first.advance(100)
    with Emulator(settings, machines=rack) as second, sdk(second, tmp_path) as aks:
        second.advance(200)
        assert state(aks)[0] == "Succeeded"
    assert rack.changes[1:] == [f"start {SURGE}", f"remove {MEMBER}", f"start {MEMBER}", f"remove {SURGE}"]


def test_a_reimage_does_not_show_in_the_pool_s_state(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack, pool: str
) -> None:
    cloud.pools.reimage(pool)
    assert state(aks) == ("Succeeded", "Running")
    cloud.settle()
    assert rack.changes[-1] == f"reimage {MEMBER}"
    assert rack.names() == [MEMBER]


def test_a_stopped_pool_has_no_nodes_and_does_not_bill(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack, pool: str
) -> None:
    cloud.advance(40)
    switch(aks, "Stopped")
    cloud.settle()
    assert state(aks) == ("Stopping", "Stopped")
    cloud.advance(60)
    assert state(aks) == ("Succeeded", "Stopped")
    assert rack.names() == []
    cloud.advance(10_000)
    assert cloud.bills()[0].seconds == pytest.approx(100, abs=0.01)
    switch(aks, "Running")
    assert state(aks) == ("Starting", "Running")
    cloud.advance(120)
    assert state(aks) == ("Succeeded", "Running")
    assert rack.names() == [SURGE]
    cloud.advance(50)
    assert cloud.bills()[0].seconds == pytest.approx(150, abs=0.01)


def test_only_a_pool_that_is_succeeded_can_be_stopped(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.fault("allocation-failed")
    create(aks)
    cloud.advance(600)
    with pytest.raises(HttpResponseError, match="only one that is Succeeded") as caught:
        switch(aks, "Stopped")
    assert caught.value.error.code == "OperationNotAllowed"


def test_a_stopped_pool_takes_a_new_image_when_it_starts(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack, pool: str
) -> None:
    switch(aks, "Stopped")
    cloud.advance(60)
    upgrade(aks)
    cloud.advance(300)
    assert (state(aks), rack.names()) == (("Succeeded", "Stopped"), [])
    switch(aks, "Running")
    cloud.advance(120)
    version = aks.agent_pools.get(*WHERE, pool).node_image_version
    assert [labels["kubernetes.azure.com/node-image-version"] for labels in rack.running.values()] == [version]


def test_new_labels_replace_those_of_the_pool_and_of_its_node(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack, pool: str
) -> None:
    change(aks, node_labels={"team": "vision"})
    cloud.settle()
    assert state(aks)[0] == "Updating"
    labels = rack.labels()
    assert labels["team"] == "vision"
    assert "kaito.sh/claim-uid" not in labels
    assert labels["agentpool"] == pool
    cloud.advance(30)
    assert state(aks)[0] == "Succeeded"
    assert rack.changes == [f"start {MEMBER}"]


def test_a_deletion_that_fails_leaves_the_pool_its_machine_and_its_bill(
    cloud: Emulator, aks: ContainerServiceClient, rack: Rack, pool: str
) -> None:
    error = {"code": "DeleteVMSSAgentPoolFailed", "message": "the network interface is in use"}
    cloud.fault(method="DELETE", error=error)
    aks.agent_pools.begin_delete(*WHERE, pool, polling=False)
    assert state(aks)[0] == "Deleting"
    cloud.advance(60)
    failed = aks.agent_pools.get(*WHERE, pool)
    assert failed.provisioning_state == "Failed"
    assert failed.status.provisioning_error.code == "DeleteVMSSAgentPoolFailed"
    assert failed.status.provisioning_error.message == "the network interface is in use"
    assert rack.names() == [MEMBER]
    assert cloud.bills()[0].seconds == pytest.approx(60, abs=0.01)
    aks.agent_pools.begin_delete(*WHERE, pool, polling=False)
    cloud.advance(60)
    assert (cloud.agent_pools(), rack.names()) == ([], [])


def test_a_poller_reports_that_a_deletion_failed(tmp_path: Path) -> None:
    durations = replace(DURATIONS, create_gpu=0.1, delete=0.1)
    with (
        Emulator(Settings(directory=tmp_path / "cloud", durations=durations)) as cloud,
        sdk(cloud, tmp_path) as aks,
    ):
        aks.agent_pools.begin_create_or_update(*WHERE, "ws1", gpu_pool()).result(timeout=PATIENCE)
        cloud.fault(method="DELETE", error={"code": "DeleteVMSSAgentPoolFailed", "message": "in use"})
        with pytest.raises(HttpResponseError) as caught:
            aks.agent_pools.begin_delete(*WHERE, "ws1").result(timeout=PATIENCE)
        assert caught.value.error.code == "DeleteVMSSAgentPoolFailed"


def test_a_failed_deletion_is_not_completed_by_a_restart(settings: Settings, rack: Rack, tmp_path: Path) -> None:
    with Emulator(settings, machines=rack) as first, sdk(first, tmp_path) as aks:
        create(aks)
        first.advance(600)
        first.fault(method="DELETE", error={"code": "DeleteVMSSAgentPoolFailed", "message": "in use"})
        aks.agent_pools.begin_delete(*WHERE, "ws1", polling=False)
    with Emulator(settings, machines=rack) as second, sdk(second, tmp_path) as aks:
        second.advance(60)
        assert state(aks)[0] == "Failed"
    assert rack.names() == [MEMBER]


def test_the_hundred_and_first_pool_is_refused(cloud: Emulator, aks: ContainerServiceClient) -> None:
    for number in range(100):
        create(aks, f"ws{number}")
    with pytest.raises(HttpResponseError) as caught:
        create(aks, "ws100")
    assert (caught.value.status_code, caught.value.error.code) == (400, "MaxAgentPoolCountReached")
    assert len(cloud.agent_pools()) == 100


def test_pools_that_failed_or_are_being_deleted_count_until_they_are_gone(
    cloud: Emulator, aks: ContainerServiceClient
) -> None:
    cloud.set_limits(Limits(pools=2))
    cloud.fault("allocation-failed", pool="ws1")
    create(aks, "ws1")
    create(aks, "ws2")
    cloud.advance(600)
    aks.agent_pools.begin_delete(*WHERE, "ws2", polling=False)
    with pytest.raises(HttpResponseError, match="MaxAgentPoolCountReached"):
        create(aks, "ws3")
    cloud.advance(60)
    create(aks, "ws3")


def test_the_cluster_says_how_many_pools_it_may_have_and_where_its_machines_lie(
    cloud: Emulator, aks: ContainerServiceClient
) -> None:
    cluster = aks.managed_clusters.get(*WHERE)
    assert (cluster.max_agent_pools, cluster.node_resource_group) == (100, "MC_kaito_kaito_eastus")


@pytest.mark.parametrize(
    ("changed", "label"),
    [
        ({}, "MC_kaito_kaito_eastus"),
        ({"node_group": "gpu-nodes"}, "gpu-nodes"),
        ({"node_group": "nodes(west)"}, "nodes-west-z"),
        ({"node_group": "n" * 62 + "_rest"}, "n" * 62 + "z"),
        ({"resource_group": "g" * 70}, "MC_" + "g" * 60),
    ],
    ids=["made by AKS", "chosen", "no label value", "ends badly", "too long"],
)
def test_nodes_name_the_node_resource_group_as_far_as_a_label_can(
    tmp_path: Path, rack: Rack, changed: dict[str, str], label: str
) -> None:
    settings = Settings(directory=tmp_path / "cloud", clock_speed=0, durations=DURATIONS, **changed)
    with Emulator(settings, machines=rack) as cloud, sdk(cloud, tmp_path) as aks:
        where = (settings.resource_group, settings.cluster)
        assert aks.managed_clusters.get(*where).node_resource_group == settings.node_resource_group
        aks.agent_pools.begin_create_or_update(*where, "ws1", gpu_pool(), polling=False)
        cloud.advance(600)
    assert rack.labels()["kubernetes.azure.com/cluster"] == label
