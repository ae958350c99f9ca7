"""Both encodings of a claim, against the provisioning contract's table of fields."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from kaito_hooks.api.claim import Claim, ClaimSpec, NodeAPI, NodeClassRef, Requirement, encode

WORKSPACE_LABELS = {"apps": "phi-3", "kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "default"}
BOTH = get_args(NodeAPI)


def spec(**changes: Any) -> ClaimSpec:
    return ClaimSpec(
        **{"name": "ws1234abcde", "labels": WORKSPACE_LABELS, "instance_type": "Standard_NC6s_v3", "disk_gib": 50}
        | changes
    )


def test_a_machine_is_encoded_as_its_contract_says() -> None:
    assert encode(spec(), "Machine") == {
        "apiVersion": "karpenter.sh/v1alpha5",
        "kind": "Machine",
        "metadata": {
            "name": "ws1234abcde",
            "labels": {**WORKSPACE_LABELS, "karpenter.sh/provisioner-name": "default"},
        },
        "spec": {
            "machineTemplateRef": {"name": "ws1234abcde"},
            "requirements": [
                {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["Standard_NC6s_v3"]},
                {"key": "karpenter.sh/provisioner-name", "operator": "In", "values": ["default"]},
                {"key": "kaito.sh/machine-type", "operator": "In", "values": ["gpu"]},
                {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
                {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
            ],
            "resources": {"requests": {"storage": "50Gi"}},
            "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
        },
    }


@pytest.mark.parametrize("node_api", BOTH)
def test_further_requirements_are_in_both_kinds_once(node_api: NodeAPI) -> None:
    zone = Requirement("topology.kubernetes.io/zone", "In", ("eastus-1",))
    system = Requirement("kubernetes.io/os", "In", ("linux",))
    found = encode(spec(requirements=(zone, system)), node_api)["spec"]["requirements"]
    assert found.count(zone.to_json()) == 1
    assert found.count(system.to_json()) == 1


def test_a_node_claim_is_encoded_as_its_contract_says() -> None:
    assert encode(spec(), "NodeClaim") == {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {
            "name": "ws1234abcde",
            "labels": {**WORKSPACE_LABELS, "karpenter.sh/nodepool": "kaito"},
            "annotations": {"karpenter.sh/do-not-disrupt": "true"},
        },
        "spec": {
            "nodeClassRef": {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"},
            "requirements": [
                {"key": "karpenter.sh/nodepool", "operator": "In", "values": ["kaito"]},
                {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["Standard_NC6s_v3"]},
                {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
                {"key": "karpenter.azure.com/sku-name", "operator": "In", "values": ["Standard_NC6s_v3"]},
            ],
            "resources": {"requests": {"storage": "50Gi"}},
            "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
            "expireAfter": "Never",
        },
    }


def test_a_node_claim_fits_a_foreign_karpenter_through_its_parameters() -> None:
    claim = encode(
        spec(
            cloud="none",
            node_class=NodeClassRef("karpenter.kwok.sh", "KWOKNodeClass", "default"),
            extra_requirements=(Requirement("topology.kubernetes.io/zone", "In", ("eastus-1",)),),
            disk_request_key="ephemeral-storage",
        ),
        "NodeClaim",
    )
    assert claim["spec"]["nodeClassRef"] == {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"}
    assert [r["key"] for r in claim["spec"]["requirements"]] == [
        "karpenter.sh/nodepool",
        "node.kubernetes.io/instance-type",
        "kubernetes.io/os",
        "topology.kubernetes.io/zone",
    ]
    assert claim["spec"]["resources"] == {"requests": {"ephemeral-storage": "50Gi"}}


def test_on_aws_a_node_claim_asks_for_any_gpu() -> None:
    requirements = encode(spec(cloud="aws"), "NodeClaim")["spec"]["requirements"]
    assert requirements[-1] == {"key": "karpenter.k8s.aws/instance-gpu-count", "operator": "Gt", "values": ["0"]}


def test_a_claim_for_a_machine_without_gpus_says_so() -> None:
    machine = encode(spec(instance_type="Standard_D4s_v5", gpu=False), "Machine")["spec"]["requirements"]
    assert {"key": "kaito.sh/machine-type", "operator": "In", "values": ["cpu"]} in machine
    on_aws = encode(spec(instance_type="m7i.xlarge", gpu=False, cloud="aws"), "NodeClaim")["spec"]["requirements"]
    assert "karpenter.k8s.aws/instance-gpu-count" not in [r["key"] for r in on_aws]


def test_without_a_disk_a_machine_asks_for_0_and_a_node_claim_for_nothing() -> None:
    assert encode(spec(disk_gib=0), "Machine")["spec"]["resources"] == {"requests": {"storage": "0"}}
    assert "resources" not in encode(spec(disk_gib=0), "NodeClaim")["spec"]
    assert "resources" not in encode(spec(disk_request_key=""), "NodeClaim")["spec"]


def test_the_image_family_is_carried_as_an_annotation() -> None:
    claim = encode(spec(annotations={"kaito.sh/node-image-family": "azurelinux"}), "NodeClaim")
    assert claim["metadata"]["annotations"] == {
        "kaito.sh/node-image-family": "azurelinux",
        "karpenter.sh/do-not-disrupt": "true",
    }


@pytest.mark.parametrize("node_api", BOTH)
def test_reading_gives_back_what_was_encoded(node_api: NodeAPI) -> None:
    claim = Claim.read(encode(spec(), node_api))
    assert claim.kind == node_api
    assert claim.name == "ws1234abcde"
    assert claim.labels.items() >= WORKSPACE_LABELS.items()
    assert claim.requirement("node.kubernetes.io/instance-type") == "Standard_NC6s_v3"
    assert claim.requests == {"storage": "50Gi"}
    assert [str(t) for t in claim.taints] == ["sku=gpu:NoSchedule"]
    assert not claim.ready
    assert not claim.deleting
    assert claim.first_waiting() is None


@pytest.mark.parametrize("node_api", BOTH)
def test_an_empty_claim_reads_as_empty(node_api: NodeAPI) -> None:
    claim = Claim.read({"kind": node_api, "metadata": {"name": "x"}})
    assert (claim.node_name, claim.provider_id, claim.requirements, claim.ready) == ("", "", (), False)
    assert {state.status for state in claim.steps.values()} == {"Unknown"}


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'Node' is neither a Machine nor a NodeClaim"):
        Claim.read({"kind": "Node"})


@pytest.mark.parametrize(
    ("node_api", "names", "pending"),
    [
        ("Machine", ("MachineLaunched", "MachineRegistered", "MachineInitialized"), "False"),
        ("NodeClaim", ("Launched", "Registered", "Initialized"), "Unknown"),
    ],
)
def test_the_first_step_that_waits_with_a_message_is_shown(
    node_api: NodeAPI, names: tuple[str, str, str], pending: str
) -> None:
    launched, registered, initialized = names
    claim = Claim.read(
        {
            "kind": node_api,
            "metadata": {"name": "x", "deletionTimestamp": "2024-09-01T10:00:00Z"},
            "status": {
                "nodeName": "aks-x-vmss000000",
                "providerID": "azure:///x",
                "conditions": [
                    {
                        "type": initialized,
                        "status": pending,
                        "reason": "AwaitingReconciliation",
                        "message": "object is awaiting reconciliation",
                    },
                    {"type": registered, "status": pending, "reason": "NodeNotFound", "message": "no Node yet"},
                    {"type": launched, "status": "True", "reason": launched, "message": ""},
                    {"type": "Ready", "status": "False", "reason": "x", "message": "y"},
                ],
            },
        }
    )
    assert claim.first_waiting() == ("NodeNotFound", "no Node yet")
    assert claim.steps["launched"].done
    assert not claim.steps["registered"].done
    assert claim.deleting
    assert claim.node_name == "aks-x-vmss000000"


@pytest.mark.parametrize("values", [(), ("a", "b")], ids=["none", "two"])
def test_a_requirement_with_none_or_several_values_names_no_single_value(values: tuple[str, ...]) -> None:
    claim = Claim.read(
        {
            "kind": "Machine",
            "spec": {"requirements": [{"key": "k", "operator": "In", "values": list(values)}]},
        }
    )
    assert claim.requirement("k") is None
