"""The AKS provider over the real SDK and real TLS, against the emulated cloud: refusals and conditional writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.driven.clock import SteppedClock

from kaito_hooks.api.claim import Claim, ClaimSpec, encode
from kaito_hooks.provisioner.azure.agent_pool import order
from kaito_hooks.provisioner.azure.aks import AgentPools
from kaito_hooks.provisioner.azure.client import sdk_client
from kaito_hooks.provisioner.azure.credentials import RenewableCredential, credential
from kaito_hooks.provisioner.azure.pool_fields import pool_fields
from kaito_hooks.provisioner.azure.throttle import Throttle
from kaito_hooks.provisioner.cloud import Instance, Order, State
from kaito_hooks.provisioner.configuration import AzureConfiguration
from kaito_hooks.provisioner.errors import (
    AuthenticationFailed,
    CloudError,
    ConfigurationError,
    InstanceChanged,
    LaunchFailed,
    PoolNameConflict,
    Throttled,
)
from kaito_hooks.provisioner.metrics import ProvisionerMetrics
from kaito_hooks.runtime import Clock, LeadershipLost, SystemClock
from kaito_local.aks import Emulator, Identity, ready_made
from kaito_local.aks import Settings as CloudSettings

REFUSED = {name: entry for name, entry in ready_made().items() if "status" in entry or "cut" in entry}
FAILING_LATER = {name: entry for name, entry in ready_made().items() if name not in REFUSED}
LABELS = {"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "default"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Emulator]:
    """Stands still until it is told to advance."""
    with Emulator(CloudSettings(directory=tmp_path / "cloud", clock_speed=0, page_size=2)) as emulator:
        yield emulator


class Provider:
    """The provider and what tests look at besides it."""

    def __init__(
        self,
        cloud: Emulator,
        folder: Path,
        *,
        clock: Clock | None = None,
        fields: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        token = folder / "token"
        token.write_text("a.b.c")
        self.leads = True
        self.clock = clock or SystemClock()
        settings = cloud.settings
        configuration = AzureConfiguration(
            **{
                "subscription_id": settings.subscription,
                "resource_group": settings.resource_group,
                "cluster_name": settings.cluster,
                "tenant_id": settings.identity.tenant,
                "client_id": settings.identity.client,
                "federated_token_file": str(token),
                "arm_endpoint": cloud.endpoints.arm,
                "token_scope": f"{cloud.endpoints.arm}/.default",
                "authority_host": cloud.endpoints.arm,
            }
            | changes
        )
        self.metrics = ProvisionerMetrics(CollectorRegistry())
        self.credential: RenewableCredential = credential(configuration, self.clock)
        self.throttle = Throttle(self.clock, self._fence)
        self.pools = AgentPools(
            sdk_client(configuration, self.credential, throttle=self.throttle, metrics=self.metrics, clock=self.clock),
            resource_group=configuration.resource_group,
            cluster=configuration.cluster_name,
            location=configuration.location,
            clock=self.clock,
            metrics=self.metrics,
            fields=pool_fields(fields or {}),
        )

    def _fence(self) -> None:
        if not self.leads:
            raise LeadershipLost("another leads")


@pytest.fixture
def provider(cloud: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Provider:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(cloud.endpoints.authority))
    return Provider(cloud, tmp_path)


def claim(name: str = "ws00000000a", uid: str = "uid-a", **changes: Any) -> Claim:
    obj = encode(
        ClaimSpec(**{"name": name, "labels": LABELS, "instance_type": "Standard_NC6s_v3"} | changes), "Machine"
    )
    obj["metadata"]["uid"] = uid
    return Claim.read(obj)


def wanted(name: str = "ws00000000a", uid: str = "uid-a", **changes: Any) -> Order:
    return order(claim(name, uid, **changes), datetime.now(UTC))


def writes(cloud: Emulator) -> list[str]:
    return [r["method"] for r in cloud.requests() if r["method"] in ("PUT", "DELETE")]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_request_is_told_by_its_class(cloud: Emulator, provider: Provider, name: str) -> None:
    cloud.fault(name)
    with pytest.raises(CloudError) as caught:
        provider.pools.ensure(wanted())
    assert caught.value.reason == REFUSED[name]["reason"]
    assert "\n" not in caught.value.message
    assert 0 < len(caught.value.message) <= 800
    assert writes(cloud).count("PUT") == 1, "the SDK must not try again by itself"


@pytest.mark.parametrize("name", FAILING_LATER)
def test_an_operation_that_fails_later_is_told_by_its_class(cloud: Emulator, provider: Provider, name: str) -> None:
    cloud.fault(name)
    provider.pools.ensure(wanted())
    cloud.advance(3600)
    found = provider.pools.get("ws00000000a")
    assert found is not None
    assert found.state.broken
    if found.error is not None:
        assert found.error.reason == FAILING_LATER[name]["reason"]
    else:
        assert name == "failed-without-error"


def test_a_pool_is_built_as_the_claim_says(cloud: Emulator, provider: Provider) -> None:
    provider.pools.ensure(wanted(disk_gib=50, annotations={"kaito.sh/node-image-family": "AzureLinux"}))
    (pool,) = cloud.agent_pools()
    properties = pool.properties
    assert (
        properties.items()
        >= {
            "vmSize": "Standard_NC6s_v3",
            "count": 1,
            "osType": "Linux",
            "osSKU": "AzureLinux",
            "osDiskSizeGB": 50,
            "type": "VirtualMachineScaleSets",
            "nodeTaints": ["sku=gpu:NoSchedule"],
        }.items()
    )
    assert (
        properties["nodeLabels"].items()
        >= {
            **LABELS,
            "karpenter.sh/provisioner-name": "default",
            "kaito.sh/machine-type": "gpu",
            "kaito.sh/claim-uid": "uid-a",
        }.items()
    )
    body = next(r for r in cloud.requests() if r["method"] == "PUT")["body"]
    assert "mode" not in body["properties"]
    assert "gpuProfile" not in body["properties"]


def test_a_pool_goes_through_its_states(cloud: Emulator, provider: Provider) -> None:
    assert provider.pools.get("ws00000000a") is None
    made = provider.pools.ensure(wanted())
    assert made.state is State.CREATING
    assert made.belongs_to(claim())
    cloud.advance(3600)
    found = provider.pools.get("ws00000000a")
    assert found is not None
    assert found.state is State.SUCCEEDED
    provider.pools.delete(found)
    deleting = provider.pools.get("ws00000000a")
    assert deleting is not None
    assert deleting.state is State.DELETING
    cloud.advance(3600)
    assert provider.pools.get("ws00000000a") is None


def test_asking_twice_makes_one_pool(cloud: Emulator, provider: Provider) -> None:
    first = provider.pools.ensure(wanted())
    second = provider.pools.ensure(wanted())
    assert (first.name, first.created) == (second.name, second.created)
    assert writes(cloud) == ["PUT"]


def test_of_two_who_ask_at_once_one_makes_the_pool_and_both_see_it(
    cloud: Emulator, provider: Provider, tmp_path: Path
) -> None:
    other = Provider(cloud, tmp_path)
    cloud.fault(method="GET", status=404, body={"code": "NotFound", "message": "Agent Pool not found."}, times=1)
    other.pools.ensure(wanted(uid="uid-b"))
    cloud.fault(method="GET", status=404, body={"code": "NotFound", "message": "Agent Pool not found."}, times=1)
    found = provider.pools.ensure(wanted())
    assert found.claim_uid == "uid-b"
    assert not found.belongs_to(claim())
    assert [r["status"] for r in cloud.requests() if r["method"] == "PUT"] == [201, 412]


def test_a_lost_answer_is_found_out_by_the_next_look(cloud: Emulator, provider: Provider) -> None:
    cloud.fault("cut-after")
    with pytest.raises(LaunchFailed) as caught:
        provider.pools.ensure(wanted())
    assert caught.value.transient
    found = provider.pools.ensure(wanted())
    assert found.belongs_to(claim())
    assert writes(cloud) == ["PUT"]


def test_what_changed_since_the_look_is_not_deleted(cloud: Emulator, provider: Provider) -> None:
    looked = provider.pools.ensure(wanted())
    cloud.advance(3600)
    with pytest.raises(InstanceChanged):
        provider.pools.delete(looked)
    assert [pool.state for pool in cloud.agent_pools()] == ["Succeeded"]


def test_who_asks_after_an_accepted_deletion_costs_no_further_look(cloud: Emulator, provider: Provider) -> None:
    provider.pools.ensure(wanted())
    cloud.advance(3600)
    found = provider.pools.get("ws00000000a", max_age=60)
    assert found is not None
    provider.pools.delete(found)
    before = len(cloud.requests())
    found = provider.pools.get("ws00000000a", max_age=60)
    assert found is not None
    assert found.state is State.DELETING
    assert cloud.requests(after=before) == []


def test_a_pool_that_is_not_ours_is_never_deleted(cloud: Emulator, provider: Provider) -> None:
    foreign = Instance("nodepool1", State.SUCCEEDED, {"kaito.sh/workspace": "phi"})
    with pytest.raises(PoolNameConflict):
        provider.pools.delete(foreign)
    assert writes(cloud) == []


def test_deleting_what_is_gone_is_fine(cloud: Emulator, provider: Provider) -> None:
    made = provider.pools.ensure(wanted())
    cloud.fault(method="DELETE", status=404, body={"code": "NotFound", "message": "Agent Pool not found."})
    provider.pools.delete(made)


@pytest.mark.parametrize("name", ["no-cluster", "no-resource-group", "no-subscription"])
def test_a_missing_cluster_is_never_taken_for_a_missing_pool(cloud: Emulator, provider: Provider, name: str) -> None:
    cloud.fault(name, method="*", times=None)
    for call in (
        lambda: provider.pools.get("ws00000000a"),
        lambda: provider.pools.get("ws00000000a", max_age=5),
        provider.pools.list,
        lambda: provider.pools.delete(Instance("ws00000000a", State.SUCCEEDED, {"kaito.sh/claim-uid": "x"})),
    ):
        with pytest.raises(ConfigurationError):
            call()


@pytest.mark.parametrize("what", ["agentpool-rg' was not found.", "agentpools/x' was not found."])
def test_a_resource_group_that_is_called_like_a_pool_does_not_make_a_missing_cluster_a_missing_pool(
    cloud: Emulator, provider: Provider, what: str
) -> None:
    message = f"The Resource 'Microsoft.ContainerService/managedClusters/kaito' under resource group '{what}"
    body = {"error": {"code": "ResourceNotFound", "message": message, "details": [{"message": "Agent pool"}]}}
    cloud.fault(method="GET", status=404, body=body)
    with pytest.raises(ConfigurationError):
        provider.pools.get("ws00000000a")


def test_a_pool_that_arm_itself_does_not_find_is_missing(cloud: Emulator, provider: Provider) -> None:
    message = "The Resource 'Microsoft.ContainerService/managedClusters/kaito/agentPools/ws00000000a' was not found."
    cloud.fault(method="GET", status=404, body={"error": {"code": "ResourceNotFound", "message": message}})
    assert provider.pools.get("ws00000000a") is None


def test_the_cause_in_the_details_of_a_failed_creation_decides_and_is_told(cloud: Emulator, provider: Provider) -> None:
    quota = "Operation results in exceeding approved standardNCSv3Family Cores quota. Current Limit: 6."
    details = [{"code": "OperationNotAllowed", "message": quota}]
    error = {"code": "CreateVMSSAgentPoolFailed", "message": "The scale set failed.", "details": details}
    cloud.fault(method="PUT", error=error)
    provider.pools.ensure(wanted())
    cloud.advance(3600)
    found = provider.pools.get("ws00000000a")
    assert found is not None
    assert found.error is not None
    assert found.error.reason == "QuotaExceeded"
    assert found.error.message == f"CreateVMSSAgentPoolFailed: The scale set failed. OperationNotAllowed: {quota}"


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, None), (404, {"error": {"code": "Whatever", "message": "?"}}), (200, None)],
    ids=["404 without a body", "404 with another code", "200 without a body"],
)
def test_an_answer_that_nobody_understands_is_no_missing_pool(
    cloud: Emulator, provider: Provider, status: int, body: dict[str, Any] | None
) -> None:
    cloud.fault(method="GET", status=status, body=body, text="<html>" if body is None else "")
    with pytest.raises(CloudError):
        provider.pools.get("ws00000000a")


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("verb", ["GET", "LIST", "PUT"])
@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("<html>Sign in</html>", {"Content-Type": "text/html"}),
        ("", {}),
        ("<a/>", {"Content-Type": "application/xml"}),
        ('{"name": "ws000', JSON),
        ("null", JSON),
        ("[]", JSON),
        ('"done"', JSON),
        ('{"name": "ws00000000a", "value": 1, "properties": {"provisioningState": 7, "nodeLabels": ["x"]}}', JSON),
    ],
    ids=["a page of a proxy", "nothing", "XML", "cut off", "null", "a list", "a text", "other types"],
)
def test_success_without_an_agent_pool_is_a_failure_that_may_pass(
    cloud: Emulator, provider: Provider, verb: str, text: str, headers: dict[str, str]
) -> None:
    cloud.fault(method=verb, status=200, text=text, headers=headers)
    calls: Mapping[str, Callable[[], object]] = {
        "GET": lambda: provider.pools.get("ws00000000a"),
        "LIST": provider.pools.list,
        "PUT": lambda: provider.pools.ensure(wanted()),
    }
    with pytest.raises(LaunchFailed) as caught:
        calls[verb]()
    assert caught.value.transient
    assert caught.value.message


@pytest.mark.parametrize("body", [{}, {"name": "nodepool1", "properties": {}}], ids=["no pool", "another pool"])
def test_an_answer_that_names_no_pool_or_another_one_tells_nothing_of_ours(
    cloud: Emulator, provider: Provider, body: dict[str, Any]
) -> None:
    """Taken for a pool of somebody else it would let a claim go whose machine bills."""
    made = provider.pools.ensure(wanted())
    assert made.belongs_to(claim())
    cloud.fault(method="GET", status=200, body=body)
    with pytest.raises(LaunchFailed):
        provider.pools.get("ws00000000a")
    found = provider.pools.get("ws00000000a")
    assert found is not None
    assert found.belongs_to(claim())


def test_a_listing_has_all_pages(cloud: Emulator, provider: Provider) -> None:
    names = [f"ws00000000{letter}" for letter in "abcde"]
    for number, name in enumerate(names):
        provider.pools.ensure(wanted(name, f"uid-{number}"))
    assert sorted(instance.name for instance in provider.pools.list()) == names


def test_a_listing_that_breaks_off_is_no_listing(cloud: Emulator, provider: Provider) -> None:
    for number, letter in enumerate("abcde"):
        provider.pools.ensure(wanted(f"ws00000000{letter}", f"uid-{number}"))
    cloud.fault(method="LIST", nth=2, status=500, body={"code": "InternalOperationError", "message": "x"})
    with pytest.raises(LaunchFailed):
        provider.pools.list()


def test_waiting_claims_share_one_listing(cloud: Emulator, provider: Provider) -> None:
    provider.pools.ensure(wanted())
    before = len(cloud.requests())
    for _ in range(20):
        for letter in "abcdefghij":
            provider.pools.get(f"ws00000000{letter}", max_age=60)
    assert [r["verb"] for r in cloud.requests()[before:]] == ["LIST"]


def test_a_listing_older_than_our_own_write_is_not_believed(cloud: Emulator, provider: Provider) -> None:
    assert provider.pools.get("ws00000000a", max_age=60) is None
    provider.pools.ensure(wanted())
    found = provider.pools.get("ws00000000a", max_age=60)
    assert found is not None
    assert found.state is State.CREATING


def test_no_write_is_sent_before_retry_after(cloud: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(cloud.endpoints.authority))
    clock = SteppedClock()
    provider = Provider(cloud, tmp_path, clock=clock)
    cloud.fault(method="PUT", status=429, headers={"Retry-After": "3"}, body={"error": {"code": "TooManyRequests"}})
    with pytest.raises(Throttled) as caught:
        provider.pools.ensure(wanted())
    assert caught.value.retry_after == 3
    with pytest.raises(Throttled):
        provider.pools.ensure(wanted("ws00000000b", "uid-b"))
    with pytest.raises(Throttled):
        provider.pools.delete(Instance("ws00000000c", State.SUCCEEDED, {"kaito.sh/claim-uid": "x"}))
    assert writes(cloud) == ["PUT"]
    assert provider.pools.list() == [], "reads go on"
    clock.advance(3.5)
    provider.pools.ensure(wanted())
    assert writes(cloud) == ["PUT", "PUT"]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "retry_after",
    ["1e300", "1e12", "31536000", "Fri, 31 Dec 9999 23:59:59 GMT"],
    ids=["1e300", "1e12", "a year", "date"],
)
def test_nobody_is_waited_for_longer_than_an_hour(
    cloud: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, retry_after: str
) -> None:
    """A proxy's number, or a date by another clock: until then nothing that bills could be deleted."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(cloud.endpoints.authority))
    clock = SteppedClock()
    provider = Provider(cloud, tmp_path, clock=clock)
    made = provider.pools.ensure(wanted())
    body = {"error": {"code": "ServerBusy", "message": "Later."}}
    cloud.fault(method="DELETE", status=status, headers={"Retry-After": retry_after}, body=body)
    with pytest.raises(CloudError) as caught:
        provider.pools.delete(made)
    assert caught.value.delay(1) == 3600
    clock.advance(3601)
    provider.pools.delete(made)


def test_a_former_leader_sends_nothing(cloud: Emulator, provider: Provider) -> None:
    made = provider.pools.ensure(wanted())
    provider.leads = False
    with pytest.raises(LeadershipLost):
        provider.pools.ensure(wanted("ws00000000b", "uid-b"))
    with pytest.raises(LeadershipLost):
        provider.pools.delete(made)
    assert writes(cloud) == ["PUT"]


def test_a_revoked_token_is_asked_for_anew(
    cloud: Emulator, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaito_hooks.provisioner.azure.credentials.REBUILD_INTERVAL", 0.0)
    provider.pools.list()
    time.sleep(1.1)
    cloud.tokens.revoke()
    with pytest.raises(AuthenticationFailed):
        provider.pools.list()
    assert provider.pools.list() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tenant_id": "11111111-1111-1111-1111-111111111111"}, "AADSTS90002"),
        ({"client_id": "11111111-1111-1111-1111-111111111111"}, "AADSTS700016"),
        ({"federated_token_file": "/nowhere/token"}, "/nowhere/token"),
        ({"authority_host": "https://127.0.0.1:1"}, "127.0.0.1"),
    ],
    ids=["tenant", "client", "token file", "authority"],
)
def test_bad_credentials_are_one_sentence(
    cloud: Emulator, provider: Provider, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    bad = Provider(cloud, tmp_path, **changes)
    with pytest.raises(AuthenticationFailed) as caught:
        bad.pools.ensure(wanted())
    assert words in caught.value.message
    problem = bad.credential.problem("https://arm/.default")
    assert problem is not None
    assert words in problem
    assert writes(cloud) == []


@pytest.fixture
def managed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The machines have the identity; the process knows where to ask from azure-identity's own variable."""
    settings = CloudSettings(directory=tmp_path / "managed", identity=Identity(of_machines=True))
    with Emulator(settings) as cloud:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(cloud.endpoints.authority))
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", cloud.endpoints.arm)
        for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_SECRET"):
            monkeypatch.delenv(name, raising=False)
        yield cloud


@pytest.mark.parametrize("client_id", ["", Identity().client], ids=["the machine's only one", "by its client id"])
def test_in_managed_mode_the_machine_s_identity_is_used(managed: Emulator, tmp_path: Path, client_id: str) -> None:
    provider = Provider(managed, tmp_path, managed=True, federated_token_file="", client_id=client_id)
    assert provider.pools.ensure(wanted()).state is State.CREATING
    assert provider.credential.problem("https://arm/.default") is None
    asked = [r["path"] for r in managed.requests() if r["verb"] == "TOKEN"]
    assert set(asked) == {"/metadata/identity/oauth2/token"}


def test_in_managed_mode_a_revoked_token_is_asked_for_anew(
    managed: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(managed, tmp_path, managed=True, federated_token_file="", client_id="")
    monkeypatch.setattr("kaito_hooks.provisioner.azure.credentials.REBUILD_INTERVAL", 0.0)
    provider.pools.list()
    managed.tokens.revoke()
    with pytest.raises(AuthenticationFailed):
        provider.pools.list()
    assert provider.pools.list() == []


def test_in_managed_mode_an_unknown_identity_is_one_sentence(managed: Emulator, tmp_path: Path) -> None:
    provider = Provider(managed, tmp_path, managed=True, federated_token_file="", client_id="somebody-else")
    with pytest.raises(AuthenticationFailed) as caught:
        provider.pools.list()
    assert "ManagedIdentityCredential" in caught.value.message
    assert "Identity not found" in caught.value.message
    assert "Identity not found" in str(provider.credential.problem("https://arm/.default"))


@pytest.mark.parametrize(
    "changes",
    [{"cluster_name": "elsewhere"}, {"resource_group": "elsewhere"}],
    ids=["cluster", "resource group"],
)
def test_a_wrong_cluster_is_a_configuration_error(
    cloud: Emulator, provider: Provider, tmp_path: Path, changes: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError):
        Provider(cloud, tmp_path, **changes).pools.ensure(wanted())


def test_requests_and_refusals_are_counted(cloud: Emulator, provider: Provider) -> None:
    cloud.fault("server-error")
    with pytest.raises(LaunchFailed):
        provider.pools.ensure(wanted())
    assert provider.metrics.arm_requests.labels("PUT", "500")._value.get() == 1
    assert provider.metrics.arm_requests.labels("GET", "404")._value.get() == 1
    assert provider.metrics.cloud_errors.labels("Create", "azure", "LaunchFailed")._value.get() == 1
