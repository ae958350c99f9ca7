"""What an upgrade of the chart or another Catalog does to Workspaces that are served: nothing, before a roll."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
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

from kaito_hooks.api.version import VERSION
from kaito_hooks.workspace.configuration.settings import Images, Proxy, Registries, Serving, Settings
from kaito_hooks.workspace.decision.actions import ApplyChild, CreateChild, Delete
from kaito_hooks.workspace.decision.snapshot import Memory, Refusal
from kaito_hooks.workspace.plan import plan

Obj = dict[str, Any]
ROLL = "kaito.sh/roll"
TEMPLATE = {"template": {"spec": {"containers": [{"name": "c", "image": "nginx"}]}}}
ADAPTER = {"source": {"name": "a", "image": "r.io/x/a:1"}, "strength": "0.5"}
PHI = CATALOG.presets["phi-3-mini-4k-instruct"]


def served(obj: Obj, *, settings: Settings | None = None) -> SmallWorld:
    world = SmallWorld(obj, settings=settings)
    world.settle()
    assert told(world, "WorkspaceReady")["status"] == "True"
    return world


def told(world: SmallWorld, condition: str) -> Obj:
    assert world.workspace is not None
    return next(c for c in world.workspace["status"]["conditions"] if c["type"] == condition)


def annotate(world: SmallWorld, **annotations: str | None) -> None:
    assert world.workspace is not None
    found = world.workspace["metadata"].setdefault("annotations", {})
    for name, value in annotations.items():
        found[f"kaito.sh/{name}"] = value
        if value is None:
            del found[f"kaito.sh/{name}"]


def set_up(world: SmallWorld, **settings: Any) -> None:
    world.settings = replace(world.settings, **settings)


def set_preset(world: SmallWorld, **fields: Any) -> None:
    preset = replace(PHI, **fields)
    world.catalog = replace(CATALOG, presets={**CATALOG.presets, preset.name: preset})


TAG = Images(hooks="r.io/hooks:2", serving={"cu126": "r.io/serving:2", "vllm": "r.io/serving:2-vllm"})
UPGRADES: dict[str, tuple[Callable[[SmallWorld], None], str]] = {
    "image tags": (
        lambda w: set_up(w, images=TAG),
        f"the image of init container weights is ghcr.io/kaito-python/kaito-hooks:{VERSION} and would be r.io/hooks:2",
    ),
    "one more registry without TLS": (
        lambda w: set_up(w, registries=Registries(plain_http=("10.0.0.1:5000",))),
        "KAITO_REGISTRIES of init container weights",
    ),
    "an environment variable more": (
        lambda w: set_up(w, serving=Serving(extra_env=({"name": "SEEN", "value": "hidden"},))),
        "SEEN of container phi",
    ),
    "an argument more": (lambda w: set_up(w, serving=Serving(extra_args=("--x",))), "args of container phi"),
    "a proxy": (lambda w: set_up(w, proxy=Proxy(https="http://p:1")), "HTTPS_PROXY of init container weights"),
    "a pull secret": (lambda w: set_up(w, images=Images(pull_secrets=("s",))), "imagePullSecrets"),
    "another model image": (
        lambda w: set_preset(w, weights=replace(PHI.weights, tag="9")),  # type: ignore[type-var]
        "args of init container weights",
    ),
    "a longer start": (lambda w: set_preset(w, readiness_timeout=7200.0), "startupProbe of container phi"),
    "a preset that spans nodes": (
        lambda w: set_preset(w, distributed=True),
        "a StatefulSet would take the place of the Deployment",
    ),
}


@pytest.mark.parametrize(("upgrade", "words"), UPGRADES.values(), ids=UPGRADES)
def test_an_upgrade_leaves_what_runs_alone_and_says_what_differs(
    upgrade: Callable[[SmallWorld], None], words: str
) -> None:
    world = served(workspace_object())
    before = copy.deepcopy({n: c for n, c in world.children.items() if not n.startswith("ControllerRevision")})
    upgrade(world)
    decided = world.reconcile()
    # One look, one write of the status, nothing else.
    assert decided.actions == ()
    assert world.reconcile().empty
    assert {n: world.children[n] for n in before} == before
    found = told(world, "WorkloadUpToDate")
    assert (found["status"], found["reason"]) == ("False", "PlatformChanged")
    assert words in found["message"]
    assert "annotate the Workspace with another value of kaito.sh/roll" in found["message"]
    assert "hidden" not in found["message"]
    assert told(world, "WorkspaceReady")["status"] == "True"
    assert [note.type for note in decided.notes] == ["Normal"]


@pytest.mark.parametrize(
    "obj",
    [workspace_object(inference=TEMPLATE), spread_object(), unchecked(tuning_object())],
    ids=["template", "ranks", "tuned"],
)
def test_every_kind_of_server_is_left_alone(obj: Obj) -> None:
    world = served(obj)
    before = copy.deepcopy(world.children)
    set_up(world, images=TAG, registries=Registries(plain_http=("10.0.0.1:5000",)))
    world.settle()
    assert (world.children, world.deleted) == (before, [])
    assert told(world, "WorkspaceReady")["status"] == "True"


def test_a_roll_brings_the_settings_of_today_once() -> None:
    world = served(workspace_object())
    set_up(world, images=TAG)
    world.settle()
    annotate(world, roll="1")
    decided = world.reconcile()
    assert [type(action) for action in decided.actions] == [ApplyChild]
    assert told(world, "WorkloadUpToDate")["status"] == "True"
    assert told(world, "InferenceReady")["message"] == "Deployment/phi is being brought up to date"
    world.settle()
    pod = world.children["Deployment/phi"]["spec"]["template"]["spec"]
    assert [c["image"] for c in (*pod["initContainers"], *pod["containers"])] == ["r.io/hooks:2", "r.io/serving:2"]
    assert told(world, "WorkspaceReady")["status"] == "True"
    # Whoever asked once is not asked for again, also when the annotation goes.
    for value in ("1", None, "1"):
        annotate(world, roll=value)
        set_up(world, images=replace(TAG, hooks=f"r.io/hooks:{value}-3"))
        assert [a for a in world.reconcile().actions if isinstance(a, ApplyChild)] == []
        assert told(world, "WorkloadUpToDate")["status"] == "False"


def test_ranks_are_rolled_together() -> None:
    world = served(spread_object())
    set_up(world, images=TAG)
    world.settle()
    annotate(world, roll="1")
    [deletion] = [a for a in world.reconcile().actions if isinstance(a, Delete)]
    assert (deletion.kind, deletion.foreground) == ("StatefulSet", True)
    # A controller that dies here finds no workload, which is made as today's settings say.
    world.memory = type(world.memory)()
    world.settle()
    [container] = world.children["StatefulSet/phi"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "r.io/serving:2-vllm"
    assert told(world, "WorkloadUpToDate")["status"] == "True"


def test_what_the_user_changes_rolls_at_once_with_the_settings_of_today() -> None:
    world = served(workspace_object())
    assert world.workspace is not None
    set_up(world, images=TAG)
    world.settle()
    world.workspace["inference"] = {**world.workspace["inference"], "adapters": [ADAPTER]}
    world.settle()
    steps = world.children["Deployment/phi"]["spec"]["template"]["spec"]["initContainers"]
    assert [(s["name"], s["image"]) for s in steps] == [("weights", "r.io/hooks:2"), ("adapter-a", "r.io/hooks:2")]
    assert told(world, "WorkloadUpToDate")["status"] == "True"


def test_preferred_nodes_and_the_load_balancer_roll_nothing_after_an_upgrade() -> None:
    world = served(workspace_object())
    assert world.workspace is not None
    set_up(world, images=TAG)
    world.settle()
    before = copy.deepcopy(world.children["Deployment/phi"])
    world.workspace["resource"] = {**world.workspace["resource"], "preferredNodes": ["other"]}
    annotate(world, enablelb="True")
    world.settle()
    after = world.children["Deployment/phi"]
    assert (after["spec"], after["metadata"]["generation"]) == (before["spec"], before["metadata"]["generation"])
    assert after["metadata"]["annotations"]["workspace.kaito.io/revision"] == "2"
    assert world.children["Service/phi"]["spec"]["type"] == "LoadBalancer"
    assert told(world, "WorkloadUpToDate")["status"] == "False"


def test_a_workload_that_does_not_exist_gets_the_settings_of_today() -> None:
    world = SmallWorld(workspace_object())
    world.reconcile()
    set_up(world, images=TAG)
    world.settle()
    [step] = world.children["Deployment/phi"]["spec"]["template"]["spec"]["initContainers"]
    assert step["image"] == "r.io/hooks:2"
    del world.children["Deployment/phi"]
    set_up(world, images=replace(TAG, hooks="r.io/hooks:3"))
    world.settle()
    [step] = world.children["Deployment/phi"]["spec"]["template"]["spec"]["initContainers"]
    assert step["image"] == "r.io/hooks:3"
    assert told(world, "WorkloadUpToDate")["status"] == "True"


OF_THE_CONTROLLER_BEFORE = {"workspace.kaito.io/revision", "workspace.kaito.io/fingerprint", "kaito.sh/runtime"}


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
@pytest.mark.parametrize("upgraded", [False, True], ids=["same settings", "other settings"])
def test_a_workload_of_the_controller_before_is_adopted_without_a_restart(kind: str, upgraded: bool) -> None:
    world = served(spread_object() if kind == "StatefulSet" else workspace_object())
    live = world.children[f"{kind}/phi"]
    assert set(live["metadata"]["annotations"]) == OF_THE_CONTROLLER_BEFORE
    del live["metadata"]["labels"]["workspace.kaito.io/workload-hash"]
    if upgraded:
        # As the API server stores it: with defaults of its own.
        live["spec"]["template"]["spec"] |= {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always"}
        set_up(world, images=TAG)
    before = copy.deepcopy(live)
    # A roll of the controller's own that was over before the controller of then came back.
    assert world.workspace is not None
    world.workspace["metadata"]["annotations"]["workspace.kaito.io/roll"] = "2026-01-02T11:00:00Z"
    world.settle()
    after = world.children[f"{kind}/phi"]
    assert (after["spec"], after["metadata"]["generation"]) == (before["spec"], before["metadata"]["generation"])
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert told(world, "WorkloadUpToDate")["status"] == ("False" if upgraded else "True")
    assert after["metadata"]["annotations"]["workspace.kaito.io/roll"] == "2026-01-02T11:00:00Z"
    set_up(world, images=replace(TAG, hooks="r.io/hooks:3"))
    world.settle()
    assert world.children[f"{kind}/phi"]["spec"] == before["spec"]
    annotate(world, roll="new")
    world.settle()
    [step] = world.children[f"{kind}/phi"]["spec"]["template"]["spec"]["initContainers"]
    assert step["image"] == "r.io/hooks:3"


def test_a_roll_that_is_asked_for_before_the_upgraded_controller_has_looked_is_not_lost() -> None:
    world = served(workspace_object())
    del world.children["Deployment/phi"]["metadata"]["labels"]["workspace.kaito.io/workload-hash"]
    set_up(world, images=TAG)
    annotate(world, roll="1")
    world.settle()
    [step] = world.children["Deployment/phi"]["spec"]["template"]["spec"]["initContainers"]
    assert step["image"] == "r.io/hooks:2"
    assert told(world, "WorkloadUpToDate")["status"] == "True"


def test_an_automatic_roll_is_not_lost_on_a_cache_that_has_not_seen_the_adoption() -> None:
    world = served(workspace_object())
    assert world.workspace is not None
    del world.children["Deployment/phi"]["metadata"]["labels"]["workspace.kaito.io/workload-hash"]
    set_up(world, images=TAG)
    as_of_before = copy.deepcopy(world.children)
    world.reconcile()
    drifted = told(world, "WorkloadUpToDate")
    assert drifted["reason"] == "PlatformChanged"
    world.children = as_of_before
    world.workspace["metadata"]["annotations"]["workspace.kaito.io/roll"] = drifted["lastTransitionTime"]
    world.settle()
    [step] = world.children["Deployment/phi"]["spec"]["template"]["spec"]["initContainers"]
    assert step["image"] == "r.io/hooks:2"


def test_a_workspace_that_changed_while_the_controllers_changed_is_rolled() -> None:
    world = served(workspace_object())
    assert world.workspace is not None
    del world.children["Deployment/phi"]["metadata"]["labels"]["workspace.kaito.io/workload-hash"]
    world.workspace["inference"] = {**world.workspace["inference"], "adapters": [ADAPTER]}
    set_up(world, images=TAG)
    world.settle()
    assert len(world.children["Deployment/phi"]["spec"]["template"]["spec"]["initContainers"]) == 2


def test_an_engine_that_all_get_later_is_no_rule_for_those_that_run_another() -> None:
    """A V100 cannot run vLLM; its Workspace never asked for it."""
    world = served(workspace_object())
    before = copy.deepcopy(world.children["Deployment/phi"])
    world.catalog = replace(CATALOG, default_engine="vllm")
    world.settle()
    assert world.children["Deployment/phi"] == before
    assert told(world, "WorkspaceReady")["status"] == "True"
    found = told(world, "WorkloadUpToDate")
    assert (found["status"], found["reason"]) == ("False", "CannotRoll")
    assert "the compute capability of its V100 is below 7.5" in found["message"]
    del world.children["Service/phi"]
    world.settle()
    assert "Service/phi" in world.children


def test_a_pod_that_cannot_start_with_the_old_image_says_how_to_roll() -> None:
    world = served(workspace_object())
    assert world.workspace is not None
    set_up(world, images=TAG)
    world.settle()
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x": gone'}}
    live = world.children["Deployment/phi"]
    live["status"] |= {"readyReplicas": 0}
    pod = {
        "metadata": {"name": "phi-1", "uid": "p", "ownerReferences": [{"kind": "ReplicaSet", "uid": "r"}]},
        "status": {"initContainerStatuses": [{"name": "weights", "image": "x", "state": waiting}]},
    }
    for cause in (waiting, {"waiting": {"reason": "ImagePullBackOff"}}):
        pod["status"]["initContainerStatuses"][0]["state"] = cause  # type: ignore[index]
        world.pods = [copy.deepcopy(pod)]
        world.reconcile()
        assert told(world, "InferenceReady")["message"] == (
            "the workload is not up to date (WorkloadUpToDate tells how to roll it): "
            "Pod phi-1: init container weights: image x cannot be pulled: gone"
        )


def test_without_a_workload_nobody_says_that_it_is_up_to_date() -> None:
    world = served(unchecked(tuning_object()))
    assert world.workspace is not None
    assert told(world, "WorkloadUpToDate")["status"] == "True"
    world.workspace["tuning"] = {**world.workspace["tuning"], "output": {"image": "r.io/t/b:2", "imagePushSecret": "p"}}
    for _ in range(3):
        world.reconcile()
        world.provision()
    assert "Job/phi" in world.children
    assert (told(world, "WorkloadUpToDate")["status"], told(world, "WorkloadUpToDate")["reason"]) == (
        "Unknown",
        "NoWorkload",
    )


def test_only_the_workload_s_own_refusal_says_that_it_is_not_up_to_date() -> None:
    world = served(workspace_object())
    for name, expected in (("Service/phi", ("True", "UpToDate")), ("Deployment/phi", ("False", "UpdateRefused"))):
        refusal = Refusal(f"{name} could not be written: quota", world.now + timedelta(seconds=30))
        world.memory = Memory(refusals={name: refusal})
        world.reconcile()
        assert (told(world, "WorkloadUpToDate")["status"], told(world, "WorkloadUpToDate")["reason"]) == expected
        assert told(world, "InferenceReady")["message"] == refusal.message


def test_somebody_else_s_deployment_is_not_called_up_to_date() -> None:
    foreign = {"kind": "Deployment", "metadata": {"name": "phi", "uid": "x", "ownerReferences": []}, "spec": {}}
    found = conditions(plan(snapshot(nodes=(node_object("mine"),), children={"Deployment/phi": foreign})))
    assert found["InferenceReady"][0] == "False"
    assert "WorkloadUpToDate" not in found


def test_a_running_job_is_not_touched_by_an_upgrade() -> None:
    world = SmallWorld(unchecked(tuning_object()))
    for _ in range(4):
        world.reconcile()
        world.provision()
    before = copy.deepcopy(world.children["Job/phi"])
    set_up(world, images=TAG)
    annotate(world, roll="1")
    for _ in range(3):
        decided = world.reconcile()
        assert not [a for a in decided.actions if isinstance(a, (CreateChild, Delete))]
    assert world.children["Job/phi"] == before


def test_the_first_good_news_of_a_workload_are_no_event_of_their_own() -> None:
    world = SmallWorld(workspace_object())
    reasons = []
    for _ in range(8):
        decided = world.reconcile()
        reasons += [note.reason for note in (*decided.deeds, *decided.notes)]
        world.provision()
        world.run_workloads()
    assert told(world, "WorkloadUpToDate")["status"] == "True"
    assert "UpToDate" not in reasons


def test_a_toleration_that_is_no_taint_is_told_of_a_workspace_that_runs() -> None:
    world = served(workspace_object())
    annotate(world, tolerations="team=a:Noschedule")
    world.reconcile()
    assert told(world, "InferenceReady")["status"] == "False"
    assert "'team=a:Noschedule', which is no taint" in told(world, "InferenceReady")["message"]
    annotate(world, tolerations=None)
    world.settle()
    assert told(world, "InferenceReady")["status"] == "True"
