"""A tuning Workspace's way after its check: node, Job, record, server; as plain data and in a small world."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.workspace.worlds import (
    CATALOG,
    DIGEST,
    START,
    STEPS,
    TEMPLATE,
    SmallWorld,
    conditions,
    job_pod,
    node_object,
    snapshot,
    tuning_object,
)

from kaito_hooks.api.version import VERSION
from kaito_hooks.runtime import format_time
from kaito_hooks.workspace.configuration.settings import Check, Settings, Tuning
from kaito_hooks.workspace.decision.actions import CopyConfigMap, CreateChild, Delete, Plan
from kaito_hooks.workspace.decision.snapshot import Memory, Snapshot, Tenant, TuningConfig
from kaito_hooks.workspace.plan import plan

Obj = dict[str, Any]
COPIED = TuningConfig("qlora-params-template", found={"data": TEMPLATE})
UNCHECKED = Settings(
    release_namespace="kaito", tuning=Tuning(allowed_private_cidrs=("10.0.0.0/8",), check=Check(enabled=False))
)


def created(decided: Plan, kind: str) -> Obj:
    return next(a.child for a in decided.actions if isinstance(a, CreateChild) and a.child["kind"] == kind)


def start(obj: Obj | None = None, **changes: Any) -> Plan:
    known = {"nodes": (node_object("mine"),), "settings": UNCHECKED, "tuning_config": COPIED, **changes}
    return plan(snapshot(obj or tuning_object(), **known))


def steps_of(job: Obj) -> dict[str, Obj]:
    spec = job["spec"]["template"]["spec"]
    return {c["name"]: c for c in [*spec["initContainers"], *spec["containers"]]}


def secrets_seen(job: Obj) -> dict[str, set[str]]:
    volumes = {
        v["name"]: v["secret"]["secretName"] for v in job["spec"]["template"]["spec"]["volumes"] if "secret" in v
    }
    return {
        name: {volumes[m["name"]] for m in step["volumeMounts"] if m["name"] in volumes}
        for name, step in steps_of(job).items()
    }


class TestTheJob:
    def test_no_service_mesh_puts_a_proxy_into_its_pod(self) -> None:
        metadata = created(start(), "Job")["spec"]["template"]["metadata"]
        off = {"sidecar.istio.io/inject": "false", "kuma.io/sidecar-injection": "disabled"}
        assert off.items() <= metadata["labels"].items()
        of_others = {
            "linkerd.io/inject": "disabled",
            "consul.hashicorp.com/connect-inject": "false",
            "openservicemesh.io/sidecar-injection": "disabled",
        }
        assert (off | of_others).items() <= metadata["annotations"].items()

    def test_its_steps_are_init_containers_in_sequence_and_push_is_the_main_container(self) -> None:
        job = created(start(), "Job")
        spec = job["spec"]["template"]["spec"]
        assert [c["name"] for c in spec["initContainers"]] == list(STEPS)
        assert [c["name"] for c in spec["containers"]] == ["push"]
        assert (job["spec"]["backoffLimit"], spec["restartPolicy"]) == (20, "OnFailure")
        assert spec["terminationGracePeriodSeconds"] == 120
        assert job["metadata"]["annotations"]["workspace.kaito.io/revision"] == "1"
        template = job["spec"]["template"]["metadata"]
        assert template["annotations"]["kubectl.kubernetes.io/default-container"] == "tune"
        assert template["labels"]["kaito.sh/workspace"] == "phi"

    def test_every_container_is_locked_down_as_for_inference(self) -> None:
        job = created(start(), "Job")
        spec = job["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["automountServiceAccountToken"] is False
        for step in steps_of(job).values():
            assert step["securityContext"]["readOnlyRootFilesystem"] is True
            assert step["securityContext"]["capabilities"] == {"drop": ["ALL"]}

    def test_the_steps_run_the_commands_of_their_contract(self) -> None:
        steps = steps_of(created(start(), "Job"))
        secret = "/var/run/secrets/kaito.sh/registry/push/.dockerconfigjson"
        assert steps["push-right"]["args"] == [
            "check", "--image", "r.io/team/adapter:0.1", "--results", "/mnt/results", "--docker-config", secret,
        ]  # fmt: skip
        assert steps["data"]["args"] == [
            "data", "--url=https://example.com/train.parquet",
            "--allow-private", "10.0.0.0/8", "--destination", "/mnt/data",
        ]  # fmt: skip
        assert steps["weights"]["args"][:3] == [
            "weights",
            "--image",
            "mcr.microsoft.com/aks/kaito/kaito-phi-3-mini-4k-instruct:0.0.2",
        ]
        assert steps["push"]["args"] == [
            "push", "--image", "r.io/team/adapter:0.1", "--folder", "/mnt/results/adapter", "--results", "/mnt/results",
            "--docker-config", secret, "--port", "5000", "--deadline", "24h",
        ]  # fmt: skip
        assert steps["tune"]["command"] == ["python", "-m", "kaito_tuning"]

    def test_the_trainer_gets_its_files_its_gpus_and_no_secret(self) -> None:
        tune = steps_of(created(start(), "Job"))["tune"]
        env = {e["name"]: e.get("value") for e in tune["env"]}
        assert {k: env[k] for k in ("YAML_FILE_PATH", "DATASET_FOLDER_PATH", "MODEL_PATH", "MODEL_ID", "METHOD")} == {
            "YAML_FILE_PATH": "/mnt/config/training_config.yaml",
            "DATASET_FOLDER_PATH": "/mnt/data",
            "MODEL_PATH": "/workspace/tfs/weights",
            "MODEL_ID": "phi-3-mini-4k-instruct",
            "METHOD": "qlora",
        }
        assert (env["HOST"], env["PORT"]) == ("$(POD_IP)", "5000")
        assert tune["image"] == f"ghcr.io/kaito-python/kaito-tuning:{VERSION}-cu126"
        assert tune["resources"]["limits"] == {"nvidia.com/gpu": "1"}
        mounts = {m["mountPath"]: m.get("readOnly", False) for m in tune["volumeMounts"]}
        assert mounts == {
            "/tmp": False,
            "/dev/shm": False,
            "/workspace/tfs/weights": True,
            "/mnt/data": True,
            "/mnt/results": False,
            "/mnt/config": True,
        }

    def test_a_step_can_write_its_completion_file_where_its_results_are(self) -> None:
        steps = steps_of(created(start(), "Job"))
        for name, volume, folder in (
            ("push-right", "results-volume", "/mnt/results"),
            ("data", "data-volume", "/mnt/data"),
            ("tune", "results-volume", "/mnt/results"),
        ):
            assert {"name": volume, "mountPath": folder} in steps[name]["volumeMounts"]

    def test_each_secret_is_mounted_only_where_it_is_needed(self) -> None:
        private = {
            "preset": {
                "name": "phi-3-mini-4k-instruct",
                "accessMode": "private",
                "presetOptions": {"image": "r.io/own/phi:1", "imagePullSecrets": ["model"]},
            },
            "input": {"image": "r.io/data/rows:1", "imagePullSecrets": ["rows"]},
        }
        job = created(start(tuning_object(tuning=private)), "Job")
        assert secrets_seen(job) == {
            "push-right": {"push"},
            "weights": {"model"},
            "data": {"rows"},
            "tune": set(),
            "push": {"push"},
        }
        assert steps_of(job)["data"]["args"][:3] == ["data", "--image", "r.io/data/rows:1"]

    def test_a_url_is_not_expanded_by_the_kubelet(self) -> None:
        job = created(start(tuning_object(tuning={"input": {"urls": ["https://h/$(HOME)?a=b"]}})), "Job")
        assert steps_of(job)["data"]["args"][1] == "--url=https://h/$$(HOME)?a=b"

    def test_only_pods_of_the_cluster_the_controller_and_prometheus_among_them_may_ask_for_the_progress(self) -> None:
        policy = created(start(), "NetworkPolicy")
        [rule] = policy["spec"]["ingress"]
        assert rule["ports"] == [{"protocol": "TCP", "port": 5000}]
        assert rule["from"] == [{"namespaceSelector": {}}]

    def test_claims_ask_for_no_disk(self) -> None:
        decided = start(nodes=())
        [claim] = [a.claim for a in decided.actions if hasattr(a, "claim")]
        assert claim["spec"]["resources"]["requests"] == {"storage": "0"}


class TestTheConfiguration:
    def test_a_default_is_copied_from_the_release_once(self) -> None:
        decided = start(tuning_config=TuningConfig("qlora-params-template", template={"data": TEMPLATE}))
        [copied] = [a.config_map for a in decided.actions if isinstance(a, CopyConfigMap)]
        assert copied["metadata"] == {"name": "qlora-params-template", "namespace": "models"}
        assert copied["data"] == TEMPLATE
        assert not [a for a in start().actions if isinstance(a, CopyConfigMap)]

    def test_a_missing_one_is_told_before_a_node_is_bought_and_looked_for_again(self) -> None:
        decided = start(
            tuning_object(tuning={"config": "mine"}),
            nodes=(),
            tuning_config=TuningConfig("mine", template={"data": {}}),
        )
        sentence = (
            "Failed to evaluate validateConfigMap: ConfigMap 'mine' specified in 'config' not found in namespace "
            "'models': tuning"
        )
        found = conditions(decided)
        assert found["JobStarted"] == ("False", "WorkspaceTuningJobStatusFailed", sentence)
        assert found["WorkspaceReady"] == ("False", "workspaceFailed", sentence)
        assert found["ResourceReady"][:2] == ("False", "workspaceResourceStatusPending")
        assert not [a for a in decided.actions if hasattr(a, "claim")]
        assert decided.look_again == pytest.approx(10.05)

    def test_a_misspelt_field_kind_or_value_is_told_before_a_node_is_bought(self) -> None:
        for field, sentence in (
            ("lora_alfa: 8", "LoraConfig has no field lora_alfa; did you mean lora_alpha?"),
            ("r: eight", "LoraConfig.r must be an integer, got 'eight'"),
            ("bias: lora", "LoraConfig.bias: 'lora' is none of none, all, lora_only; did you mean lora_only?"),
        ):
            text = TEMPLATE["training_config.yaml"].replace("r: 8", field)
            data = {"training_config.yaml": text}
            decided = start(
                tuning_object(tuning={"config": "mine"}),
                nodes=(),
                tuning_config=TuningConfig("mine", found={"data": data}),
            )
            told = conditions(decided)["JobStarted"]
            assert told == ("False", "WorkspaceTuningJobStatusFailed", f"{sentence}: tuning.config")
            assert not [a for a in decided.actions if hasattr(a, "claim")]


def running(step: str, **changes: Any) -> tuple[Plan, Snapshot]:
    """A Job of revision 1 whose Pod is in that step; ``trained``: what its trainer left when it ended."""
    job = created(start(), "Job")
    job["metadata"]["uid"] = "uid-job"
    obj = tuning_object(
        metadata={
            "finalizers": ["workspace.finalizer.kaito.sh"],
            "annotations": {
                "workspace.kaito.io/tuning-hash": job["metadata"]["annotations"]["workspace.kaito.io/tuning-hash"],
                "workspace.kaito.io/tuning-revision": "1",
            },
        }
    )
    state = changes.pop("state", {"running": {}})
    job["status"] = changes.pop("status", {"active": 1, "ready": 0})
    obj["status"] = changes.pop("before", {})
    pod, trained = job_pod(job, step, state), changes.pop("trained", "")
    if trained:
        [tune] = [found for found in pod["status"]["initContainerStatuses"] if found["name"] == "tune"]
        tune["state"] = {"terminated": {"exitCode": 0, "message": trained}}
    known = {"nodes": (node_object("mine"),), "settings": UNCHECKED, "pods": (pod,), **changes}
    found = snapshot(obj, children={"Job/phi": job}, **known)
    return plan(found), found


class TestTheStatus:
    def test_a_training_pod_has_started_the_job_and_tells_how_far_it_is(self) -> None:
        said = {
            "phase": "Training",
            "progressPercentage": 42,
            "epoch": 0.4,
            "epochs": 3.0,
            "estimatedRemainingSeconds": 710,
            "metrics": {"loss": 1.234},
        }
        decided, _ = running("tune", tuning_progress=said)
        found = conditions(decided)
        assert found["JobStarted"] == ("True", "WorkspaceTuningJobStatusStarted", "Tuning job has started")
        pending = "workspace has not completed, tuning job has 1 active pod, 0 ready pod"
        assert found["WorkspaceReady"] == ("False", "workspacePending", pending)
        assert found["WorkspaceSucceeded"] == ("False", "workspacePending", pending)
        assert decided.status is not None
        assert decided.status["progress"] == "epoch 1/3, 42 %, loss 1.23, 12 min left"

    def test_a_job_whose_node_is_another_workspaces_is_taken_away_until_there_is_a_node(self) -> None:
        older = Tenant("2026-01-01T00:00:00Z", "models", "older")
        decided, _ = running("tune", tenants={"mine": (older,)}, before={"workerNodes": ["mine"]})
        assert [(a.kind, a.name) for a in decided.actions if isinstance(a, Delete)] == [("Job", "phi")]
        status, _, message = conditions(decided)["JobStarted"]
        assert status == "False"
        assert message.endswith("node mine is used by Workspace models/older")

    def test_a_job_that_has_ended_is_recorded_before_its_node_is_left_to_another_workspace(self) -> None:
        older = Tenant("2026-01-01T00:00:00Z", "models", "older")
        ended = {"terminated": {"exitCode": 0, "message": '{"digest": "' + DIGEST + '"}'}}
        decided, _ = running("push", state=ended, tenants={"mine": (older,)}, before={"workerNodes": ["mine"]})
        assert decided.status is not None
        assert decided.status["tuning"]["adapterDigest"] == DIGEST
        assert not [a for a in decided.actions if isinstance(a, Delete)]

    def test_a_pod_that_does_not_answer_keeps_what_was_said_last(self) -> None:
        decided, _ = running("tune", before={"progress": "epoch 1/3, 42 %"})
        assert decided.status is not None
        assert decided.status["progress"] == "epoch 1/3, 42 %"

    @pytest.mark.parametrize(
        ("step", "words"),
        [
            ("push-right", "checking that the adapter may be pushed"),
            ("weights", "fetching the weights"),
            ("data", "fetching the data"),
        ],
    )
    def test_a_step_before_the_training_is_told_as_a_wait(self, step: str, words: str) -> None:
        status, reason, message = conditions(running(step)[0])["JobStarted"]
        assert (status, reason) == ("False", "WorkspaceTuningJobStatusPending")
        assert words in message

    def test_a_wrong_push_secret_is_told_before_any_training(self) -> None:
        ended = {"terminated": {"exitCode": 1, "message": "r.io refuses the credentials of the Secret push"}}
        decided, _ = running("push-right", state=ended)
        assert conditions(decided)["JobStarted"] == (
            "False",
            "WorkspaceTuningJobStatusFailed",
            "Pod phi-abcde: init container push-right: r.io refuses the credentials of the Secret push",
        )
        assert not [a for a in decided.actions if isinstance(a, Delete)]

    def test_a_push_that_waits_says_for_what(self) -> None:
        said = {"phase": "Pushing", "reason": "PushFailed", "message": "r.io does not answer"}
        decided, _ = running("push", tuning_progress=said)
        found = conditions(decided)
        assert found["JobStarted"][0] == "True"
        sentence = "the adapter is trained, but cannot be pushed yet: r.io does not answer"
        assert found["WorkspaceReady"] == ("False", "workspaceFailed", sentence)
        assert decided.status is not None
        assert decided.status["progress"] == "pushing the adapter"

    def test_a_job_whose_tries_are_used_up_keeps_the_cause(self) -> None:
        decided, _ = running("tune", state={"terminated": {"exitCode": 1, "message": "OutOfMemory: too big"}})
        cause = "Pod phi-abcde: init container tune: OutOfMemory: too big"
        assert conditions(decided)["JobStarted"][2] == cause
        used_up = {"failed": 21, "conditions": [{"type": "Failed", "status": "True", "message": "limit"}]}
        decided, _ = running("tune", pods=(), status=used_up, memory=decided.memory)
        sentence = f"job phi has failed 21 pods: {cause}"
        assert conditions(decided)["JobStarted"][2] == sentence
        assert decided.status is not None
        assert decided.status["tuning"] == {"revision": "1", "failure": sentence}

    def test_a_controller_that_comes_later_knows_what_the_job_last_failed_with(self) -> None:
        decided, _ = running("tune", state={"terminated": {"exitCode": 1, "message": "DiskFull: no space left"}})
        cause = "Pod phi-abcde: init container tune: DiskFull: no space left"
        assert decided.status is not None
        assert decided.status["tuning"]["training"] == {"revision": "1", "lastFailure": cause}
        # The next Pod trains, under another controller, and goes with its Job.
        decided, _ = running("tune", before=decided.status)
        used_up = {"failed": 21, "conditions": [{"type": "Failed", "status": "True", "message": "limit"}]}
        decided, _ = running("tune", pods=(), status=used_up, before=decided.status)
        assert decided.status is not None
        assert decided.status["tuning"]["failure"] == f"job phi has failed 21 pods: {cause}"

    def test_what_the_job_of_an_earlier_revision_failed_with_is_not_told_of_the_next_one(self) -> None:
        before = {"tuning": {"training": {"revision": "0", "lastFailure": "DiskFull: no space left"}}}
        used_up = {"failed": 21, "conditions": [{"type": "Failed", "status": "True", "message": "limit"}]}
        decided, _ = running("tune", pods=(), status=used_up, before=before)
        assert conditions(decided)["JobStarted"][2] == "job phi has failed 21 pods: limit"

    def test_a_job_that_is_made_again_begins_without_the_failures_of_the_one_before(self) -> None:
        w = SmallWorld(tuning_object(), settings=UNCHECKED)
        while "Job/phi" not in w.children:
            w.reconcile()
            w.provision()
        w.ending_step, w.job_ends = "tune", {"exitCode": 1, "message": "DiskFull: no space left"}
        w.run_workloads()
        w.reconcile()
        assert w.workspace is not None
        assert "DiskFull" in w.workspace["status"]["tuning"]["training"]["lastFailure"]
        del w.children["Job/phi"]
        w.pods = []
        w.reconcile()
        assert "Job/phi" in w.children
        assert "lastFailure" not in (w.workspace["status"]["tuning"].get("training") or {})

    def test_a_used_up_job_of_which_nothing_is_remembered_has_its_own_words_and_none_of_the_status(self) -> None:
        said = {"type": "JobStarted", "reason": "WorkspaceTuningJobStatusFailed", "message": "something of before"}
        used_up = {"failed": 21, "conditions": [{"type": "Failed", "status": "True", "message": "limit"}]}
        decided, _ = running("tune", pods=(), status=used_up, before={"conditions": [said]})
        assert conditions(decided)["JobStarted"][2] == "job phi has failed 21 pods: limit"


def world(**tuning: Any) -> SmallWorld:
    return SmallWorld(tuning_object(tuning=tuning), settings=UNCHECKED)


def ready(w: SmallWorld) -> dict[str, str]:
    assert w.workspace is not None
    return {c["type"]: c["status"] for c in w.workspace["status"]["conditions"]}


def message(w: SmallWorld, condition: str) -> str:
    assert w.workspace is not None
    return str(next(c["message"] for c in w.workspace["status"]["conditions"] if c["type"] == condition))


class TestTheWay:
    def test_after_success_the_same_workspace_serves_the_adapter_by_digest(self) -> None:
        w = world()
        w.settle()
        assert w.workspace is not None
        columns = ("ResourceReady", "InferenceReady", "JobStarted", "WorkspaceReady", "WorkspaceSucceeded")
        assert {c: ready(w)[c] for c in columns} == dict.fromkeys(columns, "True")
        assert w.workspace["status"]["tuning"] == {
            "adapterImage": "r.io/team/adapter:0.1",
            "adapterDigest": DIGEST,
            "revision": "1",
            "metrics": {"loss": 0.5},
            "served": True,
        }
        assert w.workspace["status"]["progress"] == "completed, loss 0.50"
        spec = w.children["Deployment/phi"]["spec"]["template"]["spec"]
        [adapter] = [c for c in spec["initContainers"] if c["name"].startswith("adapter-")]
        assert adapter["args"][:3] == ["pull", "--image", f"r.io/team/adapter@{DIGEST}"]
        assert adapter["args"][-1] == "/var/run/secrets/kaito.sh/registry/push/.dockerconfigjson"
        [server] = spec["containers"]
        assert server["args"][server["args"].index("--adapter_strengths") + 1] == '{"tuned": 1.0}'
        assert "from" not in w.children["NetworkPolicy/phi"]["spec"]["ingress"][0]
        assert (w.jobs_made, w.bought) == (1, 1)
        assert w.reconcile().empty

    def test_a_job_whose_pod_goes_on_after_its_push_is_deleted_before_a_server_takes_its_gpus(self) -> None:
        w = world()
        w.job_ends = {**w.job_ends, "finishedAt": format_time(START + timedelta(seconds=100))}
        while not w.pods:
            w.reconcile()
            w.provision()
            w.run_workloads()
        # A proxy was put into it, which does not end.
        w.pods[0]["status"]["phase"] = "Running"
        w.pass_time(100)
        for _ in range(3):
            decided = w.reconcile()
        waiting = "waiting for the Pod of the tuning job to end, which holds the GPUs"
        assert message(w, "InferenceReady") == waiting
        assert decided.look_again == pytest.approx(30.05)
        assert "Job/phi" in w.children
        w.pass_time(30)
        w.reconcile()
        assert [(d.kind, d.foreground) for d in w.deleted] == [("Job", True)]
        w.reconcile()
        assert "Deployment/phi" not in w.children
        w.pods.clear()
        w.settle()
        assert ready(w)["WorkspaceReady"] == "True"
        assert w.jobs_made == 1

    def test_a_job_whose_pod_goes_on_after_its_push_is_deleted_where_nothing_is_served(self) -> None:
        w = world(serveResult=False)
        while not w.pods:
            w.reconcile()
            w.provision()
            w.run_workloads()
        w.pods[0]["status"]["phase"] = "Running"
        w.settle()
        assert "Job/phi" not in w.children
        assert (ready(w)["WorkspaceReady"], w.claims, w.jobs_made) == ("True", {}, 1)

    def test_changed_preferred_nodes_do_not_train_again(self) -> None:
        w = world()
        w.settle()
        assert w.workspace is not None
        for number in range(12):
            w.workspace["resource"]["preferredNodes"] = [f"n{number}"]
            w.settle()
        assert w.jobs_made == 1
        assert ready(w)["WorkspaceReady"] == "True"

    @pytest.mark.parametrize("phase", [None, "Pending", "Failed"], ids=["no Pod", "a Pod that waits", "an evicted Pod"])
    def test_a_job_that_may_go_to_none_of_the_nodes_that_are_there_is_made_again(self, phase: str | None) -> None:
        w = self._training()
        job = w.children["Job/phi"]
        w.pods = []
        if phase:
            w.pods = [job_pod(job, "push-right", {"waiting": {}}, phase=phase)]
            w.pods[0]["spec"] = {"nodeName": "gone"} if phase == "Failed" else {}
        self._replace_the_node(w)
        assert w.jobs_made == 2
        rules = w.children["Job/phi"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
        terms = rules["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert [{"key": "metadata.name", "operator": "In", "values": ["mine"]}] in [t.get("matchFields") for t in terms]

    @pytest.mark.parametrize("end", ["Complete", "Failed"])
    def test_a_job_that_has_ended_is_not_made_again_on_another_node(self, end: str) -> None:
        w = self._training()
        w.pods = []
        w.children["Job/phi"]["status"] = {"conditions": [{"type": end, "status": "True"}], "failed": 3}
        self._replace_the_node(w)
        assert w.jobs_made == 1

    def test_a_job_whose_pod_runs_is_not_made_again_on_another_node(self) -> None:
        w = self._training()
        w.pods = [job_pod(w.children["Job/phi"], "tune", {"running": {}}, phase="Running")]
        w.pods[0]["spec"] = {"nodeName": "elsewhere"}
        self._replace_the_node(w)
        assert w.jobs_made == 1

    @staticmethod
    def _replace_the_node(w: SmallWorld) -> None:
        """By one of the user's own, of another type, that the Workspace did not name when the Job was made."""
        assert w.workspace is not None
        w.workspace["resource"]["preferredNodes"] = ["mine"]
        labels = {"node.kubernetes.io/instance-type": "Standard_NC24ads_A100_v4"}
        w.claims, w.nodes = {}, {"mine": node_object("mine", labels=labels)}
        for _ in range(4):
            w.reconcile()

    def _training(self) -> SmallWorld:
        w = world()
        for _ in range(3):
            w.reconcile()
            w.provision()
        w.reconcile()
        assert "Job/phi" in w.children
        return w

    def test_annotations_that_somebody_took_away_do_not_train_again(self) -> None:
        w = world()
        w.settle()
        assert w.workspace is not None
        w.workspace["resource"]["preferredNodes"] = ["n1"]
        w.settle()
        w.workspace["metadata"]["annotations"] = {}
        w.settle()
        assert w.jobs_made == 1
        assert w.workspace["metadata"]["annotations"]["workspace.kaito.io/tuning-revision"] == "1"

    def test_a_new_revision_removes_server_and_job_first_and_trains_on_the_same_node(self) -> None:
        w = world()
        w.settle()
        assert w.workspace is not None
        w.workspace["tuning"]["output"]["image"] = "r.io/team/adapter:0.2"
        w.reconcile()
        assert [(d.kind, d.foreground) for d in w.deleted] == [("Deployment", True)]
        assert "Job/phi" in w.children
        w.reconcile()
        assert [(d.kind, d.foreground) for d in w.deleted] == [("Deployment", True), ("Job", True)]
        w.settle()
        assert (w.jobs_made, w.bought) == (2, 1)
        assert w.workspace["status"]["tuning"]["revision"] == "2"
        assert w.workspace["status"]["tuning"]["adapterImage"] == "r.io/team/adapter:0.2"
        assert ready(w)["WorkspaceReady"] == "True"

    def test_what_can_never_succeed_is_not_tried_again_by_any_controller(self) -> None:
        w = world()
        w.ending_step, w.job_ends = "data", {"exitCode": 2, "message": "DatasetInvalid: row 3 has no prompt"}
        w.settle()
        sentence = "step data: DatasetInvalid: row 3 has no prompt"
        assert message(w, "JobStarted") == sentence
        assert message(w, "WorkspaceReady") == sentence
        assert "Job/phi" not in w.children
        assert w.workspace is not None
        assert w.workspace["status"]["tuning"] == {"revision": "1", "failure": sentence}
        w.memory = Memory()
        w.workspace["status"]["conditions"] = []
        w.settle()
        assert w.jobs_made == 1
        assert message(w, "JobStarted") == sentence
        w.ending_step, w.job_ends = "push", {"exitCode": 0, "message": DIGEST}
        w.workspace["tuning"]["input"]["urls"] = ["https://example.com/better.parquet"]
        w.settle()
        assert ready(w)["WorkspaceReady"] == "True"
        assert w.workspace["status"]["tuning"]["adapterDigest"] == DIGEST

    @pytest.mark.parametrize("end", ["it never will", "its tries are used up"])
    def test_what_has_failed_for_good_keeps_no_node(self, end: str) -> None:
        w = world()
        if end == "it never will":
            w.ending_step, w.job_ends = "tune", {"exitCode": 2, "message": "OutOfMemory: a longer row than fits"}
        else:
            w.ending_step, w.job_ends = "tune", {"exitCode": 1, "message": "DiskFull: no space left"}
            while "Job/phi" not in w.children:
                w.reconcile()
                w.provision()
            failed = {"type": "Failed", "status": "True", "message": "it has reached the limit"}
            w.children["Job/phi"]["status"] = {"conditions": [failed], "failed": 21}
        w.settle()
        assert w.workspace is not None
        assert (w.claims, w.nodes, w.bought) == ({}, {}, 1)
        assert w.workspace["status"]["workerNodes"] == []
        assert ready(w)["ResourceReady"] == "False"
        assert "no node is kept for a tuning that has failed for good" in message(w, "ResourceReady")
        assert message(w, "WorkspaceReady") == message(w, "JobStarted") == w.workspace["status"]["tuning"]["failure"]
        w.memory = Memory()
        w.settle()
        assert (w.bought, w.jobs_made) == (1, 1)
        w.ending_step, w.job_ends = "push", {"exitCode": 0, "message": DIGEST}
        w.workspace["tuning"]["input"]["urls"] = ["https://example.com/better.parquet"]
        w.settle()
        assert (w.bought, w.jobs_made) == (2, 2)
        assert ready(w)["WorkspaceReady"] == "True"

    def test_nodes_of_ones_own_are_free_for_others_when_it_has_failed_for_good(self) -> None:
        w = world()
        w.settings = replace(w.settings, node_api="none")
        w.nodes["mine"] = node_object("mine")
        w.ending_step, w.job_ends = "tune", {"exitCode": 2, "message": "DatasetInvalid: no rows"}
        w.settle()
        assert w.workspace is not None
        assert w.workspace["status"]["workerNodes"] == []
        assert list(w.nodes) == ["mine"]

    def test_without_serving_the_node_is_given_back_and_not_bought_again(self) -> None:
        w = world(serveResult=False)
        w.settle()
        assert w.workspace is not None
        assert (w.claims, w.bought) == ({}, 1)
        assert "Deployment/phi" not in w.children
        found = ready(w)
        assert (found["WorkspaceReady"], found["JobStarted"], found["ResourceReady"]) == ("True", "True", "True")
        assert w.workspace["status"]["workerNodes"] == []
        w.workspace["tuning"]["serveResult"] = True
        w.settle()
        assert (w.jobs_made, w.bought) == (1, 2)
        assert ready(w)["InferenceReady"] == "True"
        w.workspace["tuning"]["serveResult"] = False
        w.settle()
        assert (w.claims, w.jobs_made) == ({}, 1)
        assert ready(w)["WorkspaceReady"] == "True"
        assert ready(w)["InferenceReady"] == "False"

    @pytest.mark.parametrize("crash_after", range(5))
    def test_a_controller_that_dies_on_the_way_trains_once(self, crash_after: int) -> None:
        w = world()
        for _ in range(8):
            w.reconcile(crash_after=crash_after)
            w.provision()
            w.run_workloads()
        w.settle()
        assert (w.jobs_made, w.bought) == (1, 1)
        assert ready(w)["WorkspaceReady"] == "True"

    def test_a_model_that_was_tuned_in_4_bits_and_does_not_fit_in_16_is_told(self) -> None:
        presets = dict(CATALOG.presets)
        w = world()
        phi = replace(presets["phi-3-mini-4k-instruct"], total_gpu_memory_gib=40)
        w.catalog = replace(CATALOG, presets=presets | {phi.name: phi})
        w.settle()
        assert "needs more than one Standard_NC6s_v3 to run" in message(w, "InferenceReady")
        assert "Deployment/phi" not in w.children

    @pytest.mark.parametrize("end", ["given back", "failed for good"])
    def test_what_is_over_is_not_asked_for_its_preset_again(self, end: str) -> None:
        w = world(serveResult=end != "given back")
        if end == "failed for good":
            w.ending_step, w.job_ends = "tune", {"exitCode": 2, "message": "DatasetInvalid: no rows"}
        w.settle()
        before = message(w, "WorkspaceReady")
        w.catalog = replace(CATALOG, presets={})
        w.settle()
        assert message(w, "WorkspaceReady") == before
        w.catalog = None
        assert w.reconcile().empty

    def test_a_training_whose_preset_leaves_the_catalog_is_followed_to_its_end(self) -> None:
        w = world()
        while "Job/phi" not in w.children:
            w.reconcile()
            w.provision()
        w.catalog = replace(CATALOG, presets={})
        w.settle()
        assert w.workspace is not None
        assert w.workspace["status"]["tuning"]["adapterImage"] == "r.io/team/adapter:0.1"
        assert ready(w)["WorkspaceReady"] == "False"
        assert message(w, "WorkspaceReady").startswith("Unsupported tuning preset name phi-3-mini-4k-instruct")
        w.catalog = CATALOG
        w.settle()
        assert (ready(w)["WorkspaceReady"], w.jobs_made) == ("True", 1)

    def test_a_job_of_somebody_else_is_never_taken_over(self) -> None:
        w = world()
        w.provision()
        theirs = {"kind": "Job", "metadata": {"name": "phi", "namespace": "models", "uid": "theirs"}}
        w.children["Job/phi"] = theirs
        for _ in range(4):
            w.reconcile()
            w.provision()
        assert "does not belong to this Workspace" in message(w, "JobStarted")
        assert w.children["Job/phi"] == theirs
