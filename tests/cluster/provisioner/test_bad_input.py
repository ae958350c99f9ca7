"""What nobody can provision: one sentence on the claim, or left alone; the process and all other claims go on."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
from tests.cluster.provisioner.conftest import WORKSPACE, Claims, Provisioners, created, nodes_of
from tests.cluster.provisioner.test_faults_and_ends import answer
from tests.eventually import eventually

from kaito_hooks.api.claim import ClaimSpec, encode
from kaito_hooks.provisioner.resources import MACHINE, NODE_CLAIM
from kaito_hooks.runtime import Client, Obj
from kaito_local.aks import Emulator, Limits
from kaito_local.machine.ports import free_ports

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
OTHER = "11111111-1111-1111-1111-111111111111"


def without_type(obj: Obj) -> None:
    obj["spec"]["requirements"] = [r for r in obj["spec"]["requirements"] if r["key"] != INSTANCE_TYPE]


def with_two_types(obj: Obj) -> None:
    for requirement in obj["spec"]["requirements"]:
        if requirement["key"] == INSTANCE_TYPE:
            requirement["values"] = ["Standard_NC6s_v3", "Standard_NC12s_v3"]


def on_windows(obj: Obj) -> None:
    for requirement in obj["spec"]["requirements"]:
        if requirement["key"] == "kubernetes.io/os":
            requirement["values"] = ["windows"]


def with_disk(text: str) -> Callable[[Obj], None]:
    def change(obj: Obj) -> None:
        obj["spec"]["resources"] = {"requests": {"storage": text}}

    return change


def with_size(text: str) -> Callable[[Obj], None]:
    def change(obj: Obj) -> None:
        for requirement in obj["spec"]["requirements"]:
            if requirement["key"] in (INSTANCE_TYPE, "karpenter.azure.com/sku-name"):
                requirement["values"] = [text]

    return change


def untouched(obj: Obj) -> None:
    """Nothing but the name is wrong."""


NAME = "is invalid, must match regex pattern: ^[a-z][a-z0-9]{0,11}$"
NO_TYPE = f"exactly one value of {INSTANCE_TYPE} with operator In is needed"
# Name of the claim, what is wrong with it, the reason and words of the sentence.
BAD: tuple[tuple[str, Callable[[Obj], None], str, str], ...] = (
    ("ws000000m01", without_type, "InvalidRequest", f"ws000000m01 has no requirement for instance type: {NO_TYPE}"),
    ("ws000000m02", with_two_types, "InvalidRequest", f"ws000000m02 has no requirement for instance type: {NO_TYPE}"),
    ("ws-000000m03", untouched, "InvalidRequest", f"agentpool name(ws-000000m03) {NAME}"),
    ("ws00000000m04", untouched, "InvalidRequest", f"agentpool name(ws00000000m04) {NAME}"),
    ("0s00000m05", untouched, "InvalidRequest", f"agentpool name(0s00000m05) {NAME}"),
    ("ws000000m06", with_disk("-50Gi"), "InvalidRequest", "the requested disk is smaller than nothing"),
    ("ws000000m07", with_disk("1Gi"), "InvalidRequest", "a disk of 1 GiB is requested, the smallest is 30 GiB"),
    ("ws000000m08", with_disk("9Pi"), "InvalidRequest", "agentPoolProfile.osDiskSizeGB"),
    ("ws000000m09", on_windows, "InvalidRequest", "the requirements for kubernetes.io/os do not admit linux"),
    ("ws000000m10", with_size("Standard_NC7"), "InstanceTypeUnavailable", "Standard_NC7"),
    ("ws000000m11", with_size("phi-3"), "InstanceTypeUnavailable", "phi-3"),
)


def test_each_bad_claim_has_its_sentence_and_a_good_one_its_node(
    cloud: Emulator, provisioners: Provisioners, claims: Claims, admin: Client
) -> None:
    for name, spoil, _, _ in BAD:
        obj = encode(ClaimSpec(name, WORKSPACE, "Standard_NC6s_v3"), claims.kind)
        spoil(obj)
        admin.create(claims.resource, obj)
    process = provisioners.start(cloud, nodeAPI=claims.kind)
    claims.ask("ws000000n01")
    many = {f"team-{number}.example.com/label-{number}": f"value-{number}" for number in range(200)}
    claims.ask("ws000000n02", labels={**WORKSPACE, **many})
    for name, _, reason, words in BAD:
        assert words in claims.until_waiting(name, reason)[1]
    claims.until_ready("ws000000n01")
    claims.until_ready("ws000000n02")
    (node,) = nodes_of(admin, "ws000000n02")
    assert many.items() <= node["metadata"]["labels"].items()
    assert sorted(created(cloud)) == ["ws000000n01", "ws000000n02"]
    assert process.process.poll() is None
    for name, _, _, _ in BAD:
        claims.delete(name)
    for name, _, _, _ in BAD:
        claims.until_gone(name)


def test_what_the_subscription_lacks_is_told_with_its_numbers_and_other_types_go_on(
    cloud: Emulator, provisioners: Provisioners, machines: Claims
) -> None:
    """Limits of the cloud itself, not scripted answers."""
    quota = {"standardNCSv3Family": 6, "StandardNCADSA100v4Family": 100}
    cloud.set_limits(
        Limits(quota=quota, capacity={"Standard_NC24ads_A100_v4": 0}, restricted=("Standard_NC4as_T4_v3",))
    )
    provisioners.start(cloud)
    fitting = {"kaito.sh/fitting-instance-types": "Standard_NC6s_v2"}
    for name, size in (
        ("ws000000t01", "Standard_NC12s_v3"),
        ("ws000000t02", "Standard_NC24ads_A100_v4"),
        ("ws000000t03", "Standard_NC4as_T4_v3"),
        ("ws000000t04", "Standard_NC6s_v2"),
    ):
        machines.ask(name, instance_type=size, annotations=fitting)
    for name, size, reason, words in (
        (
            "ws000000t01",
            "Standard_NC12s_v3",
            "QuotaExceeded",
            "standardNCSv3Family Cores quota. Additional details - Location: eastus, Current Limit: 6, "
            "Current Usage: 0, Additional Required: 12",
        ),
        ("ws000000t02", "Standard_NC24ads_A100_v4", "InsufficientCapacity", "do not have sufficient capacity"),
        ("ws000000t03", "Standard_NC4as_T4_v3", "InstanceTypeUnavailable", "is not allowed in your subscription"),
    ):
        message = machines.until_waiting(name, reason)[1]
        assert words in message
        advice = f"Instance type asked for: {size}. Other instance types that fit: Standard_NC6s_v2."
        assert message.partition(" (next try at ")[0].endswith(advice)
    machines.until_ready("ws000000t04")


def test_claims_of_others_are_left_alone(cloud: Emulator, provisioners: Provisioners, admin: Client) -> None:
    """A Machine without a label of KAITO, whoever's provisioner it names; a NodeClaim of another class."""
    bare = encode(ClaimSpec("ws000000p01", {}, "Standard_NC6s_v3"), "Machine")
    nobodys = deepcopy(bare)
    nobodys["metadata"] = {"name": "ws000000p02"}
    foreign = encode(ClaimSpec("ws000000p03", WORKSPACE, "Standard_NC6s_v3"), "NodeClaim")
    foreign["spec"]["nodeClassRef"] = {"group": "karpenter.azure.com", "kind": "AKSNodeClass", "name": "default"}
    before = [admin.create(MACHINE, bare), admin.create(MACHINE, nobodys), admin.create(NODE_CLAIM, foreign)]
    for kind in ("Machine", "NodeClaim"):
        process = provisioners.start(cloud, nodeAPI=kind)
        ours = Claims(admin, kind)  # type: ignore[arg-type]
        name = f"ws00000q{kind[:4].lower()}"
        ours.ask(name)
        ours.until_ready(name)
        process.stop()
    after = [
        admin.get(MACHINE, "ws000000p01"),
        admin.get(MACHINE, "ws000000p02"),
        admin.get(NODE_CLAIM, "ws000000p03"),
    ]
    assert after == before
    assert len(created(cloud)) == 2


@pytest.mark.parametrize(
    ("environment", "reason", "words"),
    [
        ({"AZURE_FEDERATED_TOKEN_FILE": "/nowhere/token"}, "AuthenticationFailed", "/nowhere/token"),
        ({"AZURE_CLIENT_ID": OTHER}, "AuthenticationFailed", f"AADSTS700016: Application with identifier '{OTHER}'"),
        ({"AZURE_CLUSTER_NAME": "elsewhere"}, "ConfigurationError", "managedClusters/elsewhere' under resource group"),
        ({"ARM_RESOURCE_GROUP": "elsewhere"}, "ConfigurationError", "Resource group 'elsewhere' could not be found"),
        ({"ARM_SUBSCRIPTION_ID": OTHER}, "ConfigurationError", f"subscription '{OTHER}' could not be found"),
    ],
    ids=["no token file", "wrong client", "wrong cluster", "wrong resource group", "wrong subscription"],
)
def test_a_wrong_set_up_is_told_on_the_claim_and_ends_nothing(
    cloud: Emulator,
    provisioners: Provisioners,
    machines: Claims,
    environment: dict[str, str],
    reason: str,
    words: str,
) -> None:
    process = provisioners.start(cloud, environment=environment)
    machines.ask("ws000000r01")
    assert words in machines.until_waiting("ws000000r01", reason)[1]
    assert process.process.poll() is None


def test_a_token_that_comes_later_makes_the_process_ready(
    cloud: Emulator, provisioners: Provisioners, tmp_path: Path
) -> None:
    token = tmp_path / "later"
    health, metrics = free_ports(2)
    ports = {"HEALTH_PROBE_PORT": str(health), "METRICS_PORT": str(metrics)}
    provisioners.start(cloud, environment={"AZURE_FEDERATED_TOKEN_FILE": str(token)} | ports)

    def told() -> bool:
        status, body = answer(health, "/readyz")
        return status >= 500 and str(token) in body

    eventually(told, every=0.2)
    token.write_text("a.b.c")
    eventually(lambda: answer(health, "/readyz")[0] == 200, every=0.2)
