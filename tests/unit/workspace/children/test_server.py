"""The serving Pod, field by field as the contract with serving/ and artifacts/ says."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tests.unit.workspace.worlds import CATALOG, node_object, snapshot, workspace_object

from kaito_hooks.api.catalog import Catalog
from kaito_hooks.api.version import VERSION
from kaito_hooks.api.workspace import PresetSpec
from kaito_hooks.workspace.children.server import weights_mount, weights_volume
from kaito_hooks.workspace.configuration.settings import Images, Proxy, Registries, Serving, Settings, Workloads
from kaito_hooks.workspace.decision.actions import CreateChild
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.supply.placement import place

Obj = dict[str, Any]


def deployment(settings: Settings | None = None, *, gpus: int = 1, node_type: str = "", **changes: Any) -> Obj:
    marks = {"node.kubernetes.io/instance-type": node_type} if node_type else {}
    decided = plan(
        snapshot(
            workspace_object(**changes),
            nodes=(node_object("mine", gpus=gpus, labels=marks),),
            settings=settings or Settings(),
        )
    )
    return next(a.child for a in decided.actions if isinstance(a, CreateChild) and a.child["kind"] == "Deployment")


def pod(settings: Settings | None = None, **changes: Any) -> Obj:
    found: Obj = deployment(settings, **changes)["spec"]["template"]["spec"]
    return found


def step(spec: Obj, name: str) -> Obj:
    return next(c for c in [*spec["initContainers"], *spec["containers"]] if c["name"] == name)


def preset(name: str, **more: Any) -> Obj:
    return {"preset": {"name": name, "accessMode": "public", **more}}


def test_the_server_is_started_as_its_contract_says() -> None:
    server = step(pod(), "phi")
    assert server["image"] == f"ghcr.io/kaito-python/kaito-serving:{VERSION}-cu126"
    assert server["command"] == ["python", "-m", "kaito_serving"]
    assert server["args"] == [
        "--pipeline", "text-generation",
        "--pretrained_model_name_or_path", "/workspace/tfs/weights",
        "--served_model_name", "phi-3-mini-4k-instruct", "phi",
        "--torch_dtype", "auto",
        "--engine", "transformers",
        "--port", "5000",
    ]  # fmt: skip
    env = {e["name"]: e.get("value") for e in server["env"]}
    assert env["HOME"] == env["RAY_TMPDIR"] == "/tmp"
    assert server["env"][0] == {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    assert server["resources"] == {"requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}
    assert server["ports"] == [{"name": "http", "containerPort": 5000, "protocol": "TCP"}]


@pytest.mark.parametrize(
    ("extra", "seconds"),
    [
        ((), 625),  # 10 s of draining, 600 s for the longest answer, 15 s for Ray
        (("--request_timeout_s", "60"), 85),
        (("--request_timeout_s=60", "--drain_s", "20", "--max_waiting", "9"), 95),
        (("--request_timeout_s", "soon"), 625),
        # What the server refuses, or takes as none at all.
        (("--request_timeout_s", "inf"), 625),
        (("--request_timeout_s", "-1"), 625),
        (("--drain_s", "nan"), 625),
        (("--drain_s=inf", "--request_timeout_s=60"), 85),
        (("--drain_s=-30",), 615),
    ],
)
def test_a_server_may_end_its_longest_answer(extra: tuple[str, ...], seconds: int) -> None:
    settings = Settings()
    settings = dataclasses.replace(settings, serving=dataclasses.replace(settings.serving, extra_args=extra))
    assert pod(settings)["terminationGracePeriodSeconds"] == seconds


def test_the_startup_probe_waits_for_an_answer_instead_of_failing_again_and_again() -> None:
    server = step(pod(), "phi")
    startup = server["startupProbe"]
    assert startup["httpGet"] == {"path": "/health?wait=50", "port": 5000, "scheme": "HTTP"}
    # The preset's 30 minutes for the model, three minutes for the port, and one Warning Event a minute at most.
    assert 50 * startup["failureThreshold"] == 30 * 60
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3 * 60
    assert startup["timeoutSeconds"] == 55
    assert server["readinessProbe"]["httpGet"]["path"] == "/health"
    assert server["livenessProbe"]["periodSeconds"] > server["readinessProbe"]["periodSeconds"]


def test_weights_come_out_of_the_model_image() -> None:
    weights = step(pod(), "weights")
    assert weights["image"] == f"ghcr.io/kaito-python/kaito-hooks:{VERSION}"
    assert weights["command"] == ["python", "-m", "kaito_hooks.artifacts"]
    assert weights["args"] == [
        "weights",
        "--image", "mcr.microsoft.com/aks/kaito/kaito-phi-3-mini-4k-instruct:0.0.2",
        "--image-path", "/workspace/tfs/weights",
        "--destination", "/workspace/tfs/weights",
        "--architecture", "Phi3ForCausalLM",
    ]  # fmt: skip
    assert {"name": "weights", "mountPath": "/workspace/tfs/weights"} in weights["volumeMounts"]


def test_the_server_cannot_write_the_weights() -> None:
    mounts = {m["mountPath"]: m for m in step(pod(), "phi")["volumeMounts"]}
    assert mounts["/workspace/tfs/weights"]["readOnly"] is True
    assert set(mounts) == {"/tmp", "/dev/shm", "/workspace/tfs/weights"}
    volumes = {v["name"]: v for v in pod()["volumes"]}
    assert volumes["dshm"] == {"name": "dshm", "emptyDir": {"medium": "Memory"}}
    assert volumes["tmp"] == {"name": "tmp", "emptyDir": {}}


def test_nothing_in_the_pod_has_rights() -> None:
    spec = pod(
        inference=preset("phi-3-mini-4k-instruct") | {"adapters": [{"source": {"name": "a", "image": "r.io/x/a:1"}}]}
    )
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 65532
    for container in [*spec["initContainers"], *spec["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_a_private_image_is_read_with_its_own_secrets() -> None:
    options = {"image": "r.io/own/llama:1", "imagePullSecrets": ["pull.b", "pull-a"]}
    spec = pod(inference=preset("llama-2-7b", accessMode="private", presetOptions=options))
    weights = step(spec, "weights")
    assert weights["args"][:3] == ["weights", "--image", "r.io/own/llama:1"]
    configs = [weights["args"][i + 1] for i, a in enumerate(weights["args"]) if a == "--docker-config"]
    folder = "/var/run/secrets/kaito.sh/registry"
    assert configs == [f"{folder}/pull-a/.dockerconfigjson", f"{folder}/pull.b/.dockerconfigjson"]
    secrets = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
    mounted = {m["mountPath"]: secrets[m["name"]] for m in weights["volumeMounts"] if m["name"] in secrets}
    assert mounted == {f"{folder}/pull-a": "pull-a", f"{folder}/pull.b": "pull.b"}
    assert not any(m["name"] in secrets for m in step(spec, "phi")["volumeMounts"])


def test_weights_come_from_the_hub_with_a_token() -> None:
    spec = pod(inference=preset("from-hub"))
    args = step(spec, "weights")["args"]
    assert args == [
        "weights",
        "--hugging-face", "own/model",
        "--revision", "a" * 40,
        "--destination", "/workspace/tfs/weights",
        "--token-file", "/var/run/secrets/kaito.sh/huggingface/token",
        "--architecture", "LlamaForCausalLM",
    ]  # fmt: skip
    assert {"name": "hub-token", "secret": {"secretName": "hub", "defaultMode": 0o440}} in spec["volumes"]


def test_weights_on_a_volume_are_only_checked() -> None:
    spec = pod(inference=preset("from-volume"))
    weights = step(spec, "weights")
    assert weights["args"] == ["weights", "--volume", "/workspace/tfs/weights"]
    mount = {"name": "weights", "mountPath": "/workspace/tfs/weights", "readOnly": True}
    assert mount in weights["volumeMounts"]
    assert mount in step(spec, "phi")["volumeMounts"]
    assert {"name": "weights", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}} in spec["volumes"]


@pytest.mark.parametrize(
    ("written", "in_the_pod"),
    [
        (
            {"persistentVolumeClaim": {"claimName": "m", "readOnly": False}},
            {"persistentVolumeClaim": {"claimName": "m", "readOnly": True}},
        ),
        ({"nfs": {"server": "s", "path": "/m"}}, {"nfs": {"server": "s", "path": "/m", "readOnly": True}}),
        ({"hostPath": {"path": "/m", "type": "Directory"}}, {"hostPath": {"path": "/m", "type": "Directory"}}),
        (
            {"csi": {"driver": "d", "fsType": "ext4", "volumeAttributes": {"a": "b"}}},
            {"csi": {"driver": "d", "fsType": "ext4", "volumeAttributes": {"a": "b"}, "readOnly": True}},
        ),
    ],
    ids=["persistentVolumeClaim", "nfs", "hostPath", "csi"],
)
def test_weights_may_lie_on_any_kind_of_volume_and_are_never_written(written: Any, in_the_pod: Any) -> None:
    found = Catalog.read({"spec": {"presets": {"p": {"weights": {"volume": written}}}}}).presets["p"]
    wanted = PresetSpec("p", "public", "", ())
    assert weights_volume(found, wanted) == {"name": "weights", **in_the_pod}
    assert weights_mount(found, wanted, read_only=False)["readOnly"] is True


def test_each_adapter_is_pulled_by_a_step_with_only_its_own_secrets() -> None:
    adapters = [
        {"source": {"name": "b", "image": "r.io/x/b:1", "imagePullSecrets": ["for-b"]}, "strength": "0.5"},
        {"source": {"name": "a", "image": "r.io/x/a@sha256:" + "0" * 64}},
    ]
    spec = pod(inference=preset("phi-3-mini-4k-instruct") | {"adapters": adapters})
    assert [c["name"] for c in spec["initContainers"]] == ["weights", "adapter-b", "adapter-a"]
    with_secret, without = step(spec, "adapter-b"), step(spec, "adapter-a")
    assert with_secret["args"] == [
        "pull", "--image", "r.io/x/b:1", "--destination", "/mnt/adapter/b",
        "--docker-config", "/var/run/secrets/kaito.sh/registry/for-b/.dockerconfigjson",
    ]  # fmt: skip
    assert without["args"][-1] == "/mnt/adapter/a"
    registry = {v["name"] for v in spec["volumes"] if "secret" in v}
    assert [m["name"] in registry for m in with_secret["volumeMounts"]].count(True) == 1
    assert not any(m["name"] in registry for m in without["volumeMounts"])
    args = step(spec, "phi")["args"]
    assert args[args.index("--adapters_dir") + 1] == "/mnt/adapter"
    assert json.loads(args[args.index("--adapter_strengths") + 1]) == {"a": 1.0, "b": 0.5}


def test_pods_run_on_their_own_nodes_or_on_nobodys() -> None:
    terms = pod()["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    wanted = {"key": "apps", "operator": "In", "values": ["phi-3"]}
    assert terms == [
        {
            "matchExpressions": [
                wanted,
                {"key": "kaito.sh/workspace", "operator": "In", "values": ["phi"]},
                {"key": "kaito.sh/workspacenamespace", "operator": "In", "values": ["models"]},
            ]
        },
        {
            "matchExpressions": [
                wanted,
                {"key": "kaito.sh/workspace", "operator": "DoesNotExist"},
                {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["Standard_NC6s_v3"]},
            ]
        },
    ]
    assert pod()["tolerations"] == OF_GPU_NODES


def types_held_to(resource: Obj, *, catalog: Catalog | None = CATALOG, node_api: Any = "Machine", **types: str) -> Any:
    """The instance types to which Pods are held on nodes that nobody bought; ``types``: of the Nodes of these names."""
    nodes = [node_object(name, labels={"node.kubernetes.io/instance-type": value}) for name, value in types.items()]
    obj = workspace_object(resource=workspace_object()["resource"] | resource)
    found = snapshot(obj, nodes=tuple(nodes), catalog=catalog, settings=Settings(node_api=node_api))
    assert found.workspace.resource is not None
    [_, nobodys, *_] = place(found, found.workspace.resource)["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    return next(
        (e["values"] for e in nobodys["matchExpressions"] if e["key"] == "node.kubernetes.io/instance-type"), None
    )


def preferred_terms(*names: str) -> list[str]:
    """The nodes that nobody bought to which Pods may go by name."""
    found = snapshot(workspace_object(resource=workspace_object()["resource"] | {"preferredNodes": list(names)}))
    assert found.workspace.resource is not None
    rules = place(found, found.workspace.resource)["affinity"]["nodeAffinity"]
    terms = rules["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [field["values"][0] for term in terms for field in term.get("matchFields", ())]


def test_of_nodes_with_the_same_labels_only_those_of_the_chosen_type_are_used() -> None:
    spelled = "standard_nc6s_v3"
    both = [("Standard_NC6s_v3"), spelled]
    assert types_held_to({}, mine="Standard_NC6s_v3", other="Standard_NV6") == ["Standard_NC6s_v3"]
    # A user may spell a type as he likes, a Node's label is compared letter by letter.
    assert types_held_to({"instanceType": spelled}) == both
    assert types_held_to({"instanceType": spelled}, catalog=None) == [spelled]
    assert types_held_to({"instanceType": spelled}, catalog=None, mine="Standard_NC6s_v3") == both
    # Another node of a preferred one's type is no preferred node.
    preferred = {"preferredNodes": ["other"]}
    assert types_held_to(preferred, other="Standard_NV6", third="Standard_NV12") == ["Standard_NC6s_v3"]
    assert preferred_terms("wish.example", "other") == ["other", "wish.example"]
    # The API server refuses a Pod that may go to a node of an impossible name.
    assert preferred_terms("", "Wish_1", "a" * 254) == []
    # Where nothing is bought, the labels say all.
    assert types_held_to({}, node_api="none", mine="Standard_NC6s_v3") is None


OF_GPU_NODES = [
    {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"},
    {"key": "kubernetes.azure.com/scalesetpriority", "operator": "Equal", "value": "spot", "effect": "NoSchedule"},
]


def test_the_platforms_and_the_users_own_taints_are_tolerated() -> None:
    own = {"key": "team", "operator": "Equal", "value": "ml", "effect": "NoSchedule"}
    settings = Settings(workloads=Workloads(tolerations=(own,)))
    annotation = "team=ml:NoSchedule,example.com/dedicated:NoExecute,maintenance,empty="
    metadata = {"annotations": {"kaito.sh/tolerations": annotation}}
    of_user = [
        {"key": "example.com/dedicated", "operator": "Exists", "effect": "NoExecute"},
        {"key": "maintenance", "operator": "Exists"},
        {"key": "empty", "operator": "Equal", "value": ""},
    ]
    assert pod(settings)["tolerations"] == [*OF_GPU_NODES, own]
    assert pod(settings, metadata=metadata)["tolerations"] == [*OF_GPU_NODES, own, *of_user]
    template = {"spec": {"containers": [{"name": "c", "image": "own"}], "tolerations": [of_user[0]]}}
    found = pod(settings, metadata=metadata, inference={"template": template})["tolerations"]
    assert found == [of_user[0], *OF_GPU_NODES, own, *of_user[1:]]


@pytest.mark.parametrize(
    ("gpus", "instance_type", "image"),
    [(1, "Standard_Down_v9", "cu126"), (0, "Standard_Down_v9", "cpu"), (1, "Standard_NC6s_v3", "cu126")],
)
def test_where_nodes_are_not_bought_the_image_is_for_what_they_have(gpus: int, instance_type: str, image: str) -> None:
    settings = Settings(node_api="none")
    resource = workspace_object()["resource"] | {"instanceType": instance_type}
    server = step(pod(settings, resource=resource, gpus=gpus, node_type=instance_type), "phi")
    assert server["image"].endswith(f":{VERSION}-{image}")
    assert server["resources"].get("limits", {}).get("nvidia.com/gpu") == (str(gpus) if gpus else None)


@pytest.mark.parametrize(
    ("instance_type", "gpus", "forced", "variant", "requested"),
    [
        ("Standard_NC6s_v3", 1, "", "cu126", "1"),
        ("Standard_NC12s_v3", 2, "", "cu126", "2"),
        ("Standard_NC24ads_A100_v4", 1, "", "cu126", "1"),
        ("Standard_NC6s_v3", 1, "cpu", "cpu", "1"),
        ("Standard_Nnew", 3, "", "cu126", "3"),
        ("Standard_D8s_v5", 0, "", "cpu", None),
        # Of no type that anybody lists, on which the GPUs are what they are.
        ("Standard_Down_v9", 2, "", "cu126", "2"),
        ("Standard_Down_v9", 0, "", "cpu", None),
    ],
)
def test_image_and_gpus_follow_the_instance_type(
    instance_type: str, gpus: int, forced: str, variant: str, requested: str | None
) -> None:
    resource = workspace_object()["resource"] | {"instanceType": instance_type}
    settings = Settings(images=Images(variant=forced))
    server = step(pod(settings, resource=resource, gpus=gpus, node_type=instance_type), "phi")
    assert server["image"].endswith(f":{VERSION}-{variant}")
    assert server["resources"].get("limits", {}).get("nvidia.com/gpu") == requested


def test_settings_reach_the_pod() -> None:
    settings = Settings(
        images=Images(pull_secrets=("mine",), pull_policy="Always"),
        serving=Serving(
            resources={"requests": {"cpu": "2"}, "limits": {"memory": "8Gi"}},
            extra_args=("--max_waiting", "9"),
            extra_env=({"name": "X", "value": "1"},),
        ),
        registries=Registries(mirrors={"docker.io": "http://10.0.0.1:5000/docker.io"}, plain_http=("10.0.0.1:5000",)),
    )
    spec = pod(settings)
    server = step(spec, "phi")
    assert spec["imagePullSecrets"] == [{"name": "mine"}]
    assert server["imagePullPolicy"] == "Always"
    assert server["resources"] == {
        "requests": {"cpu": "2", "nvidia.com/gpu": "1"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "1"},
    }
    assert server["args"][-2:] == ["--max_waiting", "9"]
    assert server["env"][-1] == {"name": "X", "value": "1"}
    env = {e["name"]: e.get("value") for e in step(spec, "weights")["env"]}
    assert json.loads(env["KAITO_REGISTRIES"]) == {
        "mirrors": {"docker.io": "http://10.0.0.1:5000/docker.io"},
        "plainHTTP": ["10.0.0.1:5000"],
        "caBundle": "",
    }


def test_a_variable_that_the_chart_names_is_in_the_server_once() -> None:
    """The API server refuses a server-side apply of a list that has a name twice."""
    own = {"name": "RAY_TMPDIR", "value": "/scratch"}
    env = step(pod(Settings(serving=Serving(extra_env=(own,)))), "phi")["env"]
    assert [each for each in env if each["name"] == "RAY_TMPDIR"] == [own]
    assert {"POD_IP", "HOME"} <= {each["name"] for each in env}


def test_proxies_and_the_hub_reach_the_steps_where_the_chart_names_them() -> None:
    names = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "HF_ENDPOINT"}
    assert names.isdisjoint(e["name"] for e in step(pod(), "weights")["env"])
    settings = Settings(
        proxy=Proxy(http="http://proxy:3128", https="http://proxy:3129", no_proxy=("10.0.0.0/8", ".example.com")),
        hugging_face_endpoint="https://hub.example.com",
    )
    env = {e["name"]: e.get("value") for e in step(pod(settings), "weights")["env"]}
    assert {name: env[name] for name in names} == {
        "HTTP_PROXY": "http://proxy:3128",
        "HTTPS_PROXY": "http://proxy:3129",
        "NO_PROXY": "10.0.0.0/8,.example.com",
        "HF_ENDPOINT": "https://hub.example.com",
    }
    assert names.isdisjoint(e["name"] for e in step(pod(settings), "phi")["env"])


def test_gpus_are_never_wanted_twice_at_a_roll_out() -> None:
    found = deployment(resource=workspace_object()["resource"] | {"count": 1})["spec"]
    assert found["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert found["selector"] == {"matchLabels": {"kaito.sh/workspace": "phi"}}
    assert found["progressDeadlineSeconds"] == 1800
