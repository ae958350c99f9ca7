"""Which engine serves a Workspace, in which image, over how many nodes, and what a change of the choice does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.workspace.worlds import (
    CATALOG,
    SmallWorld,
    conditions,
    node_object,
    snapshot,
    spread_object,
    tuning_object,
    unchecked,
    workspace_object,
)

from kaito_hooks.api.catalog import Engine
from kaito_hooks.api.version import VERSION
from kaito_hooks.workspace.configuration.settings import Images, Settings
from kaito_hooks.workspace.decision.actions import ApplyChild, BuyClaim, CreateChild, Delete
from kaito_hooks.workspace.plan import plan

Obj = dict[str, Any]
RUNTIME = "kaito.sh/runtime"
TEMPLATE = {"template": {"spec": {"containers": [{"name": "c", "image": "nginx"}]}}}
A100 = {"count": 1, "instanceType": "Standard_NC24ads_A100_v4", "labelSelector": {"matchLabels": {"apps": "phi-3"}}}


def on_an_a100(runtime: str = "", **changes: Any) -> Obj:
    metadata = {"annotations": {RUNTIME: runtime}} if runtime else {}
    return workspace_object(metadata=metadata, resource=A100, **changes)


def server(world: SmallWorld, kind: str = "Deployment") -> Obj:
    [container] = world.children[f"{kind}/phi"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def option(container: Obj, name: str) -> str:
    args = container["args"]
    return str(args[args.index(name) + 1])


def served(obj: Obj, *, variant: str = "", default: Engine = "transformers") -> SmallWorld:
    world = SmallWorld(
        obj, settings=Settings(images=Images(variant=variant)), catalog=replace(CATALOG, default_engine=default)
    )
    world.settle()
    assert said(world) == ("True", "workspace is ready")
    return world


def said(world: SmallWorld, condition: str = "WorkspaceReady") -> tuple[str, str]:
    assert world.workspace is not None
    return next((c["status"], c["message"]) for c in world.workspace["status"]["conditions"] if c["type"] == condition)


def annotate(world: SmallWorld, runtime: str | None) -> None:
    assert world.workspace is not None
    annotations = world.workspace["metadata"]["annotations"]
    annotations.pop(RUNTIME, None)
    if runtime is not None:
        annotations[RUNTIME] = runtime


@pytest.mark.parametrize(
    ("runtime", "variant", "default", "engine", "image"),
    [
        ("", "", "transformers", "transformers", "cu126"),
        ("", "cpu", "transformers", "transformers", "cpu"),
        ("", "cu126", "transformers", "transformers", "cu126"),
        ("", "vllm", "vllm", "vllm", "vllm"),
        ("vllm", "", "transformers", "vllm", "vllm"),
        ("vllm", "cpu", "transformers", "vllm", "vllm"),
        ("transformers", "", "transformers", "transformers", "cu126"),
        ("transformers", "cpu", "transformers", "transformers", "cpu"),
        # The image of vllm holds the environment of the other engine too.
        ("transformers", "vllm", "vllm", "transformers", "vllm"),
    ],
)
def test_the_annotation_chooses_then_the_chart(
    runtime: str, variant: str, default: Engine, engine: str, image: str
) -> None:
    world = served(on_an_a100(runtime), variant=variant, default=default)
    assert option(server(world), "--engine") == engine
    assert server(world)["image"].endswith(f":{VERSION}-{image}")
    assert world.children["Deployment/phi"]["metadata"]["annotations"][RUNTIME] == engine


@pytest.mark.parametrize(("runtime", "variant"), [("vllm", "cpu"), ("vllm", ""), ("transformers", "vllm")])
def test_the_trainer_has_the_image_of_its_own_variant(runtime: str, variant: str) -> None:
    obj = unchecked(tuning_object(metadata={"annotations": {RUNTIME: runtime}}, resource=A100))
    world = SmallWorld(obj, settings=Settings(images=Images(variant=variant)))
    for _ in range(4):
        world.reconcile()
        world.provision()
    steps = world.children["Job/phi"]["spec"]["template"]["spec"]["initContainers"]
    [tune] = [step for step in steps if step["name"] == "tune"]
    assert tune["image"].endswith("-cpu" if variant == "cpu" else "-cu126")


def test_a_tuned_model_is_served_by_the_engine_that_was_chosen() -> None:
    world = served(tuning_object(metadata={"annotations": {RUNTIME: "vllm"}}, resource=A100))
    assert option(server(world), "--engine") == "vllm"
    assert option(server(world), "--adapters_dir") == "/mnt/adapter"


def test_a_user_s_own_template_has_no_engine() -> None:
    world = served(workspace_object(metadata={"annotations": {RUNTIME: "vllm"}}, inference=TEMPLATE))
    assert server(world) == {"name": "c", "image": "nginx"}
    assert RUNTIME not in world.children["Deployment/phi"]["metadata"]["annotations"]


def test_each_rank_knows_its_number_and_finds_the_first() -> None:
    world = served(spread_object())
    found = world.children["StatefulSet/phi"]
    assert found["spec"]["replicas"] == 2
    container = server(world, "StatefulSet")
    assert [option(container, name) for name in ("--engine", "--nnodes", "--node_rank", "--master_addr")] == [
        "vllm", "2", "$(NODE_RANK)", "phi-0.phi-headless.models.svc",
    ]  # fmt: skip
    rank = {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}
    assert {"name": "NODE_RANK", "valueFrom": rank} in container["env"]
    # Every rank answers on /health; models are the first one's alone.
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"].partition("?")[0] == "/health"


def test_the_ranks_talk_to_one_another_and_others_to_the_server_alone() -> None:
    world = served(spread_object())
    pods = {"podSelector": {"matchLabels": {"kaito.sh/workspace": "phi"}}}
    policy = world.children["NetworkPolicy/phi"]["spec"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": 5000}]}, {"from": [pods]}]
    assert {"to": [pods]} in policy["egress"]
    headless = world.children["Service/phi-headless"]["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    # Users, and who collects metrics, reach the first rank.
    users = world.children["Service/phi"]["spec"]
    assert users["selector"] == {"kaito.sh/workspace": "phi", "statefulset.kubernetes.io/pod-name": "phi-0"}
    assert users["ports"][0] == {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 5000}


def test_a_spread_preset_on_one_node_is_no_group() -> None:
    preset = replace(CATALOG.presets["llama-2-13b"], gpu_count=1)
    catalog = replace(CATALOG, presets={**CATALOG.presets, "llama-2-13b": preset})
    world = SmallWorld(spread_object(count=1), catalog=catalog)
    world.settle()
    container = server(world, "StatefulSet")
    assert not {"--nnodes", "--node_rank", "--master_addr"} & set(container["args"])
    assert "NODE_RANK" not in {e["name"] for e in container["env"]}


def test_an_engine_that_the_preset_lacks_is_told_before_anything_is_bought() -> None:
    decided = plan(snapshot(spread_object(runtime=None)))
    assert not [a for a in decided.actions if isinstance(a, BuyClaim)]
    assert conditions(decided)["WorkspaceReady"] == (
        "False",
        "workspaceFailed",
        "Preset llama-2-13b is not served by the engine transformers; set the annotation kaito.sh/runtime to vllm: "
        "inference.presetName",
    )


def test_another_engine_is_rolled_out_at_once_on_the_same_node() -> None:
    world = served(on_an_a100())
    annotate(world, "vllm")
    decided = world.reconcile()
    [action] = decided.actions
    assert isinstance(action, ApplyChild)
    assert said(world, "InferenceReady") == ("False", "Deployment/phi is being brought up to date")
    world.settle()
    assert (option(server(world), "--engine"), world.bought, said(world)[0]) == ("vllm", 1, "True")
    annotate(world, None)
    world.settle()
    assert (option(server(world), "--engine"), world.bought, said(world)[0]) == ("transformers", 1, "True")


@pytest.mark.parametrize(
    ("obj", "kind", "runtime", "words"),
    [
        (spread_object(), "StatefulSet", "transformers", "Preset llama-2-13b is not served by the engine transformers"),
        (workspace_object(), "Deployment", "vllm", "the compute capability of its V100 is below 7.5"),
        (workspace_object(), "Deployment", "onnx", "The annotation kaito.sh/runtime is 'onnx'"),
        (workspace_object(inference=TEMPLATE), "Deployment", "onnx", "The annotation kaito.sh/runtime is 'onnx'"),
    ],
)
def test_a_choice_that_cannot_be_served_is_told_and_what_runs_stays(
    obj: Obj, kind: str, runtime: str, words: str
) -> None:
    world = served(obj)
    before = server(world, kind)
    bought = world.bought
    annotate(world, runtime)
    world.settle()
    assert said(world)[0] == "False"
    assert words in said(world)[1]
    assert words in said(world, "InferenceReady")[1]
    assert said(world, "ResourceReady")[0] == "True"
    assert (server(world, kind), world.deleted, world.bought) == (before, [], bought)
    annotate(world, "vllm" if kind == "StatefulSet" else None)
    world.settle()
    assert said(world) == ("True", "workspace is ready")


def test_a_workload_from_before_there_were_engines_is_held_to_the_rule_and_left_alone() -> None:
    world = served(spread_object())
    annotate(world, None)
    del world.children["StatefulSet/phi"]["metadata"]["annotations"][RUNTIME]
    before = server(world, "StatefulSet")
    world.settle()
    assert "is not served by the engine transformers" in said(world)[1]
    assert (server(world, "StatefulSet"), world.deleted) == (before, [])


def test_a_catalog_that_takes_the_engine_from_a_preset_later_is_no_reason_to_neglect_what_runs() -> None:
    world = served(on_an_a100("vllm"))
    preset = replace(CATALOG.presets["phi-3-mini-4k-instruct"], engines=("transformers",))
    world.catalog = replace(CATALOG, presets={**CATALOG.presets, preset.name: preset})
    del world.children["Service/phi"]
    world.settle()
    assert "Service/phi" in world.children
    assert said(world) == ("True", "workspace is ready")
    # A choice made afterwards is held to the rule.
    annotate(world, "transformers")
    world.settle()
    annotate(world, "vllm")
    world.settle()
    assert "is not served by the engine vllm" in said(world)[1]
    assert option(server(world), "--engine") == "transformers"


def test_ranks_that_are_to_change_start_anew_together() -> None:
    world = served(spread_object())
    assert world.workspace is not None
    old = world.children["StatefulSet/phi"]["metadata"]["uid"]
    adapter = {"source": {"name": "a", "image": "r.io/x/a:1"}}
    world.workspace["inference"] = {**world.workspace["inference"], "adapters": [adapter]}
    decided = world.reconcile()
    [deletion] = [a for a in decided.actions if isinstance(a, Delete)]
    assert (deletion.kind, deletion.uid, deletion.foreground) == ("StatefulSet", old, True)
    assert not [a for a in decided.actions if isinstance(a, ApplyChild)]
    assert said(world, "InferenceReady") == (
        "False",
        "StatefulSet/phi is being replaced: its Pods only work together, so all of them start anew",
    )
    again = world.reconcile()
    assert [a.child["kind"] for a in again.actions if isinstance(a, CreateChild)] == ["StatefulSet"]
    world.settle()
    assert "--adapters_dir" in server(world, "StatefulSet")["args"]
    assert said(world)[0] == "True"


def test_a_stateful_set_that_lost_its_annotation_is_not_replaced() -> None:
    world = served(spread_object())
    del world.children["StatefulSet/phi"]["metadata"]["annotations"]["workspace.kaito.io/fingerprint"]
    [action] = world.reconcile().actions
    assert isinstance(action, ApplyChild)


def test_a_node_of_ones_own_serves_vllm_as_well() -> None:
    node = node_object("mine", labels={"node.kubernetes.io/instance-type": "Standard_NC24ads_A100_v4"})
    decided = plan(snapshot(on_an_a100("vllm"), nodes=(node,)))
    [found] = [a.child for a in decided.actions if isinstance(a, CreateChild) and a.child["kind"] == "Deployment"]
    [container] = found["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith("-vllm")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
