from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.workspace.worlds import (
    CATALOG,
    START,
    SmallWorld,
    claim_object,
    conditions,
    node_object,
    snapshot,
    spread_object,
    tuning_object,
    workspace_object,
)

from kaito_hooks.api.catalog import Catalog
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.decision.actions import Adopt, ApplyChild, BuyClaim, CreateChild, Delete, LabelNode, Release
from kaito_hooks.workspace.decision.snapshot import Memory, Refusal, Tenant
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.purchases.claims import claim_name
from kaito_hooks.workspace.purchases.history import Losses, Purchases

SLOT_0 = claim_name(Workspace.read(workspace_object()), 0)
SLOT_1 = claim_name(Workspace.read(workspace_object()), 1)
ADOPTED = {"finalizers": ["workspace.finalizer.kaito.sh"]}
LATER = START + timedelta(hours=1)
ADAPTER = {"source": {"name": "a", "image": "r.io/x/a:1"}, "strength": "0.5"}
DISTRIBUTED = spread_object()
PHI = CATALOG.presets["phi-3-mini-4k-instruct"]


def resource(**changes: Any) -> dict[str, Any]:
    return workspace_object()["resource"] | changes


def bought(decided: Any) -> list[str]:
    return [a.claim["metadata"]["name"] for a in decided.actions if isinstance(a, BuyClaim)]


def step(reason: str, message: str, *, status: str = "False") -> list[dict[str, str]]:
    return [{"type": "MachineLaunched", "status": status, "reason": reason, "message": message}]


def test_a_claims_name_is_the_same_whenever_it_is_asked_for() -> None:
    ws = Workspace.read(workspace_object())
    names = {claim_name(ws, 0) for _ in range(3)} | {claim_name(ws, 1), claim_name(ws, 0, 1)}
    assert len(names) == 3
    assert all(len(name) == 11 and name.startswith("ws") for name in names)
    other = Workspace.read(workspace_object(metadata={"uid": "another"}))
    assert claim_name(other, 0) not in names


def test_a_new_workspace_gets_its_finalizer_before_its_claim() -> None:
    decided = plan(snapshot())
    assert isinstance(decided.actions[0], Adopt)
    assert bought(decided) == [SLOT_0]
    claim = next(a.claim for a in decided.actions if isinstance(a, BuyClaim))
    assert claim["kind"] == "Machine"
    assert claim["metadata"]["labels"] == {
        "apps": "phi-3",
        "kaito.sh/workspace": "phi",
        "kaito.sh/workspacenamespace": "models",
        "karpenter.sh/provisioner-name": "default",
    }
    assert claim["spec"]["resources"]["requests"] == {"storage": "50Gi"}
    found = conditions(decided)
    assert found["MachineReady"] == ("Unknown", "CreateMachinePending", "creating 1 machines")
    assert found["ResourceReady"][:2] == ("False", "workspaceResourceStatusPending")
    assert found["WorkspaceReady"][:2] == ("False", "workspacePending")
    assert found["WorkspaceSucceeded"] == found["WorkspaceReady"]
    assert "InferenceReady" not in found


def test_the_type_is_bought_as_the_catalog_spells_it() -> None:
    decided = plan(snapshot(workspace_object(resource=resource(instanceType="STANDARD_nc6s_V3"))))
    claim = next(a.claim for a in decided.actions if isinstance(a, BuyClaim))
    requirements = {r["key"]: r["values"] for r in claim["spec"]["requirements"]}
    assert requirements["node.kubernetes.io/instance-type"] == ["Standard_NC6s_v3"]


def test_a_node_claim_is_bought_where_that_is_the_api() -> None:
    decided = plan(snapshot(settings=Settings(node_api="NodeClaim")))
    claim = next(a.claim for a in decided.actions if isinstance(a, BuyClaim))
    assert (claim["apiVersion"], claim["kind"]) == ("karpenter.sh/v1", "NodeClaim")
    assert conditions(decided)["NodeClaimReady"] == ("Unknown", "CreateNodeClaimPending", "creating 1 nodeClaims")


def test_a_node_that_is_there_is_used_and_nothing_bought() -> None:
    decided = plan(snapshot(nodes=(node_object("mine"),)))
    assert bought(decided) == []
    assert LabelNode("mine") in decided.actions
    assert decided.status is not None
    assert decided.status["workerNodes"] == ["mine"]
    found = conditions(decided)
    assert found["MachineReady"][:2] == ("True", "installNodePluginsSuccess")
    assert found["ResourceReady"] == ("True", "workspaceResourceStatusSuccess", "workspace resource is ready")
    children = [
        f"{a.child['kind']}/{a.child['metadata']['name']}" for a in decided.actions if isinstance(a, CreateChild)
    ]
    assert children[-3:] == ["Service/phi", "NetworkPolicy/phi", "Deployment/phi"]


def test_only_the_missing_nodes_are_bought() -> None:
    decided = plan(snapshot(workspace_object(resource=resource(count=3)), nodes=(node_object("mine"),)))
    assert bought(decided) == [SLOT_0, SLOT_1]
    assert conditions(decided)["MachineReady"][2] == "creating 2 machines"


def test_a_claim_that_became_superfluous_keeps_nobody_waiting() -> None:
    brought = node_object("brought", labels={"accelerator": "nvidia"})
    surplus = claim_object(SLOT_0, conditions=step("AgentPoolCreating", "creating"))
    decided = plan(snapshot(claims=[surplus], nodes=(brought,)))
    assert conditions(decided)["ResourceReady"][0] == "True"
    assert not any(isinstance(a, Delete) for a in decided.actions)


def test_a_claim_on_its_way_is_not_bought_again() -> None:
    decided = plan(snapshot(claims=[claim_object(SLOT_0, conditions=step("AgentPoolCreating", "creating"))]))
    assert bought(decided) == []
    assert conditions(decided)["ResourceReady"] == (
        "False",
        "workspaceResourceStatusPending",
        f"node 0/1 ready; waiting for {SLOT_0}: AgentPoolCreating: creating",
    )


def test_a_slot_is_free_only_when_its_old_claim_is_gone() -> None:
    going = claim_object(SLOT_0, deletionTimestamp="2026-01-02T12:00:00Z")
    decided = plan(snapshot(claims=[going]))
    assert bought(decided) == []
    assert "is being deleted" in conditions(decided)["ResourceReady"][2]


@pytest.mark.parametrize(
    "reason", ["QuotaExceeded", "InsufficientCapacity", "InstanceTypeUnavailable", "InvalidRequest"]
)
@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_why_a_node_cannot_be_bought_is_shown(reason: str, status: str) -> None:
    decided = plan(snapshot(claims=[claim_object(SLOT_0, conditions=step(reason, "6 more cores", status=status))]))
    found = conditions(decided)
    assert found["ResourceReady"] == (
        "False",
        "workspaceResourceStatusFailed",
        f"node 0/1 ready; {SLOT_0}: {reason}: 6 more cores",
    )
    assert found["MachineReady"] == ("False", "machineFailedCreation", f"{SLOT_0}: {reason}: 6 more cores")
    assert found["WorkspaceReady"][1] == "workspaceFailed"
    assert any(n.type == "Warning" and "6 more cores" in n.message for n in decided.notes)


def test_the_words_of_early_provisioners_mean_no_capacity() -> None:
    message = "all requested instance types were unavailable during launch"
    decided = plan(snapshot(claims=[claim_object(SLOT_0, conditions=step("MachineLaunchFailed", message))]))
    assert conditions(decided)["ResourceReady"][1] == "workspaceResourceStatusFailed"


def test_a_claim_that_nobody_answers_is_reported_after_a_minute() -> None:
    claims = [claim_object(SLOT_0)]
    before = plan(snapshot(claims=claims, now=START + timedelta(seconds=59)))
    assert conditions(before)["ResourceReady"][1] == "workspaceResourceStatusPending"
    assert before.look_again == pytest.approx(1, abs=0.2)
    after = plan(snapshot(claims=claims, now=START + timedelta(seconds=60)))
    text = "no provisioner answers for Machines; is gpu-provisioner installed with nodeAPI=Machine?"
    assert conditions(after)["ResourceReady"][2] == f"node 0/1 ready; {SLOT_0}: {text}"


def test_a_claim_of_another_karpenters_class_is_missed_by_its_name() -> None:
    claim = claim_object(SLOT_0, kind="NodeClaim")
    claim["spec"] = {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"}}
    decided = plan(snapshot(claims=[claim], settings=Settings(node_api="NodeClaim"), now=START + timedelta(seconds=60)))
    text = "no provisioner answers for NodeClaims; is a Karpenter installed that serves EC2NodeClass.karpenter.k8s.aws?"
    assert conditions(decided)["NodeClaimReady"][2] == f"{SLOT_0}: {text}"


def test_a_pool_that_takes_as_long_as_aks_needs_is_waited_for() -> None:
    claims = [claim_object(SLOT_0, conditions=step("AgentPoolCreating", "creating"))]
    decided = plan(snapshot(claims=claims, now=START + timedelta(minutes=14)))
    assert conditions(decided)["MachineReady"][0] == "Unknown"
    assert decided.look_again is not None
    assert decided.look_again <= 61


def test_a_machine_that_takes_long_is_upstreams_time_out() -> None:
    claims = [claim_object(SLOT_0, conditions=step("AgentPoolCreating", "creating"))]
    decided = plan(snapshot(claims=claims, now=START + timedelta(minutes=15)))
    status, reason, message = conditions(decided)["MachineReady"]
    assert (status, reason) == ("False", "checkMachineStatusFailed")
    assert message.startswith(f"check machine status timed out. machine {SLOT_0} is not ready")
    assert conditions(decided)["ResourceReady"][1] == "workspaceResourceStatusPending"


def test_a_missing_crd_is_told_and_nothing_is_posted() -> None:
    decided = plan(snapshot(served_claim_kinds=frozenset()))
    assert bought(decided) == []
    assert "serves no machines.karpenter.sh" in conditions(decided)["ResourceReady"][2]


def test_without_a_node_api_the_user_is_told_which_node_to_bring() -> None:
    decided = plan(snapshot(settings=Settings(node_api="none")))
    assert bought(decided) == []
    assert conditions(decided)["ResourceReady"][2] == (
        "node 0/1 ready; 1 more Ready node with the labels apps=phi-3 needed; nothing is bought because nodeAPI is none"
    )
    assert "MachineReady" not in conditions(decided)


def test_gpus_must_have_come_before_anything_is_deployed() -> None:
    bare = node_object("mine", gpus=0, labels={"accelerator": "nvidia"})
    early = plan(snapshot(nodes=(bare,)))
    assert conditions(early)["ResourceReady"][:2] == ("False", "workspaceResourceStatusPending")
    assert not any(isinstance(a, CreateChild) and a.child["kind"] == "Deployment" for a in early.actions)
    early = plan(snapshot(nodes=(bare,), now=START + timedelta(minutes=9)))
    assert "timed out" not in conditions(early)["ResourceReady"][2]
    late = plan(snapshot(nodes=(bare,), now=START + timedelta(minutes=10)))
    text = "node plugin installation timed out. node mine is not ready"
    assert text in conditions(late)["ResourceReady"][2]
    assert conditions(late)["MachineReady"] == ("False", "checkMachineStatusFailed", text)


def test_the_plugin_gets_its_minute_after_the_node_was_labelled() -> None:
    bare = node_object("mine", gpus=0, labels={"accelerator": "nvidia"})
    memory = Memory(labelled={"mine": LATER})
    decided = plan(snapshot(nodes=(bare,), memory=memory, now=LATER + timedelta(seconds=59)))
    assert conditions(decided)["ResourceReady"][1] == "workspaceResourceStatusPending"


def test_an_accelerator_label_of_the_users_own_stays() -> None:
    selected = resource(labelSelector={"matchLabels": {"accelerator": "a100"}})
    own = node_object("mine", labels={"accelerator": "a100"})
    decided = plan(snapshot(workspace_object(resource=selected), nodes=(own,)))
    assert not any(isinstance(a, LabelNode) for a in decided.actions)
    assert conditions(decided)["ResourceReady"][0] == "True"
    world = SmallWorld(workspace_object(resource=selected))
    world.nodes["mine"] = own
    world.settle()
    assert world.bought == 0


def test_a_type_without_gpus_needs_none() -> None:
    labels = {"node.kubernetes.io/instance-type": "Standard_D4s_v5"}
    decided = plan(
        snapshot(
            workspace_object(resource=resource(instanceType="Standard_D4s_v5")),
            nodes=(node_object("cpu", gpus=0, labels=labels),),
        )
    )
    assert conditions(decided)["ResourceReady"][0] == "True"
    assert not any(isinstance(a, LabelNode) for a in decided.actions)


def template(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"template": {"spec": {"containers": list(containers), **spec}}}


CPU_SERVER = {"name": "c", "image": "nginx", "resources": {"limits": {"cpu": "1"}}}
GPU_SERVER = {"name": "c", "image": "nginx", "resources": {"limits": {"nvidia.com/gpu": 1}}}


@pytest.mark.parametrize(
    "inference",
    [
        template(CPU_SERVER),
        template({"name": "c", "image": "nginx"}),
        template({**CPU_SERVER, "resources": {"limits": {"nvidia.com/gpu": "0"}}}, initContainers=None),
    ],
)
def test_a_template_without_gpus_needs_none_and_labels_nothing(inference: dict[str, Any]) -> None:
    system = node_object("system", gpus=0, labels={"node.kubernetes.io/instance-type": "Standard_D4s_v5"})
    obj = workspace_object(resource=resource(preferredNodes=["system"]), inference=inference)
    decided = plan(snapshot(obj, nodes=(system,)))
    assert conditions(decided)["ResourceReady"][0] == "True"
    assert not any(isinstance(a, LabelNode) for a in decided.actions)


@pytest.mark.parametrize(
    "inference",
    [
        template(GPU_SERVER),
        template(CPU_SERVER, {**GPU_SERVER, "name": "d"}),
        template({"name": "c", "image": "own", "resources": {"requests": {"nvidia.com/gpu": "2"}}}),
        template(CPU_SERVER, initContainers=[{**GPU_SERVER, "name": "first"}]),
    ],
)
def test_a_template_with_gpus_waits_for_them(inference: dict[str, Any]) -> None:
    decided = plan(snapshot(workspace_object(inference=inference), nodes=(node_object("mine", gpus=0),)))
    assert [a.node for a in decided.actions if isinstance(a, LabelNode)] == ["mine"]
    assert conditions(decided)["ResourceReady"][0] == "False"


@pytest.mark.parametrize(
    ("instance_type", "machine_type"),
    [("Standard_NC6s_v3", "gpu"), ("Standard_Nsku", "gpu"), ("standard_nsku", "gpu"), ("Standard_D4s_v5", "cpu")],
)
def test_a_claim_says_whether_its_machine_has_gpus(instance_type: str, machine_type: str) -> None:
    decided = plan(
        snapshot(workspace_object(resource=resource(instanceType=instance_type), inference=template(CPU_SERVER)))
    )
    [claim] = [a.claim for a in decided.actions if isinstance(a, BuyClaim)]
    assert {"key": "kaito.sh/machine-type", "operator": "In", "values": [machine_type]} in claim["spec"]["requirements"]


def test_a_ready_claim_whose_node_is_lost_is_waited_for_not_doubled() -> None:
    ready = [{"type": "Ready", "status": "True"}]
    claim = claim_object(SLOT_0, conditions=ready, node="n")
    lost = node_object("n", ready=False, labels={"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "models"})
    decided = plan(snapshot(claims=[claim], nodes=(lost,)))
    assert bought(decided) == []
    assert f"{SLOT_0}: its node n is not Ready" in conditions(decided)["ResourceReady"][2]
    assert not any(isinstance(a, Delete) for a in decided.actions)


def test_claims_of_the_other_kind_count_too() -> None:
    claim = claim_object("ws123456789", kind="NodeClaim")
    assert bought(plan(snapshot(claims=[claim]))) == []


def test_buying_waits_for_the_end_of_the_back_off() -> None:
    memory = Memory(
        purchases=Purchases(losses={0: Losses(1, START + timedelta(seconds=30), f"{SLOT_0} is gone: no capacity")})
    )
    decided = plan(snapshot(memory=memory))
    assert bought(decided) == []
    assert conditions(decided)["ResourceReady"] == (
        "False",
        "workspaceResourceStatusFailed",
        f"node 0/1 ready; {SLOT_0} is gone: no capacity; the next try is at 2026-01-02T12:00:30Z",
    )
    assert decided.look_again == pytest.approx(30, abs=0.2)
    assert bought(plan(snapshot(memory=memory, now=START + timedelta(seconds=30)))) == [SLOT_0]


def test_a_claim_on_its_way_into_the_cache_is_not_posted_again() -> None:
    memory = Memory(purchases=Purchases().buy(SLOT_0, "uid", slot=0, now=START))
    decided = plan(snapshot(memory=memory))
    assert bought(decided) == []
    assert conditions(decided)["ResourceReady"][1] == "workspaceResourceStatusPending"
    assert decided.look_again == pytest.approx(5, abs=0.2)


def test_a_refused_purchase_is_shown_and_not_repeated_at_once() -> None:
    refusal = Refusal("Machine could not be written: forbidden", START + timedelta(seconds=30))
    decided = plan(snapshot(memory=Memory(refusals={f"Machine/{SLOT_0}": refusal})))
    assert bought(decided) == []
    assert conditions(decided)["MachineReady"] == ("False", "machineFailedCreation", refusal.message)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"inference": {"preset": {"name": "nope"}}},
            "Unsupported inference preset name nope. Supported presets: falcon-40b, ",
        ),
        ({"resource": None}, "Unsupported instance type"),
        ({"resource": resource(instanceType="Standard_NV6")}, "Insufficient total GPU memory"),
    ],
)
def test_a_workspace_that_breaks_a_rule_buys_nothing_and_says_which(changes: dict[str, Any], words: str) -> None:
    decided = plan(snapshot(workspace_object(**changes)))
    assert bought(decided) == []
    assert words in conditions(decided)["WorkspaceReady"][2]
    assert conditions(decided)["ResourceReady"][1] == "workspaceResourceStatusFailed"


def test_all_rules_that_a_workspace_breaks_are_told_at_once() -> None:
    wrong = {"preset": {"name": "nope"}, "adapters": [{**ADAPTER, "strength": "7"}]}
    message = conditions(plan(snapshot(workspace_object(inference=wrong))))["WorkspaceReady"][2]
    assert "Strength value for Adapter 'a' must be between 0 and 1: inference.adapters; " in message
    assert "Unsupported inference preset name nope" in message


def test_all_changes_that_are_not_possible_are_told_at_once() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    assert world.workspace is not None
    world.workspace["resource"] |= {"count": 2, "instanceType": "Standard_NC12s_v3"}
    message = conditions(world.reconcile())["WorkspaceReady"][2]
    assert message.count("delete the Workspace and apply it again") == 2
    assert all(field in message for field in ("resource.count", "resource.instanceType"))


def test_without_a_catalog_nothing_is_bought() -> None:
    decided = plan(snapshot(catalog=None))
    assert bought(decided) == []
    assert "Catalog" in conditions(decided)["ResourceReady"][2]


def test_what_runs_goes_on_when_its_preset_leaves_the_catalog() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    assert world.catalog is not None
    world.catalog = replace(world.catalog, presets={})
    decided = world.reconcile()
    assert decided.empty
    assert "Deployment/phi" in world.children


STRICTER: dict[str, Catalog] = {
    "its type is supported no longer": replace(CATALOG, instance_types={}, unchecked_instance_type_prefixes=()),
    "its preset needs more": replace(CATALOG, presets={PHI.name: replace(PHI, total_gpu_memory_gib=64)}),
    "its preset is private": replace(CATALOG, presets={PHI.name: replace(PHI, access_mode="private")}),
}


@pytest.mark.parametrize("stricter", STRICTER.values(), ids=STRICTER)
def test_a_workspace_that_lost_its_workload_with_its_node_gets_both_again_whatever_the_rules_of_today_say(
    stricter: Catalog,
) -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    assert world.workspace is not None
    world.catalog = stricter
    world.nodes, world.claims = {}, {}
    del world.children["Deployment/phi"]
    world.workspace["status"]["workerNodes"] = []
    world.settle()
    assert {c["status"] for c in world.workspace["status"]["conditions"]} == {"True"}
    assert "Deployment/phi" in world.children


def test_a_tuned_model_that_lost_its_server_gets_it_again_whatever_the_rules_of_today_say_about_training() -> None:
    world = SmallWorld(tuning_object())
    world.settle()
    assert world.workspace is not None
    world.catalog = replace(CATALOG, presets={PHI.name: replace(PHI, tuning={})})
    world.nodes, world.claims = {}, {}
    del world.children["Deployment/phi"]
    world.workspace["status"]["workerNodes"] = []
    world.settle()
    assert {c["status"] for c in world.workspace["status"]["conditions"]} == {"True"}
    assert (world.jobs_made, "Deployment/phi" in world.children) == (1, True)


def test_a_workspace_that_lost_its_workload_and_cannot_run_any_more_says_why() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    assert world.workspace is not None
    world.catalog = replace(CATALOG, presets={})
    del world.children["Deployment/phi"]
    world.reconcile()
    told = {c["type"]: c for c in world.workspace["status"]["conditions"]}
    assert told["WorkspaceReady"]["message"].startswith("Unsupported inference preset name phi-3-mini-4k-instruct")
    assert "Deployment/phi" not in world.children


def test_a_change_that_the_catalog_no_longer_allows_is_told_and_what_runs_is_left_alone() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    assert world.catalog is not None
    assert world.workspace is not None
    world.catalog = replace(world.catalog, presets={})
    before = world.children["Deployment/phi"]
    world.workspace["inference"] = {**world.workspace["inference"], "adapters": [ADAPTER]}
    world.workspace["metadata"]["generation"] = 2
    world.settle()
    assert world.children["Deployment/phi"] == before
    told = {c["type"]: c for c in world.workspace["status"]["conditions"]}
    for condition in ("InferenceReady", "WorkspaceReady"):
        assert (told[condition]["status"], told[condition]["observedGeneration"]) == ("False", 2)
        assert told[condition]["message"].startswith("Unsupported inference preset name phi-3-mini-4k-instruct")


def test_a_foreign_deployment_is_reported_and_never_touched() -> None:
    foreign = {"kind": "Deployment", "metadata": {"name": "phi", "uid": "x", "ownerReferences": []}, "spec": {}}
    decided = plan(snapshot(nodes=(node_object("mine"),), children={"Deployment/phi": foreign}))
    touched = [
        a for a in decided.actions if isinstance(a, (CreateChild, ApplyChild)) and a.child["kind"] == "Deployment"
    ]
    assert touched == []
    status, reason, message = conditions(decided)["InferenceReady"]
    assert (status, reason) == ("False", "WorkspaceInferenceStatusFailed")
    assert message.startswith("Deployment/phi in namespace models exists already and does not belong to this Workspace")


def test_a_drifted_child_is_repaired() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    world.children["Deployment/phi"]["spec"]["progressDeadlineSeconds"] = 7
    decided = world.reconcile()
    assert [type(a) for a in decided.actions] == [ApplyChild]
    assert world.children["Deployment/phi"]["spec"]["progressDeadlineSeconds"] == 1800


def test_a_deleted_child_comes_back() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    del world.children["Service/phi"]
    world.settle()
    assert "Service/phi" in world.children


def test_a_changed_adapter_list_changes_the_deployment_and_its_revision() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    assert world.workspace is not None
    assert world.children["Deployment/phi"]["metadata"]["annotations"]["workspace.kaito.io/revision"] == "1"
    world.workspace["inference"] = world.workspace["inference"] | {
        "adapters": [{"source": {"name": "a", "image": "r.io/x/a:1"}, "strength": "0.5"}]
    }
    world.settle()
    deployment = world.children["Deployment/phi"]
    assert deployment["metadata"]["annotations"]["workspace.kaito.io/revision"] == "2"
    steps = [c["name"] for c in deployment["spec"]["template"]["spec"]["initContainers"]]
    assert steps == ["weights", "adapter-a"]


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an adapter more": (
        workspace_object(),
        {"inference": {**workspace_object()["inference"], "adapters": [ADAPTER]}},
    ),
    "an adapter less": (
        workspace_object(inference={**workspace_object()["inference"], "adapters": [ADAPTER]}),
        {"inference": workspace_object()["inference"]},
    ),
    "another template": (
        workspace_object(inference={"template": {"spec": {"containers": [{"name": "c", "image": "r.io/x:1"}]}}}),
        {"inference": {"template": {"spec": {"containers": [{"name": "c", "image": "r.io/x:2"}]}}}},
    ),
    "an adapter more on a StatefulSet": (
        DISTRIBUTED,
        {"inference": {**DISTRIBUTED["inference"], "adapters": [ADAPTER]}},
    ),
}


@pytest.mark.parametrize(("obj", "change"), CHANGES.values(), ids=CHANGES)
def test_what_runs_does_not_count_as_the_changed_workspace(obj: dict[str, Any], change: dict[str, Any]) -> None:
    world = SmallWorld(obj)
    world.settle()
    assert world.workspace is not None
    world.workspace |= change
    world.workspace["metadata"]["generation"] = 2
    for _ in range(2):
        # The second look is one at a workload whose controller has not seen the change yet.
        world.reconcile()
        told = {c["type"]: c for c in world.workspace["status"]["conditions"]}
        assert told["ResourceReady"]["status"] == "True"
        for condition in ("InferenceReady", "WorkspaceReady", "WorkspaceSucceeded"):
            assert (told[condition]["status"], told[condition]["observedGeneration"]) == ("False", 2)
    world.settle()
    told = {c["type"]: (c["status"], c["observedGeneration"]) for c in world.workspace["status"]["conditions"]}
    assert set(told.values()) == {("True", 2)}


def test_preferred_nodes_change_the_revision_but_no_pod() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    assert world.workspace is not None
    before = world.children["Deployment/phi"]["spec"]
    world.workspace["resource"] = world.workspace["resource"] | {"preferredNodes": ["other"]}
    world.workspace["metadata"]["generation"] = 2
    decided = world.reconcile()
    told = {c["type"]: (c["status"], c["observedGeneration"]) for c in world.workspace["status"]["conditions"]}
    assert set(told.values()) == {("True", 2)}
    assert [n.reason for n in decided.notes] == []
    world.settle()
    deployment = world.children["Deployment/phi"]
    assert deployment["spec"] == before
    assert deployment["metadata"]["annotations"]["workspace.kaito.io/revision"] == "2"


def test_deletion_takes_workloads_first_then_claims_and_waits_for_them() -> None:
    obj = workspace_object(metadata={**ADOPTED, "deletionTimestamp": "2026-01-02T12:30:00Z"})
    owner = [{"uid": obj["metadata"]["uid"], "controller": True}]
    deployment = {"kind": "Deployment", "metadata": {"name": "phi", "uid": "d", "ownerReferences": owner}}
    decided = plan(snapshot(obj, claims=[claim_object(SLOT_0)], children={"Deployment/phi": deployment}))
    assert decided.actions == (
        Delete("Deployment", "models", "phi", "d"),
        Delete("Machine", "", SLOT_0, f"uid-{SLOT_0}"),
    )
    found = conditions(decided)
    assert found["WorkspaceDeleting"] == ("True", "workspaceDeleted", "workspace is being deleted")
    assert f"waiting for Machine {SLOT_0}" in found["WorkspaceReady"][2]


def test_the_finalizer_stays_until_a_fresh_list_shows_no_claim() -> None:
    obj = workspace_object(metadata={**ADOPTED, "deletionTimestamp": "2026-01-02T12:30:00Z"})
    assert plan(snapshot(obj)).actions == ()
    assert plan(snapshot(obj, claims_gone=True)).actions == (Release(),)


def test_deletion_never_touches_a_foreign_deployment() -> None:
    obj = workspace_object(metadata={**ADOPTED, "deletionTimestamp": "2026-01-02T12:30:00Z"})
    foreign = {"kind": "Deployment", "metadata": {"name": "phi", "uid": "d", "ownerReferences": []}}
    assert plan(snapshot(obj, claims_gone=True, children={"Deployment/phi": foreign})).actions == (Release(),)


def test_a_workspace_without_our_finalizer_is_left_to_go() -> None:
    obj = workspace_object(metadata={"deletionTimestamp": "2026-01-02T12:30:00Z", "finalizers": ["another"]})
    decided = plan(snapshot(obj, claims_gone=True))
    assert decided.empty


def test_a_template_gets_a_deployment_and_a_service() -> None:
    template = {
        "metadata": {"labels": {"mine": "yes"}},
        "spec": {
            "containers": [{"name": "c", "image": "nginx"}],
            "tolerations": [{"key": "own", "operator": "Exists"}],
            "affinity": {"podAffinity": {}},
        },
    }
    decided = plan(snapshot(workspace_object(inference={"template": template}), nodes=(node_object("mine"),)))
    children = {a.child["kind"]: a.child for a in decided.actions if isinstance(a, CreateChild)}
    assert set(children) == {"ControllerRevision", "Service", "Deployment"}
    pod = children["Deployment"]["spec"]["template"]
    assert pod["metadata"]["labels"] == {"mine": "yes", "kaito.sh/workspace": "phi"}
    assert pod["spec"]["containers"] == template["spec"]["containers"]
    assert [t["key"] for t in pod["spec"]["tolerations"]] == [
        *("own", "nvidia.com/gpu", "sku", "kubernetes.azure.com/scalesetpriority")
    ]
    assert set(pod["spec"]["affinity"]) == {"nodeAffinity"}


@pytest.mark.parametrize(
    ("containers", "port"),
    [
        ([{"name": "c"}], 5000),
        ([{"name": "c", "ports": None}], 5000),
        ([{"name": "c", "ports": [{"containerPort": 8080}, {"containerPort": 9090}]}], 8080),
        ([{"name": "c"}, {"name": "d", "ports": [{"containerPort": 8000, "protocol": "TCP"}]}], 8000),
        ([{"name": "c", "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 8080}]}], 8080),
        ([{"name": "c", "ports": "8080"}, {"name": "d", "ports": [{"containerPort": "http"}]}], 5000),
    ],
)
def test_the_service_of_a_template_leads_to_its_first_container_port(containers: list[Any], port: int) -> None:
    images = [{"image": "own", **container} for container in containers]
    obj = workspace_object(inference={"template": {"spec": {"containers": images}}})
    decided = plan(snapshot(obj, nodes=(node_object("mine"),)))
    [service] = [a.child for a in decided.actions if isinstance(a, CreateChild) and a.child["kind"] == "Service"]
    assert [(p["port"], p["targetPort"]) for p in service["spec"]["ports"] if p["name"] == "http"] == [(80, port)]


def test_a_distributed_preset_is_a_stateful_set_with_a_headless_service() -> None:
    marks = {"node.kubernetes.io/instance-type": "Standard_NC24ads_A100_v4"}
    decided = plan(snapshot(DISTRIBUTED, nodes=tuple(node_object(name, labels=marks) for name in ("one", "two"))))
    children = {
        f"{a.child['kind']}/{a.child['metadata']['name']}": a.child
        for a in decided.actions
        if isinstance(a, CreateChild)
    }
    assert {"Service/phi", "Service/phi-headless", "StatefulSet/phi"} <= set(children)
    assert "Deployment/phi" not in children
    assert children["Service/phi"]["spec"]["selector"] == {
        "kaito.sh/workspace": "phi",
        "statefulset.kubernetes.io/pod-name": "phi-0",
    }
    assert children["StatefulSet/phi"]["spec"]["podManagementPolicy"] == "Parallel"
    headless = children["Service/phi-headless"]["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)


def test_the_load_balancer_annotation_counts_in_exact_case_only() -> None:
    for value, kind in (("True", "LoadBalancer"), ("true", "ClusterIP")):
        obj = workspace_object(metadata={"annotations": {"kaito.sh/enablelb": value}})
        decided = plan(snapshot(obj, nodes=(node_object("mine"),)))
        service = next(a.child for a in decided.actions if isinstance(a, CreateChild) and a.child["kind"] == "Service")
        assert service["spec"]["type"] == kind


def test_a_change_that_admission_would_refuse_is_reported_and_leaves_everything_alone() -> None:
    world = SmallWorld(workspace_object())
    world.settle()
    assert world.workspace is not None
    world.workspace["resource"]["instanceType"] = "Standard_NC12s_v3"
    decided = world.reconcile()
    assert decided.actions == ()
    assert conditions(decided)["WorkspaceReady"][2] == (
        "field is immutable; delete the Workspace and apply it again to change it: resource.instanceType"
    )
    assert world.reconcile().empty
    world.workspace["resource"]["instanceType"] = "Standard_NC6s_v3"
    world.settle()
    assert {c["status"] for c in world.workspace["status"]["conditions"]} == {"True"}


@pytest.mark.parametrize(
    ("marks", "phase", "goes"),
    [({}, "Running", True), ({}, "Failed", False), ({"deletionTimestamp": "x"}, "Running", False)],
)
def test_only_a_pod_that_stays_on_another_workspaces_node_takes_the_workload_away(
    marks: dict[str, Any], phase: str, goes: bool
) -> None:
    nobody_buys = Settings(node_api="none")
    world = SmallWorld(workspace_object(resource=workspace_object()["resource"] | {"count": 2}), settings=nobody_buys)
    world.nodes = {name: node_object(name) for name in ("n1", "n2")}
    world.settle()

    def pod(name: str, phase: str, **metadata: Any) -> dict[str, Any]:
        named = {"name": f"phi-{name}", "uid": name, **metadata}
        return {"metadata": named, "spec": {"nodeName": name}, "status": {"phase": phase}}

    found = replace(
        world.snapshot(),
        tenants={"n1": (Tenant("2020-01-01T00:00:00Z", "models", "older"),)},
        pods=(pod("n1", phase, **marks), pod("n2", "Running")),
    )
    deleted = [action.kind for action in plan(found).actions if isinstance(action, Delete)]
    assert deleted == (["Deployment"] if goes else [])
