from typing import Any

import pytest
from tests.unit.workspace.worlds import tuning_object, workspace_object

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.children.workload import owner_reference
from kaito_hooks.workspace.decision.revision import hash_of, revise, workload_hash_of


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"apps": "test"}, "89ae127050ec264a5ce84db48ef7226574cdf1299e6bd27fe90b927e34cc8adb"),
        (
            {"workspace.kaito.io/name": "testWorkspace"},
            "1171dc5d15043c92e684c8f06689eb241763a735181fdd2b59c8bd8fd6eecdd4",
        ),
    ],
)
def test_the_hash_is_upstreams(labels: dict[str, str], expected: str) -> None:
    # Key order in the input must not matter.
    ws = {
        "resource": {
            "labelSelector": {"matchLabels": labels},
            "instanceType": "Standard_NC12s_v3",
            "count": 1,
        },
        "inference": {"preset": {"name": "test-model"}},
    }
    assert hash_of(ws) == expected


def test_what_changes_the_pods_changes_the_hash() -> None:
    plain = hash_of(workspace_object())
    adapters = [{"source": {"name": "a", "image": "r/a:1"}}]
    inference = workspace_object()["inference"]
    with_adapter = hash_of(workspace_object(inference=inference | {"adapters": adapters}))
    stronger = hash_of(workspace_object(inference=inference | {"adapters": [adapters[0] | {"strength": "0.5"}]}))
    assert len({plain, with_adapter, stronger}) == 3


def test_status_and_serving_the_result_do_not_change_the_hash() -> None:
    assert hash_of(workspace_object(status={"workerNodes": ["n"]})) == hash_of(workspace_object())
    tuning = {"preset": {"name": "p"}, "method": "lora", "input": {"urls": ["https://a/?b&c<d>"]}, "output": {}}
    assert hash_of({"tuning": tuning | {"serveResult": False}}) == hash_of({"tuning": tuning})


def test_the_hash_of_the_pods_is_the_same_in_every_version() -> None:
    """Were it another after an upgrade, all models would be loaded again."""
    adapters = [{"source": {"name": "a", "image": "r/a:1", "imagePullSecrets": ["s"]}, "strength": "0.5"}]
    inference = workspace_object()["inference"] | {"adapters": adapters}
    annotated = workspace_object(metadata={"annotations": {"kaito.sh/runtime": "vllm"}}, inference=inference)
    assert workload_hash_of(workspace_object()) == "a1c64a1d54454aea"
    assert workload_hash_of(annotated) == "403d811130429659"
    assert workload_hash_of(tuning_object()) == "d61318695adf4f2a"


TEMPLATE = {"spec": {"containers": [{"name": "c", "image": "nginx"}]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"resource": workspace_object()["resource"] | {"count": 2}},
        {"resource": workspace_object()["resource"] | {"instanceType": "Standard_NC12s_v3"}},
        {"resource": workspace_object()["resource"] | {"labelSelector": {"matchLabels": {"apps": "other"}}}},
        {"inference": {"preset": {"name": "falcon-7b-instruct"}}},
        {"inference": {"preset": {"name": "phi-3-mini-4k-instruct", "presetOptions": {"image": "r.io/mine:1"}}}},
        {"inference": {"template": TEMPLATE}},
        {"metadata": {"annotations": {"kaito.sh/runtime": "vllm"}}},
    ],
)
def test_what_a_workspace_asks_for_changes_the_hash_of_the_pods(changes: dict[str, Any]) -> None:
    assert workload_hash_of(workspace_object(**changes)) != workload_hash_of(workspace_object())


@pytest.mark.parametrize(
    "changes",
    [
        {"resource": workspace_object()["resource"] | {"preferredNodes": ["n"]}},
        {"metadata": {"annotations": {"kaito.sh/enablelb": "True", "kaito.sh/roll": "1"}, "generation": 7}},
        {"status": {"workerNodes": ["n"]}},
    ],
)
def test_what_needs_no_other_pods_leaves_their_hash(changes: dict[str, Any]) -> None:
    assert workload_hash_of(workspace_object(**changes)) == workload_hash_of(workspace_object())


def test_an_engine_is_nothing_to_a_template_of_the_user_s_own() -> None:
    own = {"inference": {"template": TEMPLATE}}
    with_engine = workspace_object(metadata={"annotations": {"kaito.sh/runtime": "vllm"}}, **own)
    assert workload_hash_of(with_engine) == workload_hash_of(workspace_object(**own))


def recorded(digest: str, number: int, name: str) -> dict[str, object]:
    return {
        "metadata": {
            "name": name,
            "namespace": "models",
            "uid": name,
            "annotations": {"workspace.kaito.io/hash": digest},
        },
        "revision": number,
    }


def test_a_new_content_gets_the_next_number() -> None:
    ws = Workspace.read(workspace_object())
    found = revise(ws, [recorded("f" * 64, 7, "phi-fffff")], owner_reference(ws))
    assert found.number == 8
    assert found.create is not None
    digest = hash_of(ws.raw)
    assert found.create["metadata"]["name"] == f"phi-{digest[:5]}"
    assert found.create["metadata"]["labels"] == {"workspace.kaito.io/name": "phi"}
    assert found.create["data"] == {"resource": ws.raw["resource"], "inference": ws.raw["inference"], "tuning": None}


def test_content_seen_before_keeps_its_number() -> None:
    ws = Workspace.read(workspace_object())
    digest = hash_of(ws.raw)
    history = [recorded(digest, 1, f"phi-{digest[:5]}"), recorded("f" * 64, 2, "phi-fffff")]
    found = revise(ws, history, owner_reference(ws))
    assert (found.number, found.create, found.drop) == (1, None, None)


def test_the_eleventh_revision_drops_the_oldest() -> None:
    ws = Workspace.read(workspace_object())
    history = [recorded(f"{n:064x}", n, f"phi-{n:05x}") for n in range(3, 13)]
    found = revise(ws, history, owner_reference(ws))
    assert found.number == 13
    assert found.drop is history[0]


def test_the_same_name_with_another_hash_is_a_conflict() -> None:
    ws = Workspace.read(workspace_object())
    name = f"phi-{hash_of(ws.raw)[:5]}"
    found = revise(ws, [recorded("f" * 64, 1, name)], owner_reference(ws))
    assert found.conflict == "revision name conflicts, the hash values are different"
