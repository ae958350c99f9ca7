from typing import Any

import pytest

from kaito_hooks.workspace.children.upkeep import contains, owned_by_apply


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        pytest.param({"a": 1, "defaulted": 2}, {"a": 1}, id="what the API server defaulted"),
        pytest.param({"r": {"memory": "1Gi"}}, {"r": {"memory": "1024Mi"}}, id="a quantity written otherwise"),
        pytest.param({"cpu": "500m"}, {"cpu": 0.5}, id="a quantity as a number"),
        pytest.param({}, {"env": [], "x": "", "y": None, "z": False}, id="an empty value that is not stored"),
        pytest.param(
            {"env": [{"name": "injected"}, {"name": "a", "value": "1"}]},
            {"env": [{"name": "a", "value": "1"}]},
            id="an item that somebody added",
        ),
    ],
)
def test_what_others_add_is_no_drift(live: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert contains(live, wanted)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        pytest.param({"a": 2}, {"a": 1}, id="value"),
        pytest.param({}, {"a": 1}, id="missing"),
        pytest.param({"args": ["a", "b"]}, {"args": ["a"]}, id="longer plain list"),
        pytest.param({"args": ["b", "a"]}, {"args": ["a", "b"]}, id="order of a plain list"),
        pytest.param({"env": [{"name": "a", "value": "2"}]}, {"env": [{"name": "a", "value": "1"}]}, id="keyed item"),
        pytest.param({"env": []}, {"env": [{"name": "a"}]}, id="missing keyed item"),
    ],
)
def test_what_is_ours_and_differs_is_drift(live: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert not contains(live, wanted)


def test_what_we_posted_moves_to_the_applier() -> None:
    posted = {"manager": "kaito-workspace", "operation": "Update", "fieldsV1": {"f:spec": {}}}
    status = {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status"}
    users = {"manager": "kubectl-edit", "operation": "Update"}
    moved = owned_by_apply([posted, status, users], applier="kaito")
    assert moved == [status, users, posted | {"manager": "kaito", "operation": "Apply"}]
    assert owned_by_apply(moved, applier="kaito") == moved


@pytest.mark.parametrize("key", ["selector", "podSelector", "matchLabels", "nodeSelector"])
def test_a_selector_with_a_label_more_selects_something_else(key: str) -> None:
    assert contains({key: {"a": "b"}}, {key: {"a": "b"}})
    assert not contains({key: {"a": "b", "c": "d"}}, {key: {"a": "b"}})
    assert contains({key: {}}, {key: {}})
