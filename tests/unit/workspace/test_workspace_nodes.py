import pytest
from tests.unit.workspace.worlds import node_object, workspace_object

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.nodes import candidates, name_of, select
from kaito_hooks.workspace.snapshot import Tenant


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
