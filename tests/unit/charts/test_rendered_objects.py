"""What helm renders, and says, for an installer who has the chart and nothing else of this project."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

import pytest
import yaml
from tests.helm_versions import program

from kaito_hooks.api.version import VERSION
from kaito_hooks.workspace.tuning.job import NO_PROXY_ANNOTATIONS, NO_PROXY_LABELS

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
    found = objects(chart, "--namespace=models", *EVERYTHING[chart])
    assert {obj["kind"] for obj in found if "namespace" in obj["metadata"]}.isdisjoint(CLUSTER_SCOPED)
    for obj in found:
        if obj["kind"] not in CLUSTER_SCOPED:
            assert obj["metadata"].get("namespace") == "models", obj["kind"]


@pytest.mark.parametrize("chart", CHARTS)
def test_names_that_yaml_takes_for_numbers_and_switches_stay_names(chart: str) -> None:
    """A namespace may be called 1234, a release `true`, and with fullnameOverride both."""
    options = ("--set=fullnameOverride=models", "--set-string=nameOverride=99", *EVERYTHING[chart])
    if chart == "kaito":
        options += ("--set-string=nvidiaDevicePlugin.namespace=77", "--set-string=dashboards.namespace=77")
        options += tuple(f"--set={name}.enabled=true" for name in ("dashboards", "podMonitor", "prometheusRule"))
    for release in ("true", "12"):
        found = objects(chart, "--namespace=1234", *options, release=release)
        labels = [dict(part) for part in parts(found) if "app.kubernetes.io/instance" in part]
        assert {each["app.kubernetes.io/instance"] for each in labels} == {release}
        names = {each["app.kubernetes.io/name"] for each in labels if "app.kubernetes.io/name" in each}
        assert names <= {"99", "99-hook", "nvidia-device-plugin"}
        places = {part["namespace"] for part in parts(found) if "namespace" in part}
        assert {place for place in places if isinstance(place, str)} == places
        assert not {1234, 77} & {item for part in parts(found) for item in part.values() if isinstance(item, int)}


def parts(value: Any) -> Iterator[Mapping[Any, Any]]:
    """Every mapping of rendered objects; a list counts as one, by position."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        yield value
        for below in value.values():
            yield from parts(below)


@pytest.mark.parametrize("chart", CHARTS)
def test_no_mapping_has_a_key_twice(chart: str) -> None:
    """kustomize, which Flux runs helm's renders through, takes no such document."""
    twice = ("kubectl.kubernetes.io/default-container", "kaito.sh/config-checksum", "kaito.sh/ca-checksum")
    values = {"podAnnotations": dict.fromkeys(twice, "mine"), "additionalAnnotations": {"helm.sh/hook-weight": "1"}}
    done = helm(chart, *EVERYTHING[chart], values=yaml.safe_dump(values))
    assert done.returncode == 0, done.stderr
    assert [found for found in yaml.load_all(done.stdout, Loader=OneOfAKey) if found]


class OneOfAKey(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, as a strict reader does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{keys}{node.start_mark}"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("chart", CHARTS)
def test_a_variable_that_the_user_names_is_there_once(chart: str) -> None:
    """The API server refuses a server-side apply, as helm 4's and Argo CD's, of a list that has a name twice."""
    own = {"name": "LOG_LEVEL", "value": "debug"}
    values = {"extraEnv": [own]} if chart == "kaito" else {"controller": {"env": [own]}}
    done = helm(chart, values=yaml.safe_dump(values))
    [deployment] = [obj for obj in yaml.safe_load_all(done.stdout) if obj and obj["kind"] == "Deployment"]
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [each for each in variables if each["name"] == "LOG_LEVEL"] == [own]


@pytest.mark.parametrize(
    ("chart", "path"), [("kaito", "extraEnv"), ("kaito", "serving.extraEnv"), ("gpu-provisioner", "controller.env")]
)
def test_a_variable_that_is_named_twice_is_told(chart: str, path: str) -> None:
    done = helm(chart, f"--set={path}[0].name=A", f"--set={path}[1].name=B", f"--set={path}[2].name=A")
    assert done.returncode != 0
    assert f"{path} has A twice: leave one of them out" in done.stderr


@pytest.mark.parametrize("chart", CHARTS)
def test_maps_and_lists_of_the_users_may_be_left_empty(chart: str) -> None:
    """As where all lines below a key are commented out: the schema takes the null."""
    schema = json.loads((ROOT / "charts" / chart / "values.schema.json").read_text())
    defaults = yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text())

    def emptied(values: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
        """Null for each of them, ``part`` being the schema of ``values``."""
        found: dict[str, Any] = {}
        for name in values:
            if "properties" in part["properties"][name]:
                found[name] = emptied(values[name], part["properties"][name])
            elif isinstance(values[name], dict | list) and name not in part.get("required", ()):
                found[name] = None
        return found

    values = emptied(defaults, schema)
    assert values["podLabels"] is None
    done = helm(chart, values=yaml.safe_dump(values))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("chart", CHARTS)
def test_no_service_mesh_puts_a_proxy_into_the_pod_of_a_hook(chart: str) -> None:
    """A proxy never ends, and helm would wait for the Job until its deadline."""
    jobs = [obj for obj in objects(chart) if obj["kind"] == "Job"]
    assert jobs
    for job in jobs:
        metadata = job["spec"]["template"]["metadata"]
        assert metadata["labels"].items() >= NO_PROXY_LABELS.items()
        assert metadata["annotations"].items() >= NO_PROXY_ANNOTATIONS.items()


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
