"""The check before a node is bought: what it looks at, what becomes of what it finds, and that it is made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.workspace.tuning.checked import PROBLEMS, REFUSAL, SENTENCE, SETTINGS, CheckedWorld
from tests.unit.workspace.worlds import CHECK_STEPS, REPORT, START, TEMPLATE, node_object, tuning_object

from kaito_hooks.api.version import VERSION
from kaito_hooks.artifacts.__main__ import parser
from kaito_hooks.runtime import format_time
from kaito_hooks.workspace.configuration.settings import Check, Proxy, Registries, Settings, Tuning
from kaito_hooks.workspace.decision.actions import BuyClaim
from kaito_hooks.workspace.decision.snapshot import Memory
from kaito_tuning.check.examine import Settings as Examined

Obj = dict[str, Any]
SETTINGS_THAT_DECIDE: dict[str, Callable[[Settings], Settings]] = {
    "private networks": lambda s: replace(s, tuning=replace(s.tuning, allowed_private_cidrs=("10.0.0.0/8",))),
    "the size": lambda s: replace(s, tuning=replace(s.tuning, check=replace(s.tuning.check, max_bytes=8 * 1024**3))),
    "the deadline": lambda s: replace(s, tuning=replace(s.tuning, check=replace(s.tuning.check, deadline=86400.0))),
    "mirrors": lambda s: replace(s, registries=Registries(mirrors={"r.io": "https://mirror.example.com"})),
    "a proxy": lambda s: replace(s, proxy=Proxy(https="http://proxy.example.com:3128")),
    "the image": lambda s: replace(s, images=replace(s.images, tuning={**s.images.tuning, "check": "r.io/check:2"})),
}


@pytest.fixture
def world() -> CheckedWorld:
    return CheckedWorld()


def steps_of(job: Obj) -> dict[str, Obj]:
    spec = job["spec"]["template"]["spec"]
    return {c["name"]: c for c in [*spec["initContainers"], *spec["containers"]]}


class TestTheJob:
    def test_its_steps_are_those_of_the_contract(self, world: CheckedWorld) -> None:
        job = world.begin_check()
        assert job["metadata"]["name"] == "phi-check-1"
        steps = steps_of(job)
        assert list(steps) == list(CHECK_STEPS)
        secret = "/var/run/secrets/kaito.sh/registry/push/.dockerconfigjson"
        assert steps["push-right"]["args"] == [
            "push-right", "--image", "r.io/team/adapter:0.1", "--docker-config", secret,
        ]  # fmt: skip
        assert steps["tokenizer"]["args"] == [
            "tokenizer", "--image", "mcr.microsoft.com/aks/kaito/kaito-phi-3-mini-4k-instruct:0.0.2",
            "--image-path", "/workspace/tfs/weights", "--destination", "/mnt/model",
            "--architecture", "Phi3ForCausalLM",
        ]  # fmt: skip
        assert steps["data"]["args"] == [
            "data", "--url=https://example.com/train.parquet", "--destination", "/mnt/data",
        ]  # fmt: skip
        assert steps["check"]["command"] == ["python", "-m", "kaito_tuning.check"]
        assert steps["check"]["image"] == f"ghcr.io/kaito-python/kaito-tuning:{VERSION}-check"

    def test_the_check_knows_what_the_trainer_will_know(self, world: CheckedWorld) -> None:
        world.catalog = replace(
            world.catalog,  # type: ignore[type-var]
            presets={k: replace(p, context_length=4096) for k, p in world.catalog.presets.items()},  # type: ignore[union-attr]
        )
        step = steps_of(world.begin_check())["check"]
        assert {e["name"]: e["value"] for e in step["env"]} == {
            "HOME": "/tmp",
            "YAML_FILE_PATH": "/mnt/config/training_config.yaml",
            "DATASET_FOLDER_PATH": "/mnt/data",
            "MODEL_PATH": "/mnt/model",
            "MODEL_TYPE": "phi3",
            "METHOD": "qlora",
            "CONTEXT_LENGTH": "4096",
            "SERVE_RESULT": "true",
            "CHECK_MAX_BYTES": str(2 * 1024**3),
        }
        mounts = {m["mountPath"]: m.get("readOnly", False) for m in step["volumeMounts"]}
        assert mounts == {"/tmp": False, "/mnt/model": True, "/mnt/data": True, "/mnt/config": True}

    def test_the_images_understand_what_the_job_says(self, world: CheckedWorld) -> None:
        steps = steps_of(world.begin_check())
        for name in CHECK_STEPS[:-1]:
            assert parser().parse_args(steps[name]["args"]).run.__name__ == name.replace("-", "_")
        found = Examined.read({e["name"]: e["value"] for e in steps["check"]["env"]})
        assert (found.method, found.model_type, found.serve_result) == ("qlora", "phi3", True)
        assert (found.max_bytes, found.model_folder) == (2 * 1024**3, Path("/mnt/model"))
        assert found.config_path == Path("/mnt/config/training_config.yaml")

    def test_it_needs_no_gpu_and_none_of_the_workspaces_nodes(self, world: CheckedWorld) -> None:
        job = world.begin_check()
        spec = job["spec"]["template"]["spec"]
        assert "affinity" not in spec
        assert spec["tolerations"] == []
        assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        assert "nvidia.com/gpu" not in json.dumps(job)

    def test_it_is_locked_down_as_everything_else(self, world: CheckedWorld) -> None:
        job = world.begin_check()
        spec = job["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        for step in steps_of(job).values():
            assert step["securityContext"]["readOnlyRootFilesystem"] is True
            assert step["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {*step["resources"]} == {"requests", "limits"}

    def test_each_secret_is_mounted_only_where_it_is_needed(self) -> None:
        private = {
            "preset": {
                "name": "phi-3-mini-4k-instruct",
                "accessMode": "private",
                "presetOptions": {"image": "r.io/own/phi:1", "imagePullSecrets": ["model"]},
            },
            "input": {"image": "r.io/data/rows:1", "imagePullSecrets": ["rows"]},
        }
        job = CheckedWorld(tuning_object(tuning=private)).begin_check()
        volumes = {
            v["name"]: v["secret"]["secretName"] for v in job["spec"]["template"]["spec"]["volumes"] if "secret" in v
        }
        seen = {
            name: {volumes[m["name"]] for m in step["volumeMounts"] if m["name"] in volumes}
            for name, step in steps_of(job).items()
        }
        assert seen == {"push-right": {"push"}, "tokenizer": {"model"}, "data": {"rows"}, "check": set()}

    def test_its_pod_is_no_endpoint_of_the_service_of_an_earlier_result(self, world: CheckedWorld) -> None:
        template = world.begin_check()["spec"]["template"]
        assert template["metadata"]["labels"]["kaito.sh/workspace"] == "phi"
        assert template["spec"]["readinessGates"]

    def test_it_may_reach_registries_in_a_namespace_that_denies_by_default(self, world: CheckedWorld) -> None:
        world.begin_check()
        policy = world.children["NetworkPolicy/phi"]
        assert policy["spec"]["podSelector"] == {"matchLabels": {"kaito.sh/workspace": "phi"}}
        assert "Egress" in policy["spec"]["policyTypes"]

    def test_a_model_on_a_volume_is_not_looked_for_on_any_node(self) -> None:
        world = CheckedWorld(tuning_object(tuning={"preset": {"name": "from-volume"}}))
        assert world.catalog is not None
        volume = replace(world.catalog.presets["from-volume"], tuning={"qlora": 1})
        world.catalog = replace(world.catalog, presets={**world.catalog.presets, "from-volume": volume})
        job = world.begin_check()
        assert list(steps_of(job)) == ["push-right", "data", "check"]
        assert {"name": "MODEL_PATH", "value": ""} in steps_of(job)["check"]["env"]
        assert "persistentVolumeClaim" not in json.dumps(job)


class TestBeforeTheClaim:
    def test_a_node_is_bought_after_the_report_is_in_the_status_and_not_before(self, world: CheckedWorld) -> None:
        for _ in range(30):
            recorded = bool(world.check)
            decided = world.reconcile()
            assert recorded or not [a for a in decided.actions if isinstance(a, BuyClaim)]
            world.provision()
            world.run_workloads()
        assert (world.checks_made, world.jobs_made, world.bought) == (1, 1, 1)
        assert world.condition("WorkspaceReady")[0] == "True"

    def test_the_report_and_the_event_are_there_whoever_passed(self, world: CheckedWorld) -> None:
        world.settle()
        assert world.check["result"] == "Passed"
        assert world.check["revision"] == "1"
        for key in ("form", "files", "rows", "tokens", "maxLength", "tokensPerEpoch", "estimatedSteps"):
            assert world.check[key] == REPORT[key]
        events = [message for reason, message in world.events if reason == "TuningChecked"]
        assert len(events) == 1
        assert "1,200 rows to train, 3 skipped as messages" in events[0]
        assert world.status["tuning"]["adapterDigest"]

    def test_only_a_job_without_a_passed_check_asks_for_the_right_to_push(self, world: CheckedWorld) -> None:
        world.settle()
        assert list(steps_of(world.children["Job/phi"])) == ["weights", "data", "tune", "push"]
        skipped = CheckedWorld(settings=replace(SETTINGS, tuning=Tuning(check=Check(enabled=False))))
        skipped.settle()
        assert list(steps_of(skipped.children["Job/phi"])) == ["push-right", "weights", "data", "tune", "push"]

    def test_it_is_seen_while_it_runs(self, world: CheckedWorld) -> None:
        world.begin_check()
        world.put_pod("data")
        world.reconcile()
        assert world.status["progress"] == "checking the data"
        status, reason, message = world.condition("JobStarted")
        assert (status, reason) == ("False", "WorkspaceTuningJobStatusPending")
        assert message == "Pod phi-check-1-abcde: fetching the data"
        status, reason, message = world.condition("ResourceReady")
        assert (status, reason) == ("False", "workspaceResourceStatusPending")
        assert message == "no node is bought before the data have been checked"
        world.put_pod("check")
        world.reconcile()
        assert world.condition("JobStarted")[2] == "Pod phi-check-1-abcde: checking the data"

    def test_a_crd_that_lacks_the_report_buys_nothing_and_says_what_to_do(self, world: CheckedWorld) -> None:
        for _ in range(12):
            world.reconcile()
            # As the API server of an upgrade without its CRDs stores it.
            world.status.get("tuning", {}).pop("check", None)
            world.provision()
            world.run_workloads()
        assert (world.bought, world.checks_made) == (0, 1)
        assert "apply the files in crds of the chart" in world.condition("JobStarted")[2]

    def test_no_condition_says_that_a_node_is_created(self, world: CheckedWorld) -> None:
        world.begin_check()
        world.reconcile()
        assert "MachineReady" not in {c["type"] for c in world.status["conditions"]}
        world.until(lambda: world.bought)
        assert world.condition("MachineReady")[1] == "CreateMachinePending"

    def test_where_nothing_is_ever_bought_the_nodes_that_are_missing_are_told(self, world: CheckedWorld) -> None:
        world.settings = replace(SETTINGS, node_api="none")
        world.begin_check()
        world.reconcile()
        assert "1 more Ready node with the labels apps=phi-3 needed" in world.condition("ResourceReady")[2]

    def test_it_is_no_longer_seen_while_a_node_is_bought(self, world: CheckedWorld) -> None:
        world.begin_check()
        world.put_pod("check", {"terminated": world.check_ends})
        for _ in range(3):
            world.reconcile()
        assert (world.bought, world.nodes) == (1, {})
        assert "progress" not in world.status
        assert world.condition("JobStarted")[2] == "waiting for the nodes"

    def test_its_job_goes_when_the_report_is_recorded(self, world: CheckedWorld) -> None:
        world.begin_check()
        world.until(lambda: world.check)
        assert world.checks()
        world.reconcile()
        assert not world.checks()
        assert [(d.name, d.foreground) for d in world.deleted] == [("phi-check-1", True)]

    def test_nodes_of_ones_own_are_checked_too(self, world: CheckedWorld) -> None:
        world.settings = replace(SETTINGS, node_api="none")
        world.nodes["mine"] = node_object("mine")
        world.check_ends = REFUSAL
        world.settle_refused()
        assert (world.checks_made, world.jobs_made) == (1, 0)

    @pytest.mark.parametrize("crash_after", range(5))
    def test_a_controller_that_dies_on_the_way_checks_once_and_buys_once(
        self, world: CheckedWorld, crash_after: int
    ) -> None:
        for _ in range(12):
            world.reconcile(crash_after=crash_after)
            world.memory = Memory()
            assert world.check or not world.bought
            world.provision()
            world.run_workloads()
        world.settle()
        assert (world.checks_made, world.jobs_made, world.bought) == (1, 1, 1)

    def test_a_job_that_runs_is_never_checked(self) -> None:
        world = CheckedWorld(settings=replace(SETTINGS, tuning=Tuning(check=Check(enabled=False))))
        world.until(lambda: world.jobs_made)
        # The charts are upgraded to a version that checks.
        world.settings = SETTINGS
        world.settle()
        assert (world.checks_made, world.jobs_made) == (0, 1)
        assert world.condition("WorkspaceReady")[0] == "True"

    def test_what_has_been_tuned_and_is_served_is_never_checked(self) -> None:
        world = CheckedWorld(settings=replace(SETTINGS, tuning=Tuning(check=Check(enabled=False))))
        world.settle()
        world.settings = SETTINGS
        world.settle()
        assert (world.checks_made, world.jobs_made) == (0, 1)

    @pytest.mark.parametrize("name", ["Job/phi", "Job/phi-check-1", "NetworkPolicy/phi"])
    def test_a_job_that_cannot_be_made_buys_nothing(self, world: CheckedWorld, name: str) -> None:
        kind, _, alone = name.partition("/")
        theirs = {"kind": kind, "metadata": {"name": alone, "namespace": "models", "uid": "theirs"}, "spec": {}}
        world.children[name] = theirs
        for _ in range(4):
            world.reconcile()
            world.provision()
        status, reason, message = world.condition("JobStarted")
        assert (status, reason) == ("False", "WorkspaceTuningJobStatusFailed")
        assert f"{name} in namespace models exists already and does not belong to this Workspace" in message
        assert (world.bought, world.children[name]) == (0, theirs)

    def test_a_workspace_that_is_deleted_meanwhile_leaves_nothing(self, world: CheckedWorld) -> None:
        world.begin_check()
        world.delete(rounds=4)
        assert not world.checks()
        assert world.bought == 0


class TestRefused:
    def test_nothing_is_bought_and_the_conditions_say_why(self, world: CheckedWorld) -> None:
        world.check_ends = REFUSAL
        world.settle_refused()
        assert (world.bought, world.jobs_made, world.checks_made) == (0, 0, 1)
        assert world.condition("JobStarted") == ("False", "WorkspaceTuningJobStatusFailed", SENTENCE)
        assert world.condition("WorkspaceReady") == ("False", "workspaceFailed", SENTENCE)
        assert world.condition("ResourceReady")[:2] == ("False", "workspaceResourceStatusPending")
        assert world.check["result"] == "Refused"
        assert (world.check["reason"], world.check["problems"]) == ("DatasetInvalid", PROBLEMS)
        assert world.status["progress"] == "refused"
        assert not world.checks()

    def test_one_event_says_it_however_often_it_is_looked_at(self, world: CheckedWorld) -> None:
        world.check_ends = REFUSAL
        world.settle_refused()
        for _ in range(5):
            world.pass_time(10)
            assert world.reconcile().empty
        assert [m for _, m in world.events if "row 3 has no prompt" in m] == [SENTENCE]

    def test_a_corrected_configuration_is_found_within_ten_seconds_and_checked_again(self) -> None:
        world = CheckedWorld(tuning_object(tuning={"config": "mine"}))
        text = TEMPLATE["training_config.yaml"]
        world.config_maps["mine"] = {"data": {"training_config.yaml": text}}
        world.check_ends = REFUSAL
        world.settle_refused()
        assert world.reconcile().look_again == pytest.approx(10.05)
        world.config_maps["mine"] = {"data": {"training_config.yaml": text.replace("r: 8", "r: 16")}}
        world.check_ends = {"exitCode": 0, "message": json.dumps(REPORT)}
        world.settle()
        assert (world.checks_made, world.jobs_made, world.bought) == (2, 1, 1)
        assert world.check["result"] == "Passed"

    def test_a_changed_tuning_is_checked_again(self, world: CheckedWorld) -> None:
        world.check_ends = REFUSAL
        world.settle_refused()
        assert world.workspace is not None
        world.workspace["tuning"]["input"]["urls"] = ["https://example.com/better.parquet"]
        world.check_ends = {"exitCode": 0, "message": json.dumps(REPORT)}
        world.settle()
        assert (world.checks_made, world.jobs_made) == (2, 1)
        assert world.check["revision"] == "2"

    def test_data_that_were_put_right_behind_their_url_are_checked_when_it_is_asked_for(
        self, world: CheckedWorld
    ) -> None:
        world.check_ends = REFUSAL
        world.settle_refused()
        assert world.workspace is not None
        world.workspace["metadata"]["annotations"]["kaito.sh/tuning-check"] = "again"
        world.check_ends = {"exitCode": 0, "message": json.dumps(REPORT)}
        world.settle()
        assert (world.checks_made, world.jobs_made) == (2, 1)

    @pytest.mark.parametrize("change", SETTINGS_THAT_DECIDE.values(), ids=SETTINGS_THAT_DECIDE)
    def test_settings_that_decide_are_looked_at_again_when_they_change(
        self, world: CheckedWorld, change: Callable[[Settings], Settings]
    ) -> None:
        world.check_ends = REFUSAL
        world.settle_refused()
        world.settings = change(world.settings)
        world.check_ends = {"exitCode": 0, "message": json.dumps(REPORT)}
        world.settle()
        assert (world.checks_made, world.jobs_made) == (2, 1)
        assert world.condition("WorkspaceReady")[0] == "True"

    def test_a_preset_with_another_context_is_looked_at_again(self, world: CheckedWorld) -> None:
        world.check_ends = REFUSAL
        world.settle_refused()
        assert world.catalog is not None
        presets = {name: replace(preset, context_length=131072) for name, preset in world.catalog.presets.items()}
        world.catalog = replace(world.catalog, presets=presets)
        world.settle_refused()
        world.until(lambda: world.checks_made == 2)

    def test_settings_that_have_nothing_to_do_with_it_check_nothing_again(self, world: CheckedWorld) -> None:
        world.check_ends = REFUSAL
        world.settle_refused()
        world.settings = replace(world.settings, max_nodes_per_workspace=3, tuning=Tuning(push_deadline=60.0))
        for _ in range(4):
            world.reconcile()
        assert world.checks_made == 1

    def test_what_has_passed_is_not_checked_again_for_other_settings(self, world: CheckedWorld) -> None:
        world.until(lambda: world.check.get("result") == "Passed")
        world.settings = SETTINGS_THAT_DECIDE["mirrors"](world.settings)
        world.settle()
        assert (world.checks_made, world.jobs_made) == (1, 1)

    def test_an_adapter_that_no_server_can_express_is_trained_where_nothing_is_served(
        self, world: CheckedWorld
    ) -> None:
        world.check_ends = REFUSAL
        world.settle_refused()
        assert world.workspace is not None
        world.workspace["tuning"]["serveResult"] = False
        world.check_ends = {"exitCode": 0, "message": json.dumps(REPORT)}
        world.settle()
        assert (world.checks_made, world.jobs_made) == (2, 1)

    def test_an_earlier_result_is_served_until_the_new_one_is_worth_training(self, world: CheckedWorld) -> None:
        world.settle()
        assert world.workspace is not None
        world.workspace["tuning"]["input"]["urls"] = ["https://example.com/worse.parquet"]
        world.check_ends = REFUSAL
        world.settle_refused()
        assert "Deployment/phi" in world.children
        assert world.condition("InferenceReady")[0] == "True"
        assert world.condition("WorkspaceReady")[0] == "False"
        assert (world.jobs_made, world.checks_made, world.bought) == (1, 2, 1)

    def test_a_data_set_that_cannot_be_had_is_refused_by_its_step(self, world: CheckedWorld) -> None:
        world.check_step = "data"
        world.check_ends = {"exitCode": 2, "message": "https://example.com/train.parquet answers 404 Not Found"}
        world.settle_refused()
        sentence = "step data: https://example.com/train.parquet answers 404 Not Found"
        assert world.condition("JobStarted")[2] == sentence
        assert world.bought == 0

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            ('{"rows": {"training": 3}, "problems": []}', "it ended with exit code 2"),
            ("", "it ended with exit code 2"),
            ("2026-01-02 12:00:00 ERROR ConfigInvalid: no such field", "ConfigInvalid: no such field"),
        ],
        ids=["no problem", "nothing", "the end of a log"],
    )
    def test_a_refusal_without_a_report_has_a_sentence_too(self, world: CheckedWorld, message: str, words: str) -> None:
        world.check_ends = {"exitCode": 2, "message": message}
        world.settle_refused()
        assert world.condition("JobStarted")[2].startswith("step check: ")
        assert words in world.condition("JobStarted")[2]

    def test_a_report_of_other_types_than_the_status_has_does_not_stop_it(self, world: CheckedWorld) -> None:
        odd = {
            "rows": {"training": "many"},
            "tokens": [1],
            "files": "one",
            "problems": ["no rows", 3],
            "maxLength": 1e400,
        }
        world.check_ends = {"exitCode": 2, "message": json.dumps(odd)}
        world.settle_refused()
        assert world.check["problems"] == ["no rows"]
        assert not {"tokens", "files", "maxLength"} & world.check.keys()


class TestWhatWaits:
    def test_what_cannot_be_reached_buys_nothing_and_is_tried_again_by_the_kubelet(self, world: CheckedWorld) -> None:
        job = world.begin_check()
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
        assert job["spec"]["backoffLimit"] == 2**31 - 1
        world.put_pod("data", {"terminated": {"exitCode": 1, "message": "example.com does not answer"}})
        world.reconcile()
        assert world.condition("JobStarted")[1:] == (
            "WorkspaceTuningJobStatusFailed",
            "Pod phi-check-1-abcde: init container data: example.com does not answer",
        )
        world.pass_time(3600)
        assert world.reconcile().empty
        assert world.bought == 0
        world.pods = []
        world.settle()
        assert (world.checks_made, world.jobs_made) == (1, 1)

    def test_a_report_of_what_may_be_tried_again_is_told_as_a_sentence(self, world: CheckedWorld) -> None:
        problem = "a file could not be read or written: No space left on device (/tmp/x)"
        world.begin_check()
        message = json.dumps({**REPORT, "problems": [problem]})
        world.put_pod("check", {"terminated": {"exitCode": 1, "message": message}})
        world.reconcile()
        assert world.condition("JobStarted")[1:] == ("WorkspaceTuningJobStatusFailed", f"step check: {problem}")
        assert (world.bought, world.check) == (0, {})

    def test_a_wrong_push_secret_is_told_and_its_correction_is_taken_up(self, world: CheckedWorld) -> None:
        world.begin_check()
        world.put_pod("push-right", {"terminated": {"exitCode": 2, "message": "r.io refuses the credentials"}})
        world.reconcile()
        status, _, message = world.condition("JobStarted")
        assert (status, message) == (
            "False",
            "Pod phi-check-1-abcde: init container push-right: r.io refuses the credentials",
        )
        assert (world.bought, world.check) == (0, {})
        world.pods = []
        world.settle()
        assert (world.checks_made, world.jobs_made) == (1, 1)

    def test_a_secret_that_is_missing_is_named_and_waited_for(self, world: CheckedWorld) -> None:
        world.begin_check()
        pod = world.put_pod("push-right", {"waiting": {"reason": "PodInitializing"}})
        missing = 'MountVolume.SetUp failed for volume "registry-1" : secret "push" not found'
        world.warnings = {pod["metadata"]["uid"]: missing}
        world.reconcile()
        assert 'secret "push" not found' in world.condition("JobStarted")[2]
        world.pass_time(3600)
        world.reconcile()
        assert (world.bought, world.check) == (0, {})
        world.warnings = {}
        world.pods = []
        world.settle()
        assert world.jobs_made == 1

    def test_a_quota_that_refuses_its_pod_is_told_and_buys_nothing(self, world: CheckedWorld) -> None:
        job = world.begin_check()
        world.refused_pods = {job["metadata"]["uid"]: 'pods "phi-check-1-abc" is forbidden: exceeded quota: small'}
        world.pass_time(600)
        world.reconcile()
        assert "cannot create its Pods: exceeded quota: small" in world.condition("JobStarted")[2]
        assert (world.bought, world.check) == (0, {})


class TestWhatOthersDoMeanwhile:
    @pytest.mark.parametrize("pods_left", [True, False], ids=["it ends", "it is gone"])
    def test_a_pod_that_is_drained_amid_the_check_skips_nothing(self, world: CheckedWorld, pods_left: bool) -> None:
        world.begin_check()
        pod = world.put_pod("data", {"running": {}})
        pod["spec"] = {**pod.get("spec", {}), "nodeName": "cpu-1"}
        world.reconcile()
        world.pass_time(300)
        pod["metadata"]["deletionTimestamp"] = format_time(world.now)
        if not pods_left:
            world.pods = []
        for _ in range(3):
            world.reconcile()
        assert world.claims == {}
        assert "result" not in ((world.status.get("tuning") or {}).get("check") or {})

    def test_settings_that_were_put_right_are_taken_by_a_check_that_has_not_ended(self, world: CheckedWorld) -> None:
        world.begin_check()
        world.put_pod("check", {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
        world.reconcile()
        [before] = [job["metadata"]["uid"] for job in world.checks()]
        tuning = {**world.settings.images.tuning, "check": "mirror.example.com/kaito-tuning:0.1.0-check"}
        world.settings = replace(world.settings, images=replace(world.settings.images, tuning=tuning))
        for _ in range(6):
            world.reconcile()
        [job] = world.checks()
        assert job["metadata"]["uid"] != before
        assert job["spec"]["template"]["spec"]["containers"][0]["image"] == tuning["check"]
        for _ in range(6):
            world.reconcile()
        assert [job["metadata"]["uid"]] == [again["metadata"]["uid"] for again in world.checks()]

    def test_a_configuration_that_was_another_one_for_a_while_is_checked_again(self) -> None:
        world = CheckedWorld(tuning_object(tuning={"config": "mine"}))
        world.config_maps["mine"] = {"metadata": {"resourceVersion": "5"}, "data": TEMPLATE}
        world.begin_check()
        world.put_pod("check", {"terminated": REFUSAL})
        # Somebody has edited it and taken that back before anybody looked.
        world.config_maps["mine"] = {"metadata": {"resourceVersion": "7"}, "data": TEMPLATE}
        world.reconcile()
        assert world.check == {}
        assert "its ConfigMap was changed meanwhile" in world.condition("JobStarted")[2]
        world.pods = []
        world.settle()
        assert (world.checks_made, world.jobs_made) == (2, 1)

    @pytest.mark.parametrize("name", ["phi", "phi-check-1"])
    def test_a_job_of_the_workspace_that_had_the_name_before_is_waited_for(
        self, world: CheckedWorld, name: str
    ) -> None:
        owner = {"kind": "Workspace", "name": "phi", "uid": "before", "controller": True}
        metadata = {"name": name, "namespace": "models", "uid": "theirs", "ownerReferences": [owner]}
        going = {**metadata, "deletionTimestamp": format_time(world.now)}
        world.children[f"Job/{name}"] = {"kind": "Job", "metadata": going, "spec": {}}
        for _ in range(4):
            world.reconcile()
        status, reason, message = world.condition("JobStarted")
        assert (status, reason) == ("False", "WorkspaceTuningJobStatusPending")
        assert f"Job/{name}" in message
        assert "is being deleted" in message
        assert (world.bought, world.children[f"Job/{name}"]["metadata"]) == (0, going)
        del world.children[f"Job/{name}"]
        world.settle()
        assert (world.checks_made, world.jobs_made) == (1, 1)

    def test_rules_that_come_during_the_check_hold_for_the_purchase(self, world: CheckedWorld) -> None:
        world.begin_check()
        world.reconcile()
        assert world.catalog is not None
        known = world.catalog.presets
        larger = {name: replace(preset, tuning=dict.fromkeys(preset.tuning, 500)) for name, preset in known.items()}
        world.catalog = replace(world.catalog, presets=larger)
        for _ in range(10):
            world.reconcile()
            world.run_workloads()
        assert world.claims == {}
        assert "Insufficient" in world.condition("WorkspaceReady")[2]

    def test_a_node_that_comes_for_what_is_refused_meanwhile_is_given_back(self, world: CheckedWorld) -> None:
        for _ in range(30):
            world.reconcile()
            world.run_workloads()
            if world.claims:
                break
        assert world.claims
        [name] = world.config_maps
        world.config_maps[name]["data"]["training_config.yaml"] += "\n# edited\n"
        world.check_ends = REFUSAL
        for _ in range(20):
            world.reconcile()
            world.provision()
            world.run_workloads()
            world.pass_time(10)
        assert world.status["tuning"]["check"]["result"] == "Refused"
        assert world.claims == {}


class TestSkipped:
    def test_a_quota_that_an_earlier_result_has_used_up_does_not_hold_the_new_one_up(self, world: CheckedWorld) -> None:
        world.settle()
        assert world.workspace is not None
        world.workspace["tuning"]["input"]["urls"] = ["https://example.com/better.parquet"]
        job = world.begin_check()
        quota = 'pods "phi-check-2-abc" is forbidden: exceeded quota: one Pod'
        world.refused_pods = {job["metadata"]["uid"]: quota}
        world.reconcile()
        assert "exceeded quota" in world.condition("JobStarted")[2]
        assert world.check == {}
        world.pass_time(120)
        world.reconcile()
        assert world.check["result"] == "Skipped"
        assert "exceeded quota: one Pod" in world.check["message"]
        world.settle()
        assert (world.jobs_made, world.bought) == (2, 1)

    def test_after_two_minutes_without_a_node_the_claim_is_made(self, world: CheckedWorld) -> None:
        world.begin_check()
        full = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu."}
        pod = world.put_pod(conditions=[full])
        pod["status"] |= {"initContainerStatuses": [], "containerStatuses": []}
        assert world.reconcile().look_again == pytest.approx(120.05)
        assert "Insufficient cpu" in world.condition("JobStarted")[2]
        world.pass_time(119)
        world.reconcile()
        assert (world.bought, world.check) == (0, {})
        world.pass_time(1)
        world.reconcile()
        assert world.check["result"] == "Skipped"
        assert "no node took its Pod within 2m" in world.check["message"]
        assert "Insufficient cpu" in world.check["message"]
        assert [reason for reason, message in world.events if message == world.check["message"]] == [
            "TuningCheckSkipped"
        ]
        assert world.bought == 0
        world.reconcile()
        assert world.bought == 1
        world.settle()
        assert (world.checks_made, world.jobs_made) == (1, 1)

    def test_a_pod_that_a_node_has_taken_is_waited_for(self, world: CheckedWorld) -> None:
        world.begin_check()
        world.put_pod(conditions=[{"type": "PodScheduled", "status": "True"}])
        world.pass_time(3600)
        world.reconcile()
        assert (world.bought, world.check) == (0, {})

    @pytest.mark.parametrize(
        "state",
        [
            {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            {"terminated": {"exitCode": 1, "message": "Traceback (most recent call last)\nKeyError: 'x'"}},
        ],
        ids=["out of memory", "a fault of its own"],
    )
    def test_a_check_that_dies_again_and_again_keeps_nobody_from_training(
        self, world: CheckedWorld, state: Obj
    ) -> None:
        world.begin_check()
        pod = world.put_pod("check", state)
        world.reconcile()
        assert world.check == {}
        pod["status"]["containerStatuses"][0]["restartCount"] = 3
        world.reconcile()
        assert world.check["result"] == "Skipped"
        world.settle()
        assert world.jobs_made == 1

    def test_data_that_are_too_large_for_a_node_without_gpu_are_looked_at_on_the_node_that_is_bought(
        self, world: CheckedWorld
    ) -> None:
        world.begin_check()
        text = 'Usage of EmptyDir volume "data-volume" exceeds the limit "20Gi".'
        world.put_pod(phase="Failed", reason="Evicted", message=text)
        world.reconcile()
        assert world.check["result"] == "Skipped"
        assert text in world.check["message"]

    @pytest.mark.parametrize(("condition", "result"), [("Complete", "Passed"), ("Failed", "Skipped")])
    def test_of_a_job_whose_pods_are_gone_its_own_end_counts(
        self, world: CheckedWorld, condition: str, result: str
    ) -> None:
        job = world.begin_check()
        job["status"] = {"conditions": [{"type": condition, "status": "True", "message": "a policy has ended it"}]}
        world.reconcile()
        assert world.check["result"] == result
        assert ("a policy has ended it" in world.check.get("message", "")) == (result == "Skipped")

    @pytest.mark.parametrize("who", ["the chart", "the Workspace"])
    def test_it_can_be_turned_off(self, who: str) -> None:
        settings = replace(SETTINGS, tuning=Tuning(check=Check(enabled=who != "the chart")))
        world = CheckedWorld(settings=settings)
        assert world.workspace is not None
        if who == "the Workspace":
            world.workspace["metadata"]["annotations"] = {"kaito.sh/tuning-check": "off"}
        world.settle()
        assert (world.checks_made, world.jobs_made) == (0, 1)


def test_the_first_look_at_a_pod_that_has_no_node_is_due_when_it_is_skipped() -> None:
    world = CheckedWorld(settings=replace(SETTINGS, tuning=Tuning(check=Check(timeout=30))))
    world.begin_check()
    assert world.now == START
    world.put_pod()["status"] |= {"initContainerStatuses": [], "containerStatuses": []}
    assert world.reconcile().look_again == pytest.approx(timedelta(seconds=30.05).total_seconds())
