"""A claim asks for labels of its Node; what the Node says of itself is not the claim's to change."""

from __future__ import annotations

from typing import get_args

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import ORDER
from tests.unit.provisioner.world import WORKSPACE, World

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.provisioner import resources

CLAIM = "ws000000001"
# Of each kind one that the Node has by itself.
ASKED = {
    "agentpool": "gpunp",
    "accelerator": "none",
    "kubernetes.io/hostname": "elsewhere",
    "kubernetes.io/arch": "arm64",
    "kubernetes.io/os": "windows",
    "node.kubernetes.io/instance-type": "Standard_D2s_v5",
    "topology.kubernetes.io/zone": "westus-9",
    "kubernetes.azure.com/mode": "system",
    "node-role.kubernetes.io/worker": "no",
    "team.node-restriction.kubernetes.io/tier": "high",
    "nvidia.com/gpu.product": "H200",
}
OF_THE_NODE = {
    "accelerator": "nvidia",
    "kubernetes.azure.com/mode": "user",
    "node-role.kubernetes.io/worker": "",
    "team.node-restriction.kubernetes.io/tier": "low",
    "nvidia.com/gpu.product": "V100",
}


@pytest.fixture(params=get_args(NodeAPI))
def world(request: pytest.FixtureRequest) -> World:
    """A Node that says more of itself than the pool's labels."""
    world = World(node_api=request.param)
    boot = world.cloud.on_ready

    def join(pool: object) -> None:
        boot(pool)  # type: ignore[arg-type]
        node = world.node_of()
        assert node is not None
        node["metadata"]["labels"] |= OF_THE_NODE
        node["metadata"]["annotations"] = {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
        world.cluster.put(resources.NODE, node)

    world.cloud.on_ready = join
    return world


def test_what_a_node_says_of_itself_is_never_overwritten(world: World) -> None:
    world.ready_claim(
        labels={**WORKSPACE, **ASKED},
        annotations={"volumes.kubernetes.io/controller-managed-attach-detach": "false", "example.com/x": "y"},
    )
    node = world.node_of()
    assert node is not None
    found = node["metadata"]["labels"]
    own = {
        **OF_THE_NODE,
        "agentpool": CLAIM,
        "kubernetes.io/hostname": node["metadata"]["name"],
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "Standard_NC6s_v3",
        "topology.kubernetes.io/zone": "eastus-1",
    }
    assert {key: found[key] for key in own} == own
    assert found["apps"] == "phi-3"
    annotations = node["metadata"]["annotations"]
    assert annotations["volumes.kubernetes.io/controller-managed-attach-detach"] == "true"
    assert annotations["example.com/x"] == "y"


def test_a_claim_that_names_another_pool_costs_no_live_node(world: World) -> None:
    world.allow(Budget(reconciles=0, requests=8))
    world.ready_claim(labels={**WORKSPACE, "agentpool": "gpunp"})
    world.run(900, sweep=True)
    assert world.there().ready
    assert world.node_of() is not None
    assert world.billing() == [CLAIM]


def test_reserved_labels_are_not_asked_of_the_pool(world: World) -> None:
    world.allow(ORDER)
    world.ask(labels={**WORKSPACE, **ASKED, "karpenter.sh/capacity-type": "spot", "apps": "a"})
    world.run(2)
    order = world.cloud.pools[CLAIM].order
    assert order is not None
    owner = "karpenter.sh/provisioner-name" if world.node_api == "Machine" else "karpenter.sh/nodepool"
    assert {key for key in order.labels if "kaito.sh/" not in key} == {"apps", "nvidia.com/gpu.product", owner}


def test_a_reserved_label_that_the_node_lacks_is_added(world: World) -> None:
    world.ready_claim(labels={**WORKSPACE, "kubernetes.io/x": "1", "karpenter.sh/capacity-type": "on-demand"})
    node = world.node_of()
    assert node is not None
    assert node["metadata"]["labels"]["kubernetes.io/x"] == "1"
    assert node["metadata"]["labels"]["karpenter.sh/capacity-type"] == "on-demand"
