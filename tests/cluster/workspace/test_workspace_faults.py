"""What goes wrong around a Workspace, on a real API server."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.workspace.conftest import Controllers, Told, conditions, submit, until, until_quiet, workspace
from tests.cluster.workspace.stand_ins.following import Obj
from tests.cluster.workspace.stand_ins.kubelet import Kubelet, failing_weights, running
from tests.cluster.workspace.stand_ins.provisioner import Provisioner, add_node, set_gpus
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import Client, Informer, NotFound, Resource, SystemClock, now_rfc3339
from kaito_hooks.workspace.resources import (
    DEPLOYMENT,
    EVENT,
    MACHINE,
    NODE,
    NODE_CLAIM,
    POD,
    SERVICE,
    WORKSPACE,
)

LEASE = Resource("coordination.k8s.io", "v1", "leases", "Lease", True)
GPU_TYPE = "Standard_NC6s_v3"


class Bought:
    """Every Machine that was ever seen, by Workspace."""

    def __init__(self, client: Client) -> None:
        self._seen: dict[str, str] = {}
        self._lock = threading.Lock()
        self.informer = Informer(client, MACHINE)
        self.informer.subscribe(self._note)
        self.informer.start()

    def _note(self, old: Obj | None, new: Obj | None) -> None:
        if new is not None:
            marks = new["metadata"]["labels"]
            with self._lock:
                self._seen[new["metadata"]["uid"]] = (
                    f"{marks['kaito.sh/workspacenamespace']}/{marks['kaito.sh/workspace']}"
                )

    def of(self, obj: Obj) -> int:
        with self._lock:
            return list(self._seen.values()).count(f"{obj['metadata']['namespace']}/{obj['metadata']['name']}")


@pytest.fixture
def bought(admin: Client, installed: dict[str, Obj]) -> Iterator[Bought]:
    found = Bought(admin)
    yield found
    found.informer.stop()


def claims_of(admin: Client, obj: Obj, resource: Any = MACHINE) -> list[Obj]:
    metadata = obj["metadata"]
    selector = f"kaito.sh/workspace={metadata['name']},kaito.sh/workspacenamespace={metadata['namespace']}"
    return admin.list(resource, label_selector=selector).items


def with_provisioner(name: str, namespace: str, mode: str, **changes: Any) -> Obj:
    found = workspace(name, namespace, **changes)
    found["resource"]["labelSelector"]["matchLabels"]["test/provisioner"] = mode
    return found


def delete(admin: Client, obj: Obj) -> None:
    admin.delete(WORKSPACE, obj["metadata"]["name"], namespace=obj["metadata"]["namespace"])


def gone(admin: Client, obj: Obj) -> bool:
    try:
        admin.get(WORKSPACE, obj["metadata"]["name"], namespace=obj["metadata"]["namespace"])
    except NotFound:
        return True
    return False


def test_a_quota_error_is_told_where_the_user_looks(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner
) -> None:
    ws = submit(admin, with_provisioner("poor", place, "quota"))
    found = until(admin, ws, "ResourceReady", status="False", words="standardNCSv3Family")
    assert found["reason"] == "workspaceResourceStatusFailed"
    assert conditions(admin, ws)["MachineReady"]["reason"] == "machineFailedCreation"
    until(admin, ws, "WorkspaceReady", status="False", words="QuotaExceeded")

    def warned() -> bool:
        selector = f"involvedObject.uid={ws['metadata']['uid']},type=Warning"
        return any("QuotaExceeded" in e["message"] for e in admin.list(EVENT, field_selector=selector).items)

    eventually(warned)
    delete(admin, ws)
    eventually(lambda: gone(admin, ws))


def test_a_claim_that_nobody_answers_is_told(admin: Client, place: str, controller: Controllers) -> None:
    ws = submit(admin, with_provisioner("lonely", place, "deaf"))
    until(admin, ws, "ResourceReady", status="False", words="no provisioner answers for Machines")
    delete(admin, ws)
    eventually(lambda: gone(admin, ws))
    assert claims_of(admin, ws) == []


def test_gpus_that_never_come_are_told_and_gpus_that_come_late_are_used(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, with_provisioner("blind", place, "no-gpu"))
    until(admin, ws, "ResourceReady", status="False", words="node plugin installation timed out. node ")
    [claim] = claims_of(admin, ws)
    set_gpus(admin, claim["status"]["nodeName"], 1)
    until(admin, ws, "WorkspaceReady")


def test_weights_that_cannot_be_used_are_told_in_their_steps_words(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    sentence = "the weights hold pytorch_model.bin, a pickle; only safetensors are loaded"
    kubelet.report(place, failing_weights(sentence))
    ws = submit(admin, workspace("pickled", place))
    found = until(admin, ws, "InferenceReady", status="False", words=sentence)
    assert found["reason"] == "WorkspaceInferenceStatusFailed"
    assert "init container weights" in conditions(admin, ws)["WorkspaceReady"]["message"]


def test_a_missing_pull_secret_is_told_from_the_kubelets_event(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    kubelet.report(place, lambda pod: {"phase": "Pending"})
    preset = {
        "name": "llama-2-7b",
        "accessMode": "private",
        "presetOptions": {"image": "r.io/x/llama:1", "imagePullSecrets": ["absent"]},
    }
    ws = submit(admin, workspace("private", place, inference={"preset": preset}))
    [pod] = eventually(lambda: admin.list(POD, namespace=place).items)
    message = 'MountVolume.SetUp failed for volume "registry" : secret "absent" not found'
    warn(admin, pod, "FailedMount", message)
    until(admin, ws, "InferenceReady", status="False", words='secret "absent" not found')
    words = f"create the Secret absent in the namespace {place}, the Pod then goes on by itself"
    until(admin, ws, "WorkspaceReady", status="False", words=words)
    kubelet.report(place, running)
    until(admin, ws, "WorkspaceReady")


def test_a_missing_secret_for_the_server_s_own_image_is_told_with_the_failed_pull(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "pull access denied"}}
    image = {"image": "r.io/hooks:1", "imageID": "", "ready": False, "restartCount": 0}
    statuses = [{"name": "weights", **image, "state": waiting}]
    kubelet.report(place, lambda pod: {"phase": "Pending", "initContainerStatuses": statuses})
    ws = submit(admin, workspace("unpulled", place))
    [pod] = eventually(lambda: admin.list(POD, namespace=place).items)
    until(admin, ws, "InferenceReady", status="False", words="image r.io/hooks:1 cannot be pulled: pull access denied")
    message = "Unable to retrieve some image pull secrets (own); attempting to pull the image may not succeed."
    warn(admin, pod, "FailedToRetrieveImagePullSecret", message)
    words = f"pull access denied; create the Secret own in the namespace {place}, the Pod then goes on by itself"
    until(admin, ws, "WorkspaceReady", status="False", words=words)
    kubelet.report(place, running)
    until(admin, ws, "WorkspaceReady")


def warn(admin: Client, pod: Obj, reason: str, message: str) -> None:
    """As the kubelet does, of that Pod."""
    named = {field: pod["metadata"][field] for field in ("namespace", "name", "uid")}
    event = {
        "metadata": {"name": reason.lower(), "namespace": named["namespace"]},
        "involvedObject": {"kind": "Pod", **named},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": now_rfc3339(SystemClock()),
    }
    admin.create(EVENT, event)


def test_a_foreign_deployment_of_the_same_name_is_told_and_left_alone(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    labels = {"app": "mine"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}
    mine = admin.create(DEPLOYMENT, {"metadata": {"name": "taken", "namespace": place}, "spec": spec})
    ws = submit(admin, workspace("taken", place))
    words = f"Deployment/taken in namespace {place} exists already and does not belong to this Workspace"
    until(admin, ws, "InferenceReady", status="False", words=words)
    until_quiet(admin, ws, seconds=3)
    delete(admin, ws)
    eventually(lambda: gone(admin, ws))
    assert admin.get(DEPLOYMENT, "taken", namespace=place)["metadata"]["uid"] == mine["metadata"]["uid"]


def test_adapters_come_and_go_with_the_workspace(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, workspace("adapted", place))
    until(admin, ws, "WorkspaceReady")

    def put(*names: str) -> None:
        adapters = [{"source": {"name": n, "image": f"r.io/x/{n}:1"}, "strength": "0.5"} for n in names]
        admin.patch(WORKSPACE, "adapted", {"inference": {"adapters": adapters}}, namespace=place)

    def steps() -> list[str]:
        spec = admin.get(DEPLOYMENT, "adapted", namespace=place)["spec"]["template"]["spec"]
        return [c["name"] for c in spec["initContainers"]]

    def revision() -> str:
        return str(
            admin.get(DEPLOYMENT, "adapted", namespace=place)["metadata"]["annotations"]["workspace.kaito.io/revision"]
        )

    put("one", "two")
    eventually(lambda: steps() == ["weights", "adapter-one", "adapter-two"])
    assert revision() == "2"
    put("two")
    eventually(lambda: steps() == ["weights", "adapter-two"])
    put()
    eventually(lambda: steps() == ["weights"])
    eventually(lambda: revision() == "1")
    volumes = admin.get(DEPLOYMENT, "adapted", namespace=place)["spec"]["template"]["spec"]["volumes"]
    assert "adapter-volume" not in [v["name"] for v in volumes]
    until(admin, ws, "WorkspaceReady")


def test_drift_is_repaired_and_lost_children_come_back(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    ws = submit(admin, workspace("drifting", place))
    until(admin, ws, "WorkspaceReady")

    def surge() -> int:
        strategy = admin.get(DEPLOYMENT, "drifting", namespace=place)["spec"]["strategy"]
        return int(strategy["rollingUpdate"]["maxSurge"])

    admin.patch(DEPLOYMENT, "drifting", {"spec": {"strategy": {"rollingUpdate": {"maxSurge": 1}}}}, namespace=place)
    eventually(lambda: surge() == 0)
    admin.patch(SERVICE, "drifting", {"spec": {"selector": {"kaito.sh/workspace": "other"}}}, namespace=place)
    wanted = {"kaito.sh/workspace": "drifting"}
    eventually(lambda: admin.get(SERVICE, "drifting", namespace=place)["spec"]["selector"] == wanted)
    admin.patch(DEPLOYMENT, "drifting", {"metadata": {"labels": {"kaito.sh/workspace": None}}}, namespace=place)
    eventually(
        lambda: "kaito.sh/workspace" in admin.get(DEPLOYMENT, "drifting", namespace=place)["metadata"].get("labels", {})
    )
    before = admin.get(DEPLOYMENT, "drifting", namespace=place)["metadata"]["uid"]
    admin.delete(DEPLOYMENT, "drifting", namespace=place)

    def back() -> bool:
        try:
            return bool(admin.get(DEPLOYMENT, "drifting", namespace=place)["metadata"]["uid"] != before)
        except NotFound:
            return False

    eventually(back)
    until(admin, ws, "WorkspaceReady")


def test_a_node_of_the_users_own_is_used_and_stays(
    admin: Client, place: str, controllers: Controllers, installed: dict[str, Obj], kubelet: Kubelet
) -> None:
    controllers.start(values={"nodeAPI": "none"})
    ws = submit(admin, workspace("own", place))
    until(admin, ws, "ResourceReady", status="False", words="nothing is bought because nodeAPI is none")
    add_node(admin, f"own-{place}", {"apps": place}, instance_type="standard_nc6s_v3", gpus=1)
    until(admin, ws, "WorkspaceReady")
    set_gpus(admin, f"own-{place}", 1, ready=False)
    until(admin, ws, "WorkspaceReady", status="False", words=f"node 0/1 ready; node own-{place} is not Ready since")
    assert admin.get(WORKSPACE, "own", namespace=place)["status"]["workerNodes"] == [f"own-{place}"]
    set_gpus(admin, f"own-{place}", 1)
    until(admin, ws, "WorkspaceReady")
    late = submit(admin, workspace("late", place))
    until(admin, late, "ResourceReady", status="False", words="nothing is bought because nodeAPI is none")
    delete(admin, ws)
    eventually(lambda: gone(admin, ws))
    assert admin.get(NODE, f"own-{place}")["metadata"]["labels"]["accelerator"] == "nvidia"
    until(admin, late, "WorkspaceReady")
    assert claims_of(admin, ws) == []
    delete(admin, late)
    eventually(lambda: gone(admin, late))
    admin.delete(NODE, f"own-{place}")


def test_node_claims_are_bought_where_that_is_the_api(
    admin: Client, place: str, controllers: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    controllers.start(values={"nodeAPI": "NodeClaim"})
    ws = submit(admin, workspace("claimed", place))
    until(admin, ws, "WorkspaceReady")
    assert conditions(admin, ws)["NodeClaimReady"]["status"] == "True"
    [claim] = claims_of(admin, ws, NODE_CLAIM)
    assert claim["spec"]["expireAfter"] == "Never"
    assert claims_of(admin, ws) == []
    delete(admin, ws)
    eventually(lambda: gone(admin, ws))
    assert claims_of(admin, ws, NODE_CLAIM) == []


def test_a_claim_that_is_taken_away_is_bought_again_not_at_once(
    admin: Client, place: str, controller: Controllers, bought: Bought
) -> None:
    ws = submit(admin, with_provisioner("robbed", place, "deaf"))
    [claim] = eventually(lambda: claims_of(admin, ws))
    until(admin, ws, "ResourceReady", status="False", words=claim["metadata"]["name"])
    with Told(admin, place) as told:
        admin.delete(MACHINE, claim["metadata"]["name"])
        told.until("ResourceReady", words="the next try is at")
    eventually(lambda: bought.of(ws) == 2)
    assert [c["metadata"]["name"] for c in claims_of(admin, ws)] == [claim["metadata"]["name"]]


def test_a_lost_node_is_told_and_replaced(
    admin: Client, place: str, controller: Controllers, provisioner: Provisioner, kubelet: Kubelet, bought: Bought
) -> None:
    ws = submit(admin, workspace("robust", place))
    until(admin, ws, "WorkspaceReady")
    [claim] = claims_of(admin, ws)
    set_gpus(admin, claim["status"]["nodeName"], 1, ready=False)
    until(admin, ws, "WorkspaceReady", status="False", words="is not Ready")
    # The provisioner's repair: it gives the claim up.
    admin.delete(MACHINE, claim["metadata"]["name"])
    eventually(lambda: bought.of(ws) == 2)
    until(admin, ws, "WorkspaceReady")


def test_deletion_waits_for_the_claims_and_says_so(
    admin: Client, place: str, controller: Controllers, installed: dict[str, Obj]
) -> None:
    ws = submit(admin, with_provisioner("held", place, "deaf"))
    [claim] = eventually(lambda: claims_of(admin, ws))
    name = claim["metadata"]["name"]
    admin.patch(MACHINE, name, {"metadata": {"finalizers": ["karpenter.sh/termination"]}})
    delete(admin, ws)
    found = until(admin, ws, "WorkspaceDeleting")
    assert (found["reason"], found["message"]) == ("workspaceDeleted", "workspace is being deleted")
    until(admin, ws, "WorkspaceReady", status="False", words=f"waiting for Machine {name}")
    admin.patch(MACHINE, name, {"metadata": {"finalizers": None}})
    eventually(lambda: gone(admin, ws))


def test_a_claim_without_a_workspace_is_given_back(
    admin: Client, place: str, controllers: Controllers, installed: dict[str, Obj]
) -> None:
    controllers.start()
    labels = {"kaito.sh/workspace": "ghost", "kaito.sh/workspacenamespace": place}
    admin.create(MACHINE, {"metadata": {"name": f"ws{place[3:]}f", "labels": labels}, "spec": {}})
    ghost = workspace("ghost", place)
    eventually(lambda: claims_of(admin, ghost) == [])


# Moments that chance chooses; test_killed_controllers.py forces each of them.
@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_killing_the_controller_at_any_moment_buys_no_node_twice(
    seed: int,
    admin: Client,
    place: str,
    controllers: Controllers,
    provisioner: Provisioner,
    kubelet: Kubelet,
    bought: Bought,
) -> None:
    rng = random.Random(seed)
    objects = [workspace(f"w{n}", place) for n in range(4)]
    for number, obj in enumerate(objects):
        obj["resource"] |= {"count": 2, "labelSelector": {"matchLabels": {"apps": f"{place}-{number}"}}}
    process = controllers.start()
    made = [submit(admin, obj) for obj in objects]
    for _ in range(4):
        # A start takes about a second; then the knife falls somewhere between the first and the last write.
        threading.Event().wait(0.9 + rng.uniform(0.0, 0.8))
        process.kill()
        process.wait(PATIENCE)
        process = controllers.start()
    for ws in made:
        until(admin, ws, "WorkspaceReady")
    assert [bought.of(ws) for ws in made] == [2, 2, 2, 2]


def test_two_controllers_that_both_believe_to_lead_buy_no_node_twice(
    admin: Client, place: str, controllers: Controllers, provisioner: Provisioner, kubelet: Kubelet, bought: Bought
) -> None:
    controllers.start()
    controllers.start()
    objects = [workspace(f"w{n}", place) for n in range(8)]
    for number, obj in enumerate(objects):
        obj["resource"] |= {"count": 1 + number % 2, "labelSelector": {"matchLabels": {"apps": f"{place}-{number}"}}}
    made = [submit(admin, obj) for obj in objects]
    for ws in made:
        until(admin, ws, "WorkspaceReady")
    assert [bought.of(ws) for ws in made] == [1, 2] * 4
    for ws in made:
        delete(admin, ws)
    for ws in made:
        eventually(lambda ws=ws: gone(admin, ws))
        assert claims_of(admin, ws) == []


def test_a_standby_takes_over_when_the_leader_is_killed(
    admin: Client, place: str, controllers: Controllers, provisioner: Provisioner, kubelet: Kubelet
) -> None:
    leader = controllers.start(lead=True)
    first = submit(admin, workspace("first", place))
    until(admin, first, "WorkspaceReady")
    controllers.start(lead=True)
    leader.kill()
    leader.wait(PATIENCE)
    # The lease of the dead would run out in 15 s; tests/cluster/runtime sees that nobody takes it before that.
    [lease] = [le for le in admin.list(LEASE, namespace="kaito").items if le["spec"].get("holderIdentity")]
    ends = {"spec": {"leaseDurationSeconds": 1}}
    admin.patch(LEASE, lease["metadata"]["name"], ends, namespace="kaito")
    second = workspace("second", place)
    second["resource"]["labelSelector"]["matchLabels"]["apps"] = f"{place}-second"
    submit(admin, second)
    until(admin, second, "WorkspaceReady")


def test_a_controller_that_is_killed_leaves_no_file_behind(
    controllers: Controllers, admin: Client, place: str, tmp_path: Path
) -> None:
    """Keys above all: nobody comes who would remove them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    process = controllers.start(environment={"TMPDIR": str(folder)})
    ws = submit(admin, workspace("phi", place))
    until(admin, ws, "MachineReady", status="Unknown")
    process.kill()
    process.wait(PATIENCE)
    assert list(folder.iterdir()) == []
