from typing import Any

import pytest
from tests.unit.workspace.worlds import CATALOG, workspace_object

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.rules.validate import check

PHI = "phi-3-mini-4k-instruct"
LABELS = {"labelSelector": {"matchLabels": {"apps": "x"}}}
PRESETS = f"falcon-40b, falcon-7b-instruct, from-hub, from-volume, llama-2-13b, llama-2-7b, {PHI}"
SERVER = {"spec": {"containers": [{"name": "server", "image": "r.io/x/server:1"}]}}
SKUS = "Standard_NC12s_v3, Standard_NC24ads_A100_v4, Standard_NC6s_v3, Standard_NV32as_v4, Standard_NV6"


def resource(instance_type: str = "Standard_NC6s_v3", count: int = 1, **more: Any) -> dict[str, Any]:
    return {"count": count, "instanceType": instance_type, **LABELS, **more}


def preset(name: str, **more: Any) -> dict[str, Any]:
    return {"preset": {"name": name, **more}}


def adapter(name: str = "a", image: str = "r.io/x/a:1", **more: Any) -> dict[str, Any]:
    return {"source": {"name": name, "image": image}, **more}


def adapters(*given: dict[str, Any]) -> dict[str, Any]:
    return preset(PHI) | {"adapters": list(given)}


def tuning(**changes: Any) -> dict[str, Any]:
    found = preset(PHI) | {
        "method": "qlora",
        "input": {"urls": ["https://h/d.parquet"]},
        "output": {"image": "r.io/x/out:1", "imagePushSecret": "s"},
    }
    found |= changes
    return {"inference": None, "tuning": {k: v for k, v in found.items() if v is not None}}


def problems(**changes: Any) -> list[str]:
    return [f"{p.rule} {p}" for p in check(Workspace.read(workspace_object(**changes)), CATALOG, max_nodes=100)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"inference": None}, "C1 Either Inference or Tuning must be specified, not neither: spec"),
        (tuning() | {"inference": preset(PHI)}, "C2 Either Inference or Tuning must be specified, but not both: spec"),
        (
            {"resource": resource("Standard_invalid_sku")},
            f"C4 Unsupported instance type Standard_invalid_sku. Supported SKUs: {SKUS}: resource",
        ),
        (
            {"resource": resource("Standard_NC6s_v3"), "inference": preset("falcon-40b")},
            "C5 Insufficient number of GPUs: Instance type Standard_NC6s_v3 provides 1, "
            "but preset falcon-40b requires at least 2: resource",
        ),
        (
            {
                "metadata": {"annotations": {"kaito.sh/runtime": "vllm"}},
                "resource": resource("Standard_NV6", 2),
                "inference": preset("llama-2-13b", accessMode="private", presetOptions={"image": "r/l:1"}),
            },
            "C6 Insufficient per GPU memory: Instance type Standard_NV6 provides 8Gi per GPU, "
            "but preset llama-2-13b requires at least 15Gi per GPU: resource",
        ),
        (
            {"resource": resource("Standard_NV6"), "inference": preset("falcon-7b-instruct")},
            "C7 Insufficient total GPU memory: Instance type Standard_NV6 has a total of 8Gi, "
            "but preset falcon-7b-instruct requires at least 14Gi: resource",
        ),
        (
            {"resource": resource("Standard_NC24ads_A100_v4", 2), "inference": preset("falcon-40b")},
            "C5 Insufficient number of GPUs: Instance type Standard_NC24ads_A100_v4 provides 1, "
            "but preset falcon-40b requires at least 2; each of the 2 nodes holds the whole model: resource",
        ),
        (
            tuning() | {"resource": resource(count=2)},
            "C9 Tuning does not currently support multinode configurations. Please set the node count to 1. "
            "Future support with DeepSpeed will allow this.: resource",
        ),
        (
            {"resource": resource(count=101)},
            "C38 invalid value: 101 nodes; one Workspace may have 100, "
            "as the value maxNodesPerWorkspace of the chart kaito says: resource.count",
        ),
        ({"inference": {}}, "C10 missing field(s): Preset or Template must be specified: inference"),
        (
            {"inference": preset(PHI) | {"template": SERVER}},
            "C11 Preset and Template cannot be set at the same time: inference",
        ),
        (
            {"inference": preset("nope")},
            f"C12 Unsupported inference preset name nope. Supported presets: {PRESETS}: inference.presetName",
        ),
        (
            {"inference": preset("llama-2-7b")},
            "C13 This preset only supports private AccessMode, AccessMode must be private to continue: inference",
        ),
        (
            {"inference": preset("llama-2-7b", accessMode="private")},
            "C14 When AccessMode is private, an image must be provided in PresetOptions: inference",
        ),
        (
            {"inference": adapters(*(adapter(f"a{n}") for n in range(11)))},
            "C15 Number of Adapters exceeds the maximum limit, maximum of 10 allowed: inference.adapters",
        ),
        (
            {"inference": adapters(adapter(), adapter())},
            "C16 Duplicate adapter source name found: a: inference.adapters",
        ),
        (
            {"inference": adapters(adapter(image=""))},
            "C18 Image of Adapter field must be specified: inference.adapters",
        ),
        (
            {"inference": adapters(adapter(strength="much"))},
            "C19 Invalid strength value for Adapter 'a': much: inference.adapters",
        ),
        (
            {"inference": adapters(adapter(strength="nan"))},
            "C19 Invalid strength value for Adapter 'a': nan: inference.adapters",
        ),
        (
            {"inference": adapters(adapter(strength="1.1"))},
            "C20 Strength value for Adapter 'a' must be between 0 and 1: inference.adapters",
        ),
        (tuning(preset=None), "C22 missing field(s): Preset: tuning"),
        (tuning(input=None), "C22 missing field(s): Input: tuning"),
        (tuning(output=None), "C22 missing field(s): Output: tuning"),
        (
            tuning(**preset("nope")),
            f"C23 Unsupported tuning preset name nope. Supported presets: {PHI}: tuning.presetName",
        ),
        (
            tuning(input={"urls": ["https://h/d"], "image": "r.io/x/d:1"}),
            "C28 Exactly one of URLs, Volume, or Image must be specified: tuning.input",
        ),
        (tuning(input={}), "C28 Exactly one of URLs, Volume, or Image must be specified: tuning.input"),
        (
            tuning(input={"volumeSource": {"emptyDir": {}}}),
            "C29 Volume support is not implemented yet: tuning.input",
        ),
        (
            tuning(input={"image": "no-registry"}),
            "C30 Invalid image format, require full input image URL: tuning.input",
        ),
        (
            tuning(output={"image": "r.io/x", "imagePushSecret": "s"}),
            "C30 Invalid image format, require full output image URL: tuning.output",
        ),
        (
            tuning(output={"image": "r.io/ACR_REPO_HERE:1", "imagePushSecret": "s"}),
            "C31 Repository name must be lowercase: tuning.output",
        ),
        (
            tuning(output={"image": "r.io/x/o:1"}),
            "C32 missing field(s): Must specify imagePushSecret with destination image: tuning.output",
        ),
        (tuning(output={}), "C33 missing field(s): At least one of Volume or Image must be specified: tuning.output"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_a_broken_rule_is_told_in_the_words_that_users_know(changes: dict[str, Any], expected: str) -> None:
    assert expected in problems(**changes)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"metadata": {"name": "with.dot"}}, "C3"),
        ({"metadata": {"name": "1st"}}, "C3"),
        ({"metadata": {"name": "a" * 53}}, "C3"),
        (
            {
                "resource": resource()
                | {"labelSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}}
            },
            "C8",
        ),
        ({"resource": resource() | {"labelSelector": {"matchLabels": {"kaito.sh/workspace": "other"}}}}, "C8"),
        ({"inference": adapters(adapter(name="With_Case"))}, "C17"),
        ({"inference": adapters(adapter(name="a" * 56))}, "C17"),
        ({"inference": adapters({"source": {"image": "r.io/x/a:1"}})}, "C17"),
        (tuning(method="dora"), "C21"),
        (tuning(**preset("falcon-7b-instruct")), "C24"),
        (tuning() | {"resource": resource("Standard_NC1")}, ""),
        (tuning() | {"resource": resource("Huge_1")}, "C25"),
        (tuning(method="lora") | {"resource": resource("Standard_NV6")}, "C25"),
    ],
)
def test_rules_with_free_text_hold_too(changes: dict[str, Any], rule: str) -> None:
    found = {problem.split()[0] for problem in problems(**changes)}
    assert found == ({rule} if rule else set())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"metadata": {"name": "a" * 52}},
        {"resource": resource("standard_nc6S_v3")},
        {"resource": resource("Standard_Nsku")},
        {"resource": resource("Standard_Dsku")},
        {"inference": {"template": SERVER}, "resource": resource("Standard_NV6")},
        {"inference": adapters(*(adapter(f"a{n}", strength=s) for n, s in enumerate(("0", "1", "0.5", "1.0"))))},
        {"inference": preset("llama-2-7b", accessMode="private", presetOptions={"image": "r/l:1"})},
        tuning(),
        tuning(method="LoRA"),
        tuning(input={"image": "r.io/x/d:1"}),
    ],
)
def test_good_workspaces_break_no_rule(changes: dict[str, Any]) -> None:
    assert problems(**changes) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("phi-3-mini-4k-instuct", PHI),
        ("PHI-3-mini-4k-instruct", PHI),
        ("llama2-7b", "llama-2-7b"),
        ("falcon40b", "falcon-40b"),
    ],
)
def test_a_misspelt_preset_is_told_the_nearest_name(name: str, meant: str) -> None:
    [problem] = problems(inference=preset(name))
    assert problem.startswith(
        f"C12 Unsupported inference preset name {name}; did you mean {meant}? Supported presets: "
    )


def test_without_a_catalog_the_other_rules_hold() -> None:
    ws = Workspace.read(workspace_object(inference=adapters(adapter(strength="2"))))
    assert [p.rule for p in check(ws, None, max_nodes=100)] == ["C20"]
