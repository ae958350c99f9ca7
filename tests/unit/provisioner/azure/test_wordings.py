"""The wordings in which ARM and AKS refuse an agent pool, each with the class that must come of it.

Where the provisioner's contract names only a code, the sentence is one that users reported or that Azure documents:
https://learn.microsoft.com/azure/aks/error-codes, https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError

from kaito_hooks.api.claim import Claim, ClaimSpec, encode
from kaito_hooks.provisioner.azure.errors import Refusal, classify, is_missing_instance
from kaito_hooks.provisioner.errors import CloudError, ConfigurationError, NotAllowed
from kaito_hooks.provisioner.refusal_text import refusal_text

POLICY = "Resource 'aks-ws1-12345678-vmss' was disallowed by policy. Reasons: 'The selected size is not allowed.'."
LOCK = "The scope '/x' cannot perform write operation because following scope(s) are locked: '/x'."
DISABLED = "The subscription '00000000' is disabled and therefore marked as read only."
SUBNET = "Subnet aks-subnet with address prefix 10.0.0.0/28 does not have enough capacity for 31 IP addresses."
IPS = "Pre-allocated IPs 333 exceeds IPs available 251 in Subnet Cidr 10.10.0.0/24, Subnet Name AKS."
SIZE = "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: Standard_NC6s_v3' is "
SIZE += "currently not available in location 'eastus'. Please try another size or deploy to a different location."
RECONCILER = "VMSSAgentPoolReconciler retry failed: "


@dataclass(frozen=True, slots=True)
class Wording:
    """``status`` None: an operation that was accepted and failed later."""

    name: str
    reason: str
    status: int | None
    code: str
    message: str
    details: tuple[tuple[str, str], ...] = ()

    @property
    def error(self) -> dict[str, Any]:
        """As AKS sends it, bare."""
        details = [{"code": code, "message": message} for code, message in self.details]
        return {"code": self.code, "message": self.message, "details": details}


WORDINGS = (
    Wording("policy", "NotAllowed", 403, "RequestDisallowedByPolicy", POLICY),
    Wording("policy, later", "NotAllowed", None, "RequestDisallowedByPolicy", POLICY),
    Wording(
        "policy, in the details of a template",
        "NotAllowed",
        400,
        "InvalidTemplateDeployment",
        "The template deployment failed with multiple errors.",
        (("RequestDisallowedByPolicy", POLICY),),
    ),
    Wording(
        "policy, told without its code", "NotAllowed", 400, "BadRequest", f"Provisioning failed. Message: {POLICY}"
    ),
    Wording(
        "policy, quoted twice",
        "NotAllowed",
        400,
        "PreconditionFailed",
        'Provisioning failed. Details: [{\\"code\\":\\"RequestDisallowedByPolicy\\",\\"message\\":\\"x\\"}]',
    ),
    Wording("lock", "NotAllowed", 409, "ScopeLocked", LOCK),
    Wording("lock, as forbidden", "NotAllowed", 403, "ScopeLocked", LOCK),
    Wording("lock, later", "NotAllowed", None, "CreateVMSSAgentPoolFailed", f'{RECONCILER}Code="ScopeLocked" {LOCK}'),
    Wording("disabled subscription", "NotAllowed", 409, "ReadOnlyDisabledSubscription", DISABLED),
    Wording("disabled subscription, as forbidden", "NotAllowed", 403, "Forbidden", DISABLED),
    Wording(
        "deny assignment",
        "NotAllowed",
        403,
        "DenyAssignmentAuthorizationFailed",
        "The client has permission to perform the action; however, it is denied by the deny assignment.",
    ),
    Wording("no role", "AuthenticationFailed", 403, "AuthorizationFailed", "The client does not have authorization."),
    Wording("no role, later", "AuthenticationFailed", None, "LinkedAuthorizationFailed", "not on the linked scope"),
    Wording(
        "cores without the prefix",
        "QuotaExceeded",
        400,
        "InsufficientVCPUQuota",
        "Insufficient vcpu quota requested 6, remaining 0 for family standardNCSv3Family for region eastus.",
    ),
    Wording("cores, later", "QuotaExceeded", None, "InsufficientVCPUQuota", "Insufficient vcpu quota requested 6."),
    Wording(
        "cores, in the details",
        "QuotaExceeded",
        400,
        "BadRequest",
        "Preflight validation failed.",
        (("ErrCode_InsufficientVCPUQuota", "Insufficient vcpu quota requested 6."),),
    ),
    Wording(
        "public addresses",
        "QuotaExceeded",
        400,
        "PublicIPCountLimitReached",
        "Cannot create more than 10 public IP addresses for this subscription in this region.",
    ),
    Wording(
        "public addresses, later",
        "QuotaExceeded",
        None,
        "CreateVMSSAgentPoolFailed",
        f"{RECONCILER}Code='PublicIPCountLimitReached' Message='Cannot create more than 10 public IP addresses.'",
    ),
    Wording("subnet", "ClusterFull", 400, "SubnetIsFull", SUBNET),
    Wording(
        "subnet, later", "ClusterFull", None, "CreateVMSSAgentPoolFailed", f"{RECONCILER}Code='SubnetIsFull' {SUBNET}"
    ),
    Wording("subnet too small", "ClusterFull", 400, "InsufficientSubnetSize", IPS),
    Wording("subnet too small, later", "ClusterFull", None, "InsufficientSubnetSize", IPS),
    Wording(
        "pools",
        "ClusterFull",
        400,
        "BadRequest",
        "The number of agent pools 101 exceeds the maximum of 100 for a managed cluster.",
    ),
    Wording("pools, other words", "ClusterFull", 400, "InvalidParameter", "Exceeded the limit of 100 node pools."),
    Wording("pools, counted", "ClusterFull", 409, "OperationNotAllowed", "Agent pool count 101 exceeds 100."),
    Wording(
        "size here", "InstanceTypeUnavailable", 400, "BadRequest", "The VM size is not available in the current region."
    ),
    Wording(
        "size in a bad request", "InstanceTypeUnavailable", 400, "BadRequest", f"Code: SkuNotAvailable Message: {SIZE}"
    ),
    Wording("size, told without its code", "InstanceTypeUnavailable", 400, "BadRequest", SIZE),
    Wording("size, as a conflict", "InstanceTypeUnavailable", 409, "SkuNotAvailable", SIZE),
    Wording(
        "size, later",
        "InstanceTypeUnavailable",
        None,
        "CreateVMSSAgentPoolFailed",
        f"{RECONCILER}the operation failed",
        (("SkuNotAvailable", SIZE),),
    ),
    Wording(
        "conflict", "OperationInProgress", 409, "Conflict", "The request failed due to conflict with a concurrent one."
    ),
    Wording("conflict, later", "OperationInProgress", None, "Conflict", "conflict with a concurrent request"),
    Wording("another operation", "OperationInProgress", 409, "AnotherOperationInProgress", "Another operation runs."),
    Wording(
        "another operation, as bad", "OperationInProgress", 400, "AnotherOperationInProgress", "Another operation runs."
    ),
    Wording(
        "another operation, later",
        "OperationInProgress",
        None,
        "CreateVMSSAgentPoolFailed",
        f"{RECONCILER}Code='AnotherOperationInProgress' Message='Another operation on this resource is in progress.'",
    ),
    Wording("another operation on it", "OperationInProgress", None, "OperationNotAllowed", "An update is in progress."),
    Wording("conflict that a lock made", "NotAllowed", 409, "Conflict", "x", (("ScopeLocked", LOCK),)),
    Wording("quota that says conflict", "QuotaExceeded", 409, "Conflict", "x", (("QuotaExceeded", "no cores"),)),
    Wording("cluster, by AKS", "ConfigurationError", 404, "NotFound", "The managed cluster kaito was not found."),
    Wording("an unknown refusal", "InvalidRequest", 400, "BadRequest", "Agent pools need a mode."),
    Wording("an unknown conflict", "LaunchFailed", 409, "PutAgentPoolFailed", "The agent pool failed."),
)


def refused(wording: Wording, *, wrapped: bool = False) -> CloudError:
    body = {"error": wording.error} if wrapped else wording.error
    return classify(Refusal.of(wording.status, body))


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "as ARM wraps it"])
@pytest.mark.parametrize("wording", WORDINGS, ids=lambda wording: wording.name)
def test_each_wording_has_its_class(wording: Wording, wrapped: bool) -> None:
    error = refused(wording, wrapped=wrapped)
    assert error.reason == wording.reason
    assert error.message.startswith(f"{wording.code}: ")
    assert wording.message in error.text, "Azure's own words are told"


@pytest.mark.parametrize(
    "wording", [w for w in WORDINGS if w.reason == "ClusterFull"], ids=lambda wording: wording.name
)
def test_a_full_cluster_says_what_is_full_and_what_to_do(wording: Wording) -> None:
    what = "agent pools as AKS allows" if "pool" in wording.name else "no addresses left"
    assert what in refused(wording).message
    assert "delete pools" in refused(wording).message


@pytest.mark.parametrize("wording", [w for w in WORDINGS if w.reason == "NotAllowed"], ids=lambda wording: wording.name)
def test_what_is_forbidden_is_asked_rarely(wording: Wording) -> None:
    assert [refused(wording).delay(tries) / 60 for tries in (1, 2, 3, 4, 9)] == [10, 20, 40, 60, 60]


@pytest.mark.parametrize("wording", [w for w in WORDINGS if w.reason == "NotAllowed"], ids=lambda wording: wording.name)
def test_other_sizes_are_named_where_a_policy_may_allow_them(wording: Wording) -> None:
    annotations = {"kaito.sh/fitting-instance-types": "Standard_NC4as_T4_v3"}
    spec = ClaimSpec("ws000000001", {"kaito.sh/workspace": "w"}, "Standard_NC6s_v3", annotations=annotations)
    message = refusal_text(Claim.read(encode(spec, "Machine")), refused(wording))
    assert ("Other instance types that fit: Standard_NC4as_T4_v3." in message) == ("policy" in wording.name)
    assert isinstance(refused(wording), NotAllowed)


class _Response:
    """As much of an answer as the SDK's error has."""

    reason = "Not Found"

    def __init__(self, body: Any, status: int = 404) -> None:
        self.headers: dict[str, str] = {}
        self.status_code = status
        self._body = body

    def text(self) -> str:
        return json.dumps(self._body)

    def json(self) -> Any:
        return self._body


def answer(code: str, message: str, *, status: int = 404) -> HttpResponseError:
    return HttpResponseError(response=_Response({"code": code, "message": message, "details": []}, status))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("NotFound", "Agent Pool not found. Agent pool 'ws1' does not exist in the cluster."),
        ("NotFound", "Could not find the agentpool ws1 in the cluster kaito."),
        (
            "ResourceNotFound",
            "The Resource 'Microsoft.ContainerService/managedClusters/k/agentPools/ws1' was not found.",
        ),
        ("ResourceNotFound", "Agent pool ws1 not found."),
    ],
    ids=["AKS", "AKS in other words", "ARM", "ARM in AKS's words"],
)
def test_a_404_about_the_agent_pool_says_that_it_is_gone(code: str, message: str) -> None:
    assert is_missing_instance(answer(code, message))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("NotFound", "The managed cluster kaito was not found."),
        ("NotFound", "Could not find the managed cluster of agent pool ws1."),
        ("NotFound", "Not Found"),
        ("NotFound", ""),
        ("ResourceNotFound", "The Resource 'Microsoft.ContainerService/managedClusters/kaito' was not found."),
        ("ResourceGroupNotFound", "Resource group 'agentpools' could not be found."),
        ("SubscriptionNotFound", "Agent pool? The subscription could not be found."),
        ("InvalidResourceType", "The resource type agentPools could not be found."),
    ],
)
def test_any_other_404_does_not(code: str, message: str) -> None:
    assert not is_missing_instance(answer(code, message))


def test_another_status_does_not_say_it_either() -> None:
    assert not is_missing_instance(answer("NotFound", "Agent Pool not found.", status=400))


def test_a_404_of_aks_about_the_cluster_is_a_configuration_error() -> None:
    body = {"code": "NotFound", "message": "The managed cluster kaito was not found."}
    assert isinstance(classify(Refusal.of(404, body)), ConfigurationError)
