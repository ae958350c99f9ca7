import pytest
from tests.unit.workspace.worlds import workspace_object

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.revision import hash_of, revise
from kaito_hooks.workspace.workload import owner_reference


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
