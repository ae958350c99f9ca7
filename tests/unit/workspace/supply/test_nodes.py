from typing import Any

import pytest
from tests.unit.workspace.worlds import conditions, node_object, snapshot, workspace_object

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.configuration.settings import NodeAPISetting, Settings
from kaito_hooks.workspace.decision.actions import CreateChild
from kaito_hooks.workspace.decision.snapshot import Tenant
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.supply.node_facts import facts
from kaito_hooks.workspace.supply.nodes import candidates, name_of, select


def names(nodes: list[dict[str, object]]) -> list[str]:
    return [name_of(node) for node in nodes]


@pytest.mark.parametrize(
    ("nodes", "preferred", "previous", "machine_type", "node_pool", "need", "node_claim_mode", "expected"),
    [
        pytest.param("n2 n1", "", "", "", "", 1, False, "n1", id="by name"),
        pytest.param("n1 n2 n3", "n3 n2", "", "", "", 2, False, "n2 n3", id="preferred"),
        pytest.param("n1 n2 n3", "", "n3 n2", "", "", 2, False, "n2 n3", id="used before"),
        pytest.param("n1 n2 n3", "n3", "n2", "", "", 2, False, "n2 n3", id="preferred and used before"),
        pytest.param("n1 n2 n3", "n3", "n2", "", "", 1, False, "n3", id="preferred beats used before"),
        pytest.param("n1 n2 n3", "", "", "n3", "", 1, False, "n3", id="made by KAITO"),
        pytest.param("n1 n2 n3", "n2", "n1", "n3", "", 2, False, "n1 n2", id="used before beats made by KAITO"),
        pytest.param("n1 n2 n3", "n2", "n1", "n3", "", 3, False, "n1 n2 n3", id="all"),
        pytest.param("n1 n2 n3", "n1", "", "n3", "n2", 2, True, "n1 n3", id="made by KAITO beats its node pool"),
        pytest.param("n1 n2 n3", "n1", "", "", "n3", 2, True, "n1 n3", id="node pool"),
        pytest.param("n1 n2 n3", "n1", "", "", "n3", 2, False, "n1 n2", id="node pool says nothing to Machines"),
    ],
)
def test_nodes_are_taken_in_order(
    nodes: str,
    preferred: str,
    previous: str,
    machine_type: str,
    node_pool: str,
    need: int,
    node_claim_mode: bool,
    expected: str,
) -> None:
    found = []
    for name in nodes.split():
        labels = {}
        if name in machine_type.split():
            labels["kaito.sh/machine-type"] = "gpu"
        if name in node_pool.split():
            labels["karpenter.sh/nodepool"] = "kaito"
        found.append(node_object(name, labels=labels))
    chosen = select(
        found, count=need, preferred=preferred.split(), previous=previous.split(), node_claim_mode=node_claim_mode
    )
    assert names(chosen) == expected.split()


def usable(node: dict[str, object], *, tenants: tuple[Tenant, ...] = (), **changes: object) -> bool:
    ws = Workspace.read(workspace_object(**changes))
    assert ws.resource is not None
    return bool(candidates([node], ws, ws.resource, tenants={name_of(node): tenants}))


def test_a_ready_node_with_labels_and_type_is_a_candidate() -> None:
    assert usable(node_object("n"))


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(node_object("n", labels={"apps": "other"}), id="another label value"),
        pytest.param(node_object("n", labels={"apps": None}), id="label missing"),
        pytest.param(node_object("n", ready=False), id="not Ready"),
        pytest.param(node_object("n", deletionTimestamp="2026-01-02T12:00:00Z"), id="being deleted"),
        pytest.param(node_object("n", labels={"node.kubernetes.io/instance-type": "Standard_NV6"}), id="another type"),
        pytest.param(node_object("n", labels={"node.kubernetes.io/instance-type": None}), id="no type"),
        pytest.param(
            node_object("n", labels={"kaito.sh/workspace": "else", "kaito.sh/workspacenamespace": "models"}),
            id="bought for another Workspace",
        ),
        pytest.param(
            node_object("n", labels={"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "elsewhere"}),
            id="bought for its namesake in another namespace",
        ),
        pytest.param({**node_object("n"), "spec": {"unschedulable": True}}, id="cordoned"),
    ],
)
def test_other_nodes_are_not(node: dict[str, object]) -> None:
    assert not usable(node)


def test_case_of_the_instance_type_does_not_matter() -> None:
    assert usable(node_object("n", labels={"node.kubernetes.io/instance-type": "standard_nc6S_V3"}))


def test_a_preferred_node_may_have_any_type() -> None:
    node = node_object("n", labels={"node.kubernetes.io/instance-type": "Standard_NV6"})
    resource = workspace_object()["resource"] | {"preferredNodes": ["n"]}
    assert usable(node, resource=resource)


def test_its_own_bought_node_is_a_candidate() -> None:
    assert usable(node_object("n", labels={"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "models"}))


OLDER = Tenant("2026-01-01T00:00:00Z", "models", "older")
YOUNGER = Tenant("2026-01-03T00:00:00Z", "models", "younger")


@pytest.mark.parametrize(("tenant", "expected"), [(OLDER, False), (YOUNGER, False)])
def test_a_node_that_another_workspace_uses_is_taken(tenant: Tenant, expected: bool) -> None:
    assert usable(node_object("n"), tenants=(tenant,)) is expected


@pytest.mark.parametrize(("tenant", "expected"), [(OLDER, False), (YOUNGER, True)])
def test_of_two_that_took_the_same_node_the_older_keeps_it(tenant: Tenant, expected: bool) -> None:
    status = {"workerNodes": ["n"]}
    assert usable(node_object("n"), tenants=(tenant,), status=status) is expected


def discovered(product: str, memory: int, *, count: int = 1) -> dict[str, str]:
    """The labels of GPU feature discovery; ``memory`` is in MiB."""
    gpu = "nvidia.com/gpu"
    return {f"{gpu}.product": product, f"{gpu}.memory": str(memory), f"{gpu}.count": str(count)}


A100 = discovered("NVIDIA-A100-SXM4-80GB", 81920, count=2)
T4 = discovered("Tesla-T4", 15360)
UNNAMED = {"node.kubernetes.io/instance-type": None}
K3S = {"node.kubernetes.io/instance-type": "k3s"}
SYSTEM = {"node.kubernetes.io/instance-type": "Standard_D4s_v5"}
BIG = {"preset": {"name": "falcon-40b", "accessMode": "public"}}


def taken(*found: dict[str, Any], node_api: NodeAPISetting = "none", inference: dict[str, Any] | None = None) -> Any:
    """The nodes that a plan takes for a Workspace of one node, and what it says of them."""
    changes: dict[str, Any] = {"inference": inference} if inference else {}
    changes["resource"] = workspace_object()["resource"] | {"instanceType": "Standard_NC24ads_A100_v5"}
    decided = plan(snapshot(workspace_object(**changes), nodes=found, settings=Settings(node_api=node_api)))
    assert decided.status is not None
    return decided.status["workerNodes"], conditions(decided)["ResourceReady"][2]


@pytest.mark.parametrize("labels", [UNNAMED, K3S, UNNAMED | A100, K3S | T4], ids=["unnamed", "k3s", "a100", "t4"])
@pytest.mark.parametrize("gpus", [1, 0], ids=["with GPUs", "before the device plugin"])
def test_where_nothing_is_bought_a_node_of_no_cloud_is_taken(labels: dict[str, Any], gpus: int) -> None:
    assert taken(node_object("mine", labels=labels, gpus=gpus))[0] == ["mine"]
    assert taken(node_object("mine", labels=labels, gpus=gpus), node_api="Machine")[0] == []


def test_a_node_of_a_size_without_gpus_is_not_taken_for_a_model() -> None:
    assert taken(node_object("system", labels=SYSTEM, gpus=0))[0] == []


def test_a_node_whose_gpus_do_not_hold_the_model_is_not_taken_and_named() -> None:
    found, message = taken(node_object("small", labels=UNNAMED | T4), inference=BIG)
    assert found == []
    assert message == (
        "node 0/1 ready; 1 more Ready node with the labels apps=phi-3 needed; nothing is bought because nodeAPI is "
        "none; the GPUs of node small (1 x T4 with 16 GiB) do not hold what the Workspace runs"
    )
    both = (node_object("a-small", labels=UNNAMED | T4), node_object("big", labels=UNNAMED | A100, gpus=2))
    assert taken(*both, inference=BIG)[0] == ["big"]


def test_of_several_nodes_those_of_the_named_type_come_first_and_then_those_with_gpus() -> None:
    bare, gpu = node_object("a-bare", labels=UNNAMED, gpus=0), node_object("b-gpu", labels=UNNAMED)
    named = node_object("c-named", labels={"node.kubernetes.io/instance-type": "standard_nc24ads_a100_v5"})
    assert taken(bare, gpu)[0] == ["b-gpu"]
    assert taken(bare, gpu, named)[0] == ["c-named"]


def test_where_nothing_is_bought_the_server_requests_the_gpus_of_its_node() -> None:
    obj = workspace_object(resource=workspace_object()["resource"] | {"instanceType": "Standard_NC6s_v3"})
    node = node_object("mine", labels=UNNAMED | {"accelerator": "nvidia"}, gpus=4)
    decided = plan(snapshot(obj, nodes=(node,), settings=Settings(node_api="none")))
    [deployment] = [a.child for a in decided.actions if isinstance(a, CreateChild) and a.child["kind"] == "Deployment"]
    [server] = deployment["spec"]["template"]["spec"]["containers"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] in (4, "4")


@pytest.mark.parametrize("memory", ["", "many", "-1", "9" * 400])
def test_a_memory_that_is_no_number_is_not_known(memory: str) -> None:
    assert facts(node_object("mine", labels=A100 | {"nvidia.com/gpu.memory": memory})) is None


@pytest.mark.parametrize(
    ("product", "memory", "model", "sold"),
    [
        ("Tesla-T4", 15360, "T4", 16),
        ("Tesla-V100-SXM2-16GB", 16160, "V100", 16),
        ("NVIDIA-A10", 23028, "A10", 24),
        ("NVIDIA-A100-SXM4-80GB", 81920, "A100", 80),
        ("NVIDIA-H100-80GB-HBM3", 81559, "H100", 80),
    ],
)
def test_gpus_are_known_by_their_model_and_the_memory_that_they_are_sold_with(
    product: str, memory: int, model: str, sold: int
) -> None:
    found = facts(node_object("mine", labels=discovered(product, memory)))
    assert found is not None
    assert (found.gpu_model, found.per_gpu_memory_gib, found.gpu_count) == (model, sold, 1)


def why_not(node: dict[str, Any], **changes: Any) -> str:
    """What is said of the nodes where nothing is bought and that one is there."""
    s = snapshot(workspace_object(), nodes=(node,), settings=Settings(node_api="none"), **changes)
    _, _, message = conditions(plan(s))["ResourceReady"]
    assert message.startswith("node 0/1 ready; 1 more Ready node with the labels apps=phi-3 needed")
    return message.partition("nodeAPI is none")[2]


@pytest.mark.parametrize("type", ["Standard_D8s_v3", "standard_e4s_v5"])
def test_of_a_node_without_gpus_it_is_told_that_they_are_what_it_lacks(type: str) -> None:
    cpu = node_object("cpu", gpus=0, labels={"node.kubernetes.io/instance-type": type})
    text = why_not(cpu)
    assert text == f"; node cpu ({type}) has the labels but offers no nvidia.com/gpu, and the Workspace needs GPUs"


def test_of_a_node_that_cannot_be_taken_it_is_told_why() -> None:
    assert why_not(node_object("mine", ready=False)) == "; node mine has the labels but is not Ready"
    cordoned = {**node_object("mine"), "spec": {"unschedulable": True}}
    assert why_not(cordoned) == "; node mine has the labels but is cordoned"
    going = node_object("mine", deletionTimestamp="2026-01-02T12:00:00Z")
    assert why_not(going) == "; node mine has the labels but is being deleted"
    tenant = {"mine": (Tenant("2025-01-01T00:00:00Z", "models", "older"),)}
    text = "; node mine has the labels but is used by Workspace models/older"
    assert why_not(node_object("mine"), tenants=tenant) == text


def test_who_brought_no_node_is_told_of_none() -> None:
    assert why_not(node_object("other", labels={"apps": "another"})) == ""
