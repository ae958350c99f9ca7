"""Every ready-made fault, produced on the wire and read by the unmodified SDK."""

from __future__ import annotations

import threading
import time

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError, ServiceResponseError
from azure.mgmt.containerservice import ContainerServiceClient
from tests.eventually import PATIENCE
from tests.unit.aks.sdk import GPU_SIZE, gpu_pool

from kaito_local.aks import Emulator, Limits, ready_made

WHERE = ("kaito", "kaito")
# Section 4.5 of the provisioner's contract.
REASONS = {
    "QuotaExceeded",
    "InstanceTypeUnavailable",
    "InsufficientCapacity",
    "ClusterFull",
    "NotAllowed",
    "OperationInProgress",
    "Throttled",
    "AuthenticationFailed",
    "ConfigurationError",
    "InvalidRequest",
    "LaunchFailed",
}


def create(aks: ContainerServiceClient, name: str = "ws1") -> None:
    aks.agent_pools.begin_create_or_update(
        *WHERE, name, gpu_pool(), match_condition=MatchConditions.IfMissing, polling=False, retry_total=0
    )


def test_there_is_a_fault_for_every_class_of_error() -> None:
    assert {entry["reason"] for entry in ready_made().values()} == REASONS


@pytest.mark.parametrize("name", [name for name, entry in ready_made().items() if "error" in entry])
def test_an_operation_fails_later(cloud: Emulator, aks: ContainerServiceClient, name: str) -> None:
    cloud.fault(name)
    create(aks)
    cloud.advance(600)
    pool = aks.agent_pools.get(*WHERE, "ws1")
    entry = ready_made()[name]
    assert pool.provisioning_state == ("Canceled" if entry.get("canceled") else "Failed")
    if entry["error"]:
        assert pool.status.provisioning_error.code == entry["error"]["code"]
        assert pool.status.provisioning_error.message == entry["error"]["message"]
    assert cloud.bills()[0].seconds == 0


@pytest.mark.parametrize("name", [name for name, entry in ready_made().items() if "status" in entry])
def test_a_request_is_refused(cloud: Emulator, aks: ContainerServiceClient, name: str) -> None:
    cloud.fault(name)
    with pytest.raises(HttpResponseError) as caught:
        create(aks)
    entry = ready_made()[name]
    assert caught.value.status_code == entry["status"]
    if "body" in entry:
        body = entry["body"].get("error", entry["body"])
        assert (caught.value.error.code, caught.value.error.message) == (body["code"], body["message"])
    assert cloud.agent_pools() == []
    assert cloud.requests()[-1]["fault"] == name


def test_retry_after_reaches_the_client(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.fault("throttled")
    with pytest.raises(HttpResponseError) as caught:
        create(aks)
    assert caught.value.response.headers["Retry-After"] == "7"


def test_a_slow_answer_holds_up_nobody_else(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.fault(method="PUT", pool="slow", delay=2 * PATIENCE)
    patient = threading.Thread(target=_ignoring_errors, args=(aks, "slow"), daemon=True)
    began = time.monotonic()
    patient.start()
    create(aks, "fast")
    assert aks.agent_pools.get(*WHERE, "fast").vm_size == GPU_SIZE
    assert time.monotonic() - began < PATIENCE


def test_a_client_may_give_up_on_a_slow_answer(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.fault(method="GET", delay=2 * PATIENCE)
    with pytest.raises(ServiceResponseError):
        aks.agent_pools.get(*WHERE, "ws1", read_timeout=0.5, retry_total=0)


def test_two_hundred_pools_at_once_all_succeed(cloud: Emulator, aks: ContainerServiceClient) -> None:
    cloud.set_limits(Limits(pools=200))
    names = [f"ws{number:03d}" for number in range(200)]
    workers = [
        threading.Thread(target=lambda part=part: [create(aks, name) for name in part])
        for part in (names[start::8] for start in range(8))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    cloud.advance(600)
    states = {pool.name: pool.provisioning_state for pool in aks.agent_pools.list(*WHERE)}
    assert states == dict.fromkeys(names, "Succeeded")
    assert sum(entry["method"] == "PUT" and entry["status"] == 201 for entry in cloud.requests()) == 200


def _ignoring_errors(aks: ContainerServiceClient, name: str) -> None:
    try:
        create(aks, name)
    except AzureError:
        return
