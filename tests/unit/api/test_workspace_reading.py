import pytest

from kaito_hooks.api.workspace import Workspace, match_labels


def test_the_quick_starts_workspace_is_read() -> None:
    ws = Workspace.read(
        {
            "metadata": {"name": "w", "namespace": "n", "uid": "u", "generation": 2},
            "resource": {
                "instanceType": "Standard_NC6s_v3",
                "labelSelector": {"matchLabels": {"apps": "phi-3"}},
                "preferredNodes": ["a"],
            },
            "inference": {
                "preset": {"name": "phi-3-mini-4k-instruct"},
                "adapters": [{"source": {"name": "x", "image": "r/x:1"}}],
            },
            "status": {"workerNodes": ["a"], "conditions": [{"type": "WorkspaceReady", "status": "True"}]},
        }
    )
    assert (ws.namespace, ws.name, ws.uid, ws.generation, ws.deleting) == ("n", "w", "u", 2, False)
    assert ws.resource is not None
    assert ws.resource.count == 1
    assert ws.resource.match_labels == {"apps": "phi-3"}
    assert ws.resource.preferred_nodes == ("a",)
    assert ws.preset is not None
    assert (ws.preset.name, ws.preset.access_mode) == ("phi-3-mini-4k-instruct", "public")
    assert ws.inference is not None
    assert ws.inference.adapters[0].strength == "1.0"
    assert ws.worker_nodes == ("a",)


def test_a_tuning_workspace_is_read() -> None:
    ws = Workspace.read(
        {
            "metadata": {"name": "t", "deletionTimestamp": "2024-09-01T00:00:00Z"},
            "resource": {"labelSelector": {}},
            "tuning": {
                "preset": {"name": "p"},
                "method": "QLoRA",
                "input": {"urls": ["https://h/x"]},
                "output": {"image": "r/o:1", "imagePushSecret": "s"},
                "serveResult": False,
            },
        }
    )
    assert ws.deleting
    assert ws.tuning is not None
    assert (ws.tuning.method, ws.tuning.serve_result) == ("qlora", False)
    assert ws.tuning.output is not None
    assert ws.tuning.output.image_push_secret == "s"
    assert ws.resource is not None
    assert ws.resource.instance_type == "Standard_NC12s_v3"


def test_an_empty_object_is_read_too() -> None:
    ws = Workspace.read({})
    assert ws.resource is None
    assert ws.preset is None


NO_LABEL = "is no matchLabels entry and no In with a single value"


@pytest.mark.parametrize(
    ("selector", "labels", "problem"),
    [
        ({"matchLabels": {"a": "1"}}, {"a": "1"}, ""),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {"a": "1"}, ""),
        (
            {"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]},
            {},
            f"a In ['1', '2'] {NO_LABEL}",
        ),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, f"a Exists [] {NO_LABEL}"),
        (
            {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["2"]}]},
            {"a": "1"},
            "a is asked to be both 1 and 2",
        ),
    ],
)
def test_single_value_in_expressions_are_labels(
    selector: dict[str, object], labels: dict[str, str], problem: str
) -> None:
    assert match_labels(selector) == (labels, problem)
