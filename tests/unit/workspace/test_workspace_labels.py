"""Labels that no bought node can have: nothing is bought for them, and nodes that exist are found by them."""

from __future__ import annotations

from typing import Any

from tests.unit.workspace.worlds import Obj, conditions, node_object, snapshot, workspace_object

from kaito_hooks.workspace.actions import BuyClaim
from kaito_hooks.workspace.plan import Plan, plan
from kaito_hooks.workspace.settings import Settings

REFUSED = "no node can be bought with a label agentpool of your own"
OF_A_POOL = node_object("own", labels={"agentpool": "gpunp", "node.kubernetes.io/instance-type": "Standard_NC6s_v3"})


def selecting(**resource: Any) -> Obj:
    selector = {"matchLabels": {"agentpool": "gpunp"}}
    return workspace_object(resource=workspace_object()["resource"] | {"labelSelector": selector} | resource)


def buys(decided: Plan) -> bool:
    return any(isinstance(action, BuyClaim) for action in decided.actions)


def test_a_node_is_not_bought_for_the_label_of_another_pool() -> None:
    decided = plan(snapshot(selecting()))
    assert not buys(decided)
    status, _, message = conditions(decided)["ResourceReady"]
    assert (status, REFUSED in message) == ("False", True)


def test_a_preferred_node_that_exists_is_taken() -> None:
    decided = plan(snapshot(selecting(preferredNodes=["own"]), nodes=(OF_A_POOL,)))
    assert decided.status is not None
    assert decided.status["workerNodes"] == ["own"]


def test_a_preferred_node_that_is_not_there_is_not_replaced_by_a_bought_one() -> None:
    decided = plan(snapshot(selecting(preferredNodes=["own"])))
    assert not buys(decided)
    assert REFUSED in conditions(decided)["ResourceReady"][2]


def test_without_purchases_nodes_that_exist_are_taken() -> None:
    decided = plan(snapshot(selecting(), nodes=(OF_A_POOL,), settings=Settings(node_api="none")))
    assert decided.status is not None
    assert decided.status["workerNodes"] == ["own"]


def test_a_zone_among_the_labels_is_asked_of_the_cloud() -> None:
    zone = {"matchLabels": {"topology.kubernetes.io/zone": "eastus-1"}}
    [claim] = [a.claim for a in plan(snapshot(selecting(labelSelector=zone))).actions if isinstance(a, BuyClaim)]
    assert {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["eastus-1"]} in claim["spec"][
        "requirements"
    ]
