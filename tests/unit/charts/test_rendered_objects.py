"""What helm renders, and says, for an installer who has the chart and nothing else of this project."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

import pytest
import yaml
from tests.helm_versions import program

from kaito_hooks.api.version import VERSION

ROOT = Path(__file__).parents[3]
CHARTS = ("kaito", "gpu-provisioner")
CLUSTER_SCOPED = {
    *("Catalog", "ClusterRole", "ClusterRoleBinding"),
    *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
}
EVERYTHING = {
    "kaito": ("--set=replicaCount=2", "--set=serviceMonitor.enabled=true"),
    "gpu-provisioner": ("--set=azure.caBundle=-----BEGIN CERTIFICATE-----", "--set=serviceMonitor.enabled=true"),
}


def helm(
    chart: str, *options: str, values: str = "", release: str = "mine", version: str = "helm 3"
) -> CompletedProcess[str]:
    arguments = [program(version), "template", release, ROOT / "charts" / chart, *options, "--values=-"]
    return run(arguments, input=values, capture_output=True, text=True, check=False, timeout=120)


def objects(chart: str, *options: str, release: str = "mine") -> list[Any]:
    done = helm(chart, *options, release=release)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.mark.parametrize("chart", CHARTS)
def test_every_object_of_a_namespace_names_it(chart: str) -> None:
    found = objects(chart, "--namespace=models", "--no-hooks", *EVERYTHING[chart])
    assert {obj["kind"] for obj in found if "namespace" in obj["metadata"]}.isdisjoint(CLUSTER_SCOPED)
    for obj in found:
        if obj["kind"] not in CLUSTER_SCOPED:
            assert obj["metadata"].get("namespace") == "models", obj["kind"]


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_is_rendered_alike_each_time(chart: str) -> None:
    """Else every comparison of two renders tells of changes that are none."""
    assert len({helm(chart).stdout for _ in range(3)}) == 1


@pytest.mark.parametrize("release", ["gpu-provisioner", "kaito-gpu-provisioner"])
def test_the_account_is_the_one_of_the_federated_subject_whatever_the_release_is(release: str) -> None:
    found = objects("gpu-provisioner", "--no-hooks", release=release)
    [account] = [obj["metadata"]["name"] for obj in found if obj["kind"] == "ServiceAccount"]
    [deployment] = [obj for obj in found if obj["kind"] == "Deployment"]
    assert account == "gpu-provisioner"
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == account
    subjects = [obj["subjects"] for obj in found if obj["kind"].endswith("RoleBinding")]
    assert {subject["name"] for [subject] in subjects} == {account}


@pytest.mark.parametrize(
    ("chart", "values", "said"),
    [
        (
            "kaito",
            "image: {repository: a/b}",
            "image.repository of upstream's chart is not one of this chart; image.reg",
        ),
        ("kaito", "imagePullSecrets: [{name: a}]", "image.pullSecrets lists the names"),
        ("kaito", "featureGates: {vLLM: true}", "serving.variant what serves models"),
        ("kaito", "webhook: {port: 9443}", "admissionPolicies.enabled"),
        ("kaito", "securityContext: {}", "its Pods always run without rights"),
        ("gpu-provisioner", "image: {repository: a/b}", "controller.image.repository a whole repository"),
        ("gpu-provisioner", "webhook: {port: 8443}", "no webhook runs, leave it out"),
        ("gpu-provisioner", "settings: {batchMaxDuration: 10s}", "claims are not batched, leave it out"),
    ],
)
def test_a_value_of_upstreams_chart_is_answered_with_the_name_of_ours(chart: str, values: str, said: str) -> None:
    done = helm(chart, values=values)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize(
    ("registry", "image"),
    [
        ("ghcr.io/Kaito-Python", f"ghcr.io/kaito-python/kaito-hooks:{VERSION}"),
        ("Registry.example.com/a/", f"registry.example.com/a/kaito-hooks:{VERSION}"),
        ("localhost:5000", f"localhost:5000/kaito-hooks:{VERSION}"),
        ("[fd00::1]:5000/a", f"[fd00::1]:5000/a/kaito-hooks:{VERSION}"),
    ],
)
def test_a_registry_is_written_as_images_write_it(chart: str, registry: str, image: str) -> None:
    found = objects(chart, f"--set=image.registry={registry}")
    [deployment] = [obj for obj in found if obj["kind"] == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == image


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize(
    ("registry", "said"),
    [
        ("''", "image.registry is empty: name the registry"),
        ("", "image.registry is empty: name the registry"),
        ("https://r.example.com/a", 'image.registry is "https://r.example.com/a": write host[:port][/folder] without'),
        ("fd00::1", 'image.registry is "fd00::1"'),
        ("r.example.com/a b", 'image.registry is "r.example.com/a b"'),
        ("r.example.com//a", 'image.registry is "r.example.com//a"'),
    ],
)
def test_what_no_image_begins_with_is_told(chart: str, registry: str, said: str) -> None:
    done = helm(chart, values=f"image: {{registry: {registry}}}")
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize(
    ("values", "lacking"),
    [
        pytest.param(
            "settings: {azure: {clusterName: a, subscriptionId: '', resourceGroup: b, location: c}}",
            "settings.azure.subscriptionId (ARM_SUBSCRIPTION_ID), workloadIdentity.clientId (AZURE_CLIENT_ID)",
            id="empty texts",
        ),
        pytest.param(
            "workloadIdentity: {clientId: , tenantId: }",
            "workloadIdentity.clientId (AZURE_CLIENT_ID), workloadIdentity.tenantId (AZURE_TENANT_ID)",
            id="nothing at all",
        ),
        pytest.param(
            "controller: {env: [{name: ARM_SUBSCRIPTION_ID, value: }]}",
            "ARM_SUBSCRIPTION_ID of controller.env",
            id="the environment",
        ),
    ],
)
def test_a_variable_that_was_not_set_is_named(values: str, lacking: str) -> None:
    done = helm("gpu-provisioner", values=values)
    assert done.returncode != 0
    assert lacking in done.stderr
    assert "if it came from a variable of the shell, that one is not set" in done.stderr


def test_what_the_environment_gives_is_not_lacking() -> None:
    values = """
        settings: {azure: {clusterName: a}}
        controller: {envFrom: [{secretRef: {name: azure}}]}
    """
    assert helm("gpu-provisioner", values=values).returncode == 0


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("file", ["README.md", "values.yaml", "templates/NOTES.txt"])
def test_no_path_is_named_that_lies_outside_the_chart(chart: str, file: str) -> None:
    text = (ROOT / "charts" / chart / file).read_text()
    assert [word for word in ("charts/", "docs/", "examples/", "tests/") if word in text] == []
