"""Namespaces with a quota, limits, Pod security, an admission policy and closed networks, as enterprises have them.

All of these are plugins of the real API server: what they refuse to the real controllers of Jobs, ReplicaSets and
StatefulSets is really refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from tests.cluster.admission.test_examples import QUICK_START_ADAPTERS, QUICK_START_INFERENCE, QUICK_START_TUNING
from tests.cluster.workspace.conftest import NAMESPACE, Controllers, submit, until, workspace
from tests.cluster.workspace.stand_ins.following import Obj
from tests.cluster.workspace.stand_ins.kubelet import Kubelet, at_step
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.cluster.workspace.test_workspace_tuning import PUSHED, RUNNING, tuning
from tests.eventually import eventually

from kaito_hooks.runtime import ApiError, Client, Resource
from kaito_hooks.workspace.resources import EVENT, NETWORK_POLICY, POD

QUOTA = Resource("", "v1", "resourcequotas", "ResourceQuota", True)
LIMITS = Resource("", "v1", "limitranges", "LimitRange", True)
POLICY = Resource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False
)
BINDING = Resource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", False
)
SMALL = {
    "requests.cpu": "2",
    "requests.memory": "2Gi",
    "limits.cpu": "4",
    "limits.memory": "4Gi",
    "requests.nvidia.com/gpu": "1",
    "pods": "2",
}
DEFAULTS = {
    "type": "Container",
    "defaultRequest": {"cpu": "500m", "memory": "512Mi"},
    "default": {"cpu": "2", "memory": "2Gi"},
    "max": {"cpu": "2", "memory": "2Gi"},
}


def add_quota(admin: Client, namespace: str, hard: Obj) -> None:
    """A quota counts once its controller has seen it."""
    admin.create(QUOTA, {"metadata": {"name": "team", "namespace": namespace}, "spec": {"hard": hard}})
    eventually(lambda: (admin.get(QUOTA, "team", namespace=namespace).get("status") or {}).get("hard"))


def add_limits(admin: Client, namespace: str, item: Obj) -> None:
    admin.create(LIMITS, {"metadata": {"name": "team", "namespace": namespace}, "spec": {"limits": [item]}})


def restrict(admin: Client, namespace: str) -> None:
    marks = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    admin.patch(NAMESPACE, namespace, {"metadata": {"labels": marks}})


def close_networks(admin: Client, namespace: str) -> None:
    spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    admin.create(NETWORK_POLICY, {"metadata": {"name": "default-deny", "namespace": namespace}, "spec": spec})


@pytest.fixture
def strict(admin: Client, place: str) -> str:
    """A namespace with all of it."""
    restrict(admin, place)
    close_networks(admin, place)
    add_limits(admin, place, DEFAULTS)
    add_quota(admin, place, SMALL)
    return place


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(QUICK_START_INFERENCE, id="inference"),
        pytest.param(QUICK_START_ADAPTERS, id="inference with an adapter"),
        pytest.param(QUICK_START_TUNING, id="tuning"),
    ],
)
def test_a_quick_start_runs_in_a_strict_namespace(
    admin: Client,
    strict: str,
    controller: Controllers,
    provisioner: Provisioner,
    kubelet: Kubelet,
    templates: None,
    node_without_gpu: str,
    manifest: str,
) -> None:
    kubelet.report(strict, at_step("push", PUSHED))
    ws = submit(admin, {**yaml.safe_load(manifest), "metadata": {"name": "phi", "namespace": strict}})
    until(admin, ws, "WorkspaceReady")
    [pod] = [p for p in admin.list(POD, namespace=strict).items if (p["status"] or {}).get("phase") == "Running"]
    policies = {p["metadata"]["name"]: p["spec"] for p in admin.list(NETWORK_POLICY, namespace=strict).items}
    # Policies add up: what one of them opens is open.
    assert policies["phi"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert 5000 in [port["port"] for rule in policies["phi"]["ingress"] for port in rule.get("ports") or ()]
    assert policies["phi"]["egress"]


def test_without_limits_by_default_the_words_say_which_container_lacks_which(
    admin: Client,
    place: str,
    controller: Controllers,
    provisioner: Provisioner,
    kubelet: Kubelet,
    templates: None,
    node_without_gpu: str,
) -> None:
    add_quota(admin, place, SMALL)
    served = submit(admin, workspace("phi", place))
    found = until(admin, served, "InferenceReady", status="False", words="cannot create its Pods")
    assert "must specify limits.cpu for: phi; limits.memory for: phi; requests.cpu for: phi" in found["message"]
    tuned = submit(admin, tuning("tune", place))
    found = until(admin, tuned, "JobStarted", status="False", words="cannot create its Pods")
    assert "must specify limits.cpu for: tune; limits.memory for: tune; requests.cpu for: tune" in found["message"]


@pytest.mark.parametrize(
    ("name", "changes", "condition"),
    [
        ("Deployment/phi", {}, "InferenceReady"),
        (
            "StatefulSet/phi",
            {
                "resource": {"instanceType": "Standard_NC24ads_A100_v4", "count": 2},
                "inference": {
                    "preset": {
                        "name": "llama-2-13b",
                        "accessMode": "private",
                        "presetOptions": {"image": "r.io/x/llama:1"},
                    }
                },
            },
            "InferenceReady",
        ),
        ("Job/phi", {"tuning": tuning("phi", "")["tuning"], "inference": None}, "JobStarted"),
    ],
    ids=["deployment", "stateful set", "job"],
)
def test_a_quota_that_is_used_up_is_told_in_its_own_words_and_forgotten_when_it_grows(
    admin: Client,
    place: str,
    controller: Controllers,
    provisioner: Provisioner,
    kubelet: Kubelet,
    templates: None,
    node_without_gpu: str,
    name: str,
    changes: Obj,
    condition: str,
) -> None:
    add_quota(admin, place, {"requests.nvidia.com/gpu": "0"})
    kubelet.report(place, at_step("tune", RUNNING))
    wanted = workspace("phi", place, **changes)
    wanted["resource"]["labelSelector"] = {"matchLabels": {"apps": place}}
    if name.startswith("StatefulSet"):
        wanted["metadata"]["annotations"] = {"kaito.sh/runtime": "vllm"}
    ws = submit(admin, {key: value for key, value in wanted.items() if value is not None})
    found = until(admin, ws, condition, status="False", words=f"{name} cannot create its Pods: exceeded quota: team, ")
    assert "limited: requests.nvidia.com/gpu=0" in found["message"]
    assert found["reason"].endswith("Failed")
    until(admin, ws, "WorkspaceReady", status="False", words=found["message"])

    def told() -> list[str]:
        return [e["message"] for e in admin.list(EVENT, namespace=place).items if e["reason"] == found["reason"]]

    eventually(told)
    admin.patch(QUOTA, "team", {"spec": {"hard": {"requests.nvidia.com/gpu": "2"}}}, namespace=place)
    until(admin, ws, condition)
    # Each attempt invents another name for its Pod, and is the same news.
    assert told() == [found["message"]]


def limit_memory(admin: Client, namespace: str) -> None:
    add_limits(admin, namespace, {"type": "Container", "max": {"memory": "512Mi"}})


def forbid_images(admin: Client, namespace: str) -> None:
    """A policy of this namespace on Pods; it counts once a Pod is refused."""
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    validation = {"expression": "false", "message": "only images of registry.example.com"}
    constraints = {"resourceRules": rules, "namespaceSelector": selector}
    admin.create(
        POLICY,
        {"metadata": {"name": namespace}, "spec": {"matchConstraints": constraints, "validations": [validation]}},
    )
    binding = {"policyName": namespace, "validationActions": ["Deny"]}
    admin.create(BINDING, {"metadata": {"name": namespace}, "spec": binding})

    def refused() -> bool:
        probe = {"metadata": {"name": "probe", "namespace": namespace}, "spec": {"containers": [{"name": "a"}]}}
        probe["spec"]["containers"][0]["image"] = "r.io/x:1"
        try:
            admin.create(POD, probe)
        except ApiError as error:
            return "only images of" in error.message
        admin.delete(POD, "probe", namespace=namespace, grace_period_seconds=0)
        return False

    eventually(refused, every=0.5, despite=ApiError)


TEMPLATE = {"template": {"spec": {"containers": [{"name": "mine", "image": "nginx:1.27"}]}}}


@pytest.mark.parametrize(
    ("refuse", "inference", "words"),
    [
        (limit_memory, {}, "maximum memory usage per Container is 512Mi, but limit is 1Gi"),
        (forbid_images, {}, "denied request: only images of registry.example.com"),
        (restrict, {"inference": TEMPLATE}, 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation'),
    ],
    ids=["limit range", "admission policy", "pod security of a users template"],
)
def test_every_refusal_is_told_in_its_own_words(
    admin: Client,
    place: str,
    controller: Controllers,
    provisioner: Provisioner,
    kubelet: Kubelet,
    refuse: Callable[[Client, str], None],
    inference: dict[str, Any],
    words: str,
) -> None:
    refuse(admin, place)
    ws = submit(admin, workspace("phi", place, **inference))
    found = until(admin, ws, "InferenceReady", status="False", words=words)
    assert found["message"].startswith("Deployment/phi cannot create its Pods: ")
    assert found["reason"] == "WorkspaceInferenceStatusFailed"
