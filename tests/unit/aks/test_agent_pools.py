"""Agent pools through the unmodified SDK; the clock stands still unless a test moves it."""

from __future__ import annotations

from pathlib import Path

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceResponseError,
)
from azure.mgmt.containerservice import ContainerServiceClient
from tests.eventually import PATIENCE
from tests.unit.aks.sdk import GPU_SIZE, gpu_pool, sdk

from kaito_local.aks import Durations, Emulator, Limits, Settings
from kaito_local.aks.errors import Refusal
from kaito_local.aks.pools.validation import check_body

WHERE = ("kaito", "kaito")


def create(aks: ContainerServiceClient, name: str = "ws1", **changed: object) -> None:
    aks.agent_pools.begin_create_or_update(
        *WHERE, name, gpu_pool(**changed), match_condition=MatchConditions.IfMissing, polling=False, retry_total=0
    )


def state(aks: ContainerServiceClient, name: str = "ws1") -> str:
    return str(aks.agent_pools.get(*WHERE, name).provisioning_state)


def test_a_pool_succeeds_by_the_clock_although_nobody_polls(cloud: Emulator, aks: ContainerServiceClient) -> None:
    create(aks)
    assert state(aks) == "Creating"
    for _ in range(20):
        assert state(aks) == "Creating"
    cloud.advance(599)
    assert state(aks) == "Creating"
    cloud.advance(1)
    assert state(aks) == "Succeeded"


def test_a_pool_is_shown_as_aks_shows_it(cloud: Emulator, aks: ContainerServiceClient) -> None:
    create(aks)
    pool = aks.agent_pools.get(*WHERE, "ws1")
    assert pool.id == (
        "/subscriptions/00000000-0000-0000-0000-000000000001/resourcegroups/kaito/providers/"
        "Microsoft.ContainerService/managedClusters/kaito/agentPools/ws1"
    )
    assert pool.vm_size == GPU_SIZE
    assert pool.node_labels == {"kaito.sh/claim-uid": "uid-1", "kaito.sh/workspace": "phi"}
    assert pool.node_taints == ["sku=gpu:NoSchedule"]
    assert pool.mode == "User"
    assert pool.e_tag
    put = next(entry for entry in cloud.requests() if entry["method"] == "PUT")
    assert put["status"] == 201
    assert put["flags"] == []
    assert "Azure-AsyncOperation" in put["headers"]
    assert "Retry-After" not in put["headers"]


def test_a_default_poller_waits_until_the_pool_is_there_and_until_it_is_gone(tmp_path: Path) -> None:
    durations = Durations(create_gpu=0.3, delete=0.3)
    with Emulator(Settings(directory=tmp_path / "cloud", durations=durations)) as cloud, sdk(cloud, tmp_path) as aks:
        pool = aks.agent_pools.begin_create_or_update(*WHERE, "ws1", gpu_pool()).result(timeout=PATIENCE)
        assert pool.provisioning_state == "Succeeded"
        aks.agent_pools.begin_delete(*WHERE, "ws1").result(timeout=PATIENCE)
        assert list(aks.agent_pools.list(*WHERE)) == []


def test_a_default_poller_reports_the_failure_of_an_operation(tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path / "cloud", durations=Durations(create_gpu=0.1))
    with Emulator(settings) as cloud, sdk(cloud, tmp_path) as aks:
        cloud.fault("allocation-failed")
        poller = aks.agent_pools.begin_create_or_update(*WHERE, "ws1", gpu_pool())
        with pytest.raises(HttpResponseError) as caught:
            poller.result(timeout=PATIENCE)
        assert caught.value.status_code == 200
        assert caught.value.error.code == "AllocationFailed"


def test_a_failed_pool_stays_and_names_its_error(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.fault("nested-allocation-failed", pool="ws*")
    create(aks)
    cloud.advance(600)
    pool = aks.agent_pools.get(*WHERE, "ws1")
    assert pool.provisioning_state == "Failed"
    assert pool.status.provisioning_error.code == "CreateVMSSAgentPoolFailed"
    assert pool.status.provisioning_error.details[0].code == "AllocationFailed"


def test_a_second_put_of_a_name_is_refused_when_it_must_be_the_first(
    cloud: Emulator, aks: ContainerServiceClient
) -> None:
    create(aks)
    with pytest.raises(ResourceExistsError) as caught:
        create(aks)
    assert caught.value.status_code == 412
    assert [bill.pool for bill in cloud.bills()] == ["ws1"]


def test_a_put_without_a_condition_changes_the_pool_and_is_flagged(
    cloud: Emulator, aks: ContainerServiceClient
) -> None:
    create(aks)
    cloud.advance(600)
    before = aks.agent_pools.get(*WHERE, "ws1").e_tag
    aks.agent_pools.begin_create_or_update(*WHERE, "ws1", gpu_pool(node_labels={"a": "b"}), polling=False)
    pool = aks.agent_pools.get(*WHERE, "ws1")
    assert (pool.provisioning_state, pool.node_labels) == ("Updating", {"a": "b"})
    assert pool.e_tag != before
    put = [entry for entry in cloud.requests() if entry["method"] == "PUT"][-1]
    assert (put["status"], put["flags"]) == (200, ["no-if-none-match", "changes-a-pool"])


def test_a_deletion_needs_the_etag_that_was_seen(cloud: Emulator, aks: ContainerServiceClient) -> None:
    create(aks)
    seen = aks.agent_pools.get(*WHERE, "ws1").e_tag
    cloud.advance(600)
    with pytest.raises(ResourceModifiedError):
        aks.agent_pools.begin_delete(
            *WHERE, "ws1", etag=seen, match_condition=MatchConditions.IfNotModified, polling=False
        )
    assert state(aks) == "Succeeded"
    seen = aks.agent_pools.get(*WHERE, "ws1").e_tag
    aks.agent_pools.begin_delete(*WHERE, "ws1", etag=seen, match_condition=MatchConditions.IfNotModified, polling=False)
    assert state(aks) == "Deleting"
    cloud.advance(60)
    with pytest.raises(ResourceNotFoundError) as caught:
        state(aks)
    assert caught.value.error.code == "NotFound"
    assert "Agent Pool not found" in caught.value.error.message


def test_deleting_what_is_not_there_is_done_at_once(aks: ContainerServiceClient) -> None:
    aks.agent_pools.begin_delete(*WHERE, "ws1", polling=False)


def test_deleting_a_foreign_pool_is_flagged(cloud: Emulator, aks: ContainerServiceClient) -> None:
    create(aks, node_labels={"team": "vision"})
    aks.agent_pools.begin_delete(*WHERE, "ws1", polling=False)
    assert cloud.requests()[-1]["flags"] == ["foreign-pool"]


def test_a_deletion_preempts_a_creation(cloud: Emulator, aks: ContainerServiceClient) -> None:
    create(aks)
    aks.agent_pools.begin_delete(*WHERE, "ws1", polling=False)
    cloud.advance(60)
    assert cloud.agent_pools() == []
    assert cloud.bills()[0].seconds == 0


def test_a_deletion_can_be_refused_while_the_pool_is_being_created(tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path / "cloud", clock_speed=0, delete_while_creating="refuse")
    with Emulator(settings) as cloud, sdk(cloud, tmp_path) as aks:
        create(aks)
        with pytest.raises(ResourceExistsError) as caught:
            aks.agent_pools.begin_delete(*WHERE, "ws1", polling=False)
        assert caught.value.error.code == "OperationNotAllowed"
        assert "in progress create node pool operation" in caught.value.error.message


def test_a_name_that_is_being_deleted_cannot_be_used(cloud: Emulator, aks: ContainerServiceClient) -> None:
    create(aks)
    aks.agent_pools.begin_delete(*WHERE, "ws1", polling=False)
    with pytest.raises(ResourceExistsError) as caught:
        aks.agent_pools.begin_create_or_update(*WHERE, "ws1", gpu_pool(), polling=False)
    assert (caught.value.status_code, caught.value.error.code) == (409, "OperationNotAllowed")


def test_a_locked_cluster_takes_one_operation_at_a_time(tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path / "cloud", clock_speed=0, locks="cluster")
    with Emulator(settings) as cloud, sdk(cloud, tmp_path) as aks:
        create(aks, "ws1")
        with pytest.raises(ResourceExistsError) as caught:
            create(aks, "ws2")
        assert "Another operation (ws1 - Creating) is in progress" in caught.value.error.message
        cloud.advance(700)
        create(aks, "ws2")


def test_an_aborted_creation_ends_canceled(cloud: Emulator, aks: ContainerServiceClient) -> None:
    create(aks)
    aks.agent_pools.begin_abort_latest_operation(*WHERE, "ws1", polling=False)
    cloud.advance(5)
    assert state(aks) == "Canceled"
    cloud.advance(600)
    assert state(aks) == "Canceled"


def test_a_list_comes_in_pages(tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path / "cloud", clock_speed=0, page_size=2)
    with Emulator(settings) as cloud, sdk(cloud, tmp_path) as aks:
        for number in range(5):
            create(aks, f"ws{number}")
        assert [pool.name for pool in aks.agent_pools.list(*WHERE)] == [f"ws{number}" for number in range(5)]
        assert sum(entry["verb"] == "LIST" for entry in cloud.requests()) == 3


def test_a_list_can_be_stale_or_partial(cloud: Emulator, aks: ContainerServiceClient) -> None:
    create(aks, "ws1")
    cloud.advance(100)
    create(aks, "ws2")
    cloud.fault(method="LIST", stale=50)
    assert [pool.name for pool in aks.agent_pools.list(*WHERE)] == ["ws1"]
    cloud.fault(method="LIST", omit=["ws1"])
    assert [pool.name for pool in aks.agent_pools.list(*WHERE)] == ["ws2"]
    assert [pool.name for pool in aks.agent_pools.list(*WHERE)] == ["ws1", "ws2"]


def test_a_connection_cut_after_the_effect_leaves_one_pool(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.fault("cut-after")
    with pytest.raises(ServiceResponseError):
        create(aks)
    with pytest.raises(ResourceExistsError):
        create(aks)
    assert len(cloud.agent_pools()) == 1


def test_a_connection_cut_before_the_effect_leaves_none(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.fault("cut-before")
    with pytest.raises(ServiceResponseError):
        create(aks)
    assert cloud.agent_pools() == []


def test_a_fault_applies_to_the_nth_request_and_as_often_as_asked(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.fault("unavailable", method="GET", pool="ws1", nth=2, times=2)
    create(aks)
    outcomes = []
    for _ in range(4):
        try:
            outcomes.append(state(aks))
        except HttpResponseError as error:
            outcomes.append(str(error.status_code))
    assert outcomes == ["Creating", "503", "503", "Creating"]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"vm_size": "Standard_Nowhere"}, "VMSizeNotSupported"),
        ({"count": -1}, "InvalidParameter"),
        ({"os_disk_size_gb": 10}, "InvalidParameter"),
        ({"node_taints": ["no effect"]}, "InvalidParameter"),
        ({"node_labels": {"kubernetes.azure.com/x": "y"}}, "InvalidParameter"),
        ({"node_labels": {"a": "not a value"}}, "InvalidParameter"),
    ],
    ids=["unknown size", "negative count", "small disk", "bad taint", "reserved label", "bad label value"],
)
def test_a_malformed_pool_is_refused(aks: ContainerServiceClient, changed: dict[str, object], code: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        create(aks, **changed)
    assert (caught.value.status_code, caught.value.error.code) == (400, code)


TYPED = (
    *("count", "osDiskSizeGB", "osType", "osSKU", "mode", "vnetSubnetID", "podSubnetID", "scaleSetPriority"),
    *("powerState", "gpuProfile", "nodeLabels", "tags", "nodeTaints", "availabilityZones"),
)
NO_TYPE_OF_THEIRS = {"text": "x y", "number": 1.5, "list of lists": [[1]], "object": {"code": {}, "driver": []}}


@pytest.mark.parametrize("value", NO_TYPE_OF_THEIRS.values(), ids=NO_TYPE_OF_THEIRS)
@pytest.mark.parametrize("field", TYPED)
def test_a_field_of_another_type_is_refused_and_never_an_error_of_the_server(
    tmp_path: Path, field: str, value: object
) -> None:
    with pytest.raises(Refusal) as caught:
        check_body({"properties": {"vmSize": "Standard_NC6s_v3", field: value}}, Settings(directory=tmp_path))
    assert caught.value.status == 400
    assert field in str(caught.value.body)


@pytest.mark.parametrize("name", ["Ws1", "1ws", "ws-1", "averylongname"])
def test_a_malformed_name_is_refused(cloud: Emulator, aks: ContainerServiceClient, name: str) -> None:
    with pytest.raises((HttpResponseError, ValueError)):
        create(aks, name)
    assert cloud.agent_pools() == []


@pytest.mark.parametrize(
    ("where", "code"),
    [(("elsewhere", "kaito"), "ResourceGroupNotFound"), (("kaito", "elsewhere"), "ResourceNotFound")],
    ids=["group", "cluster"],
)
def test_a_wrong_place_is_named(aks: ContainerServiceClient, where: tuple[str, str], code: str) -> None:
    with pytest.raises(ResourceNotFoundError) as caught:
        aks.agent_pools.get(*where, "ws1")
    assert caught.value.error.code == code


def test_a_family_s_quota_is_counted_in_vcpus(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.set_limits(Limits(quota={"standardNCSv3Family": 12}))
    create(aks, "ws1")
    create(aks, "ws2")
    with pytest.raises(HttpResponseError) as caught:
        create(aks, "ws3")
    assert caught.value.error.code == "ErrCode_InsufficientVCPUQuota"
    assert "standardNCSv3Family" in caught.value.error.message
    create(aks, "cpu", vm_size="Standard_D2s_v3")


def test_a_region_s_quota_counts_every_family_and_names_the_numbers(
    cloud: Emulator, aks: ContainerServiceClient
) -> None:
    cloud.set_limits(Limits(quota={"regional": 8}))
    create(aks, "cpu", vm_size="Standard_D4s_v3")
    with pytest.raises(HttpResponseError) as caught:
        create(aks, "ws1")
    message = caught.value.error.message
    assert "Total Regional Cores quota" in message
    assert "Current Limit: 8, Current Usage: 4, Additional Required: 6" in message


def test_quota_and_capacity_come_back_when_a_pool_is_gone(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.set_limits(Limits(quota={"standardNCSv3Family": 6}, capacity={GPU_SIZE: 1}))
    create(aks, "ws1")
    cloud.advance(600)
    with pytest.raises(HttpResponseError, match="ErrCode_InsufficientVCPUQuota"):
        create(aks, "ws2")
    aks.agent_pools.begin_delete(*WHERE, "ws1", polling=False)
    cloud.advance(60)
    create(aks, "ws2")
    cloud.advance(600)
    assert state(aks, "ws2") == "Succeeded"


def test_quota_can_be_refused_later(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.set_limits(Limits(quota={"regional": 0}, asynchronous=True))
    create(aks)
    cloud.advance(600)
    assert aks.agent_pools.get(*WHERE, "ws1").status.provisioning_error.code == "QuotaExceeded"


def test_a_region_runs_out_of_a_size(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.set_limits(Limits(capacity={GPU_SIZE: 1}))
    create(aks, "ws1")
    create(aks, "ws2")
    cloud.advance(600)
    assert state(aks, "ws1") == "Succeeded"
    assert aks.agent_pools.get(*WHERE, "ws2").status.provisioning_error.code == "AllocationFailed"


def test_a_restricted_size_is_refused(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.set_limits(Limits(restricted=(GPU_SIZE,)))
    with pytest.raises(HttpResponseError) as caught:
        create(aks)
    assert "is not allowed in your subscription in location" in caught.value.error.message


def test_a_restriction_can_be_refused_later(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.set_limits(Limits(restricted=(GPU_SIZE.upper(),), asynchronous=True))
    create(aks)
    cloud.advance(600)
    assert aks.agent_pools.get(*WHERE, "ws1").status.provisioning_error.code == "SkuNotAvailable"


def test_a_pool_bills_from_success_until_it_is_gone(cloud: Emulator, aks: ContainerServiceClient) -> None:
    create(aks)
    cloud.advance(600 + 40)
    aks.agent_pools.begin_delete(*WHERE, "ws1", polling=False)
    cloud.advance(60)
    cloud.advance(1000)
    (bill,) = cloud.bills()
    assert (bill.pool, bill.claim_uid, bill.workspace, bill.size) == ("ws1", "uid-1", "phi", GPU_SIZE)
    assert bill.seconds == pytest.approx(100, abs=0.01)


NETWORK = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/corporate"


@pytest.mark.parametrize(
    ("own", "asked", "words"),
    [
        ("", f"{NETWORK}/subnets/gpu", "Cannot use a custom subnet because agent pool nodepool1 is using a"),
        (f"{NETWORK}/subnets/system", None, "vnetSubnetID is required"),
        (f"{NETWORK}/subnets/system", "gpu", "'gpu' is not the resource id of a subnet"),
        (f"{NETWORK}/subnets/system", f"{NETWORK}2/subnets/gpu", "not in the virtual network of agent pool nodepool1"),
    ],
    ids=["a subnet in a managed network", "none in a custom one", "no subnet's id", "a subnet of another network"],
)
def test_all_pools_of_a_cluster_are_in_one_network(tmp_path: Path, own: str, asked: str | None, words: str) -> None:
    settings = Settings(directory=tmp_path / "cloud", clock_speed=0, subnet=own)
    with Emulator(settings) as cloud, sdk(cloud, tmp_path) as aks:
        with pytest.raises(HttpResponseError, match=words) as caught:
            create(aks, vnet_subnet_id=asked)
        assert caught.value.status_code == 400
        assert caught.value.error is not None
        assert caught.value.error.code == "InvalidParameter"
        assert cloud.agent_pools() == []


def test_the_cluster_shows_its_system_pool_and_where_it_lies(tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path / "cloud", clock_speed=0, subnet=f"{NETWORK}/subnets/system")
    with Emulator(settings) as cloud, sdk(cloud, tmp_path) as aks:
        create(aks, vnet_subnet_id=f"{NETWORK}/subnets/gpu")
        system, pool = aks.managed_clusters.get(*WHERE).agent_pool_profiles or ()
        assert (system.name, system.mode) == ("nodepool1", "System")
        assert system.vnet_subnet_id == f"{NETWORK}/subnets/system"
        assert pool.name == "ws1"
        assert [found.name for found in aks.agent_pools.list(*WHERE)] == ["ws1"]


@pytest.mark.parametrize(
    ("changed", "parameter"),
    [
        ({"os_sku": "Debian"}, "osSKU"),
        ({"availability_zones": ["4"]}, "availabilityZones"),
        ({"gpu_profile": {"driver": "Maybe"}}, "gpuProfile.driver"),
        ({"tags": {"costCenter": 42}}, "tags"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_pool_cannot_be_made_of_is_refused_by_its_name(
    aks: ContainerServiceClient, changed: dict[str, object], parameter: str
) -> None:
    with pytest.raises(HttpResponseError, match=f"agentPoolProfile.{parameter} is invalid"):
        create(aks, **changed)
