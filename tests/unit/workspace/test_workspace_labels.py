"""Labels that no bought node can have: nothing is bought for them, and nodes that exist are found by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.cluster.admission.rules_table import Case, creations
from tests.unit.workspace.worlds import Obj, conditions, node_object, snapshot, workspace_object

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.configuration.settings import NodeAPISetting, Settings
from kaito_hooks.workspace.decision.actions import BuyClaim, Plan
from kaito_hooks.workspace.plan import plan

RULE = [case for case in creations() if case.rule == "C41"]
REFUSED = "no node can be bought with a label agentpool of your own"


def of_a_pool(name: str) -> Obj:
    return node_object(name, labels={"agentpool": "gpunp", "node.kubernetes.io/instance-type": "Standard_NC6s_v3"})


def selecting(**resource: Any) -> Obj:
    selector = {"matchLabels": {"agentpool": "gpunp"}}
    return workspace_object(resource=workspace_object()["resource"] | {"labelSelector": selector} | resource)


def claims_of(decided: Plan) -> Sequence[Obj]:
    return [action.claim for action in decided.actions if isinstance(action, BuyClaim)]


@pytest.mark.parametrize("case", RULE, ids=lambda case: case.id)
def test_the_controller_buys_as_the_table_says(case: Case) -> None:
    asked = Workspace.read(workspace_object(resource=case.new["resource"])).resource
    assert asked is not None
    marks = {**asked.match_labels, "node.kubernetes.io/instance-type": asked.instance_type}
    there = tuple(node_object(name, labels=dict(marks)) for name in asked.preferred_nodes)
    decided = plan(snapshot(workspace_object(resource=case.new["resource"]), nodes=there))
    resource_ready = conditions(decided)["ResourceReady"]
    if case.refused:
        assert claims_of(decided) == []
        assert case.refused in resource_ready[2]
        assert case.path in resource_ready[2]
    else:
        assert len(claims_of(decided)) == asked.count - len(there)


def test_a_node_that_exists_is_taken_whatever_its_label() -> None:
    decided = plan(snapshot(selecting(), nodes=(of_a_pool("own"),)))
    assert decided.status is not None
    assert decided.status["workerNodes"] == ["own"]


def test_a_preferred_node_that_is_not_there_is_not_replaced_by_a_bought_one() -> None:
    decided = plan(snapshot(selecting(preferredNodes=["own"])))
    assert claims_of(decided) == []
    assert REFUSED in conditions(decided)["ResourceReady"][2]


def test_where_nothing_is_bought_a_node_with_the_label_is_waited_for() -> None:
    decided = plan(snapshot(selecting(), settings=Settings(node_api="none")))
    assert REFUSED not in conditions(decided)["ResourceReady"][2]


def test_a_type_among_the_labels_must_be_spelled_as_the_node_will_spell_it() -> None:
    key = "node.kubernetes.io/instance-type"
    small = "standard_nc6s_v3"
    decided = plan(snapshot(selecting(instanceType=small, labelSelector={"matchLabels": {key: small}})))
    assert claims_of(decided) == []
    assert f"no node can be bought with a label {key} of your own" in conditions(decided)["ResourceReady"][2]
    own = {"matchLabels": {key: "Standard_NC6s_v3"}}
    [claim] = claims_of(plan(snapshot(selecting(instanceType=small, labelSelector=own))))
    assert claim["metadata"]["labels"][key] == "Standard_NC6s_v3"


def test_a_zone_among_the_labels_is_asked_of_the_cloud() -> None:
    zone = {"matchLabels": {"topology.kubernetes.io/zone": "eastus-1"}}
    [claim] = claims_of(plan(snapshot(selecting(labelSelector=zone))))
    wanted = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["eastus-1"]}
    assert wanted in claim["spec"]["requirements"]


@pytest.mark.parametrize("node_api", ["Machine", "NodeClaim"])
def test_an_architecture_among_the_labels_is_the_only_one_that_is_asked_for(node_api: NodeAPISetting) -> None:
    arm = {"matchLabels": {"kubernetes.io/arch": "arm64"}}
    settings = Settings(node_api=node_api)
    [claim] = claims_of(plan(snapshot(selecting(labelSelector=arm), settings=settings)))
    asked = [r["values"] for r in claim["spec"]["requirements"] if r["key"] == "kubernetes.io/arch"]
    assert asked == [["arm64"]]
