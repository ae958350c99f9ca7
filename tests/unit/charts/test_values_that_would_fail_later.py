"""What an API server, kubelet or the cloud would refuse later is refused by helm: place, value and way out."""

from __future__ import annotations

import pytest
import yaml
from tests.unit.charts.test_rendered_objects import helm

AKS = {
    "settings": {
        "azure": {
            "clusterName": "models",
            "subscriptionId": "00000000-0000-0000-0000-000000000001",
            "resourceGroup": "models",
            "location": "westeurope",
        }
    },
    "workloadIdentity": {
        "clientId": "00000000-0000-0000-0000-000000000002",
        "tenantId": "00000000-0000-0000-0000-000000000003",
    },
}
MINE = "totalGPUMemoryGiB: 9, weights"


def refused(chart: str, values: str) -> str:
    done = helm(chart, values=values)
    assert done.returncode != 0, f"rendered: {values}"
    assert "nil pointer" not in done.stderr
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("image: {tag: 'v1:2'}", "at '/image/tag': 'v1:2' does not match pattern"),
        ('image: {tag: "1.0\\n"}', "at '/image/tag': '1.0\\n' does not match pattern"),
        ("image: {pullSecrets: ['']}", "at '/image/pullSecrets/0': '' does not match pattern"),
        ("global: {imagePullSecrets: [{nam: a}]}", "at '/global/imagePullSecrets/0': missing property 'name'"),
        ("fullnameOverride: Kaito_X", "at '/fullnameOverride': 'Kaito_X' does not match pattern"),
        ("additionalLabels: {team: a b}", "at '/additionalLabels/team': 'a b' does not match pattern"),
        (f"podLabels: {{team: {'a' * 64}}}", "at '/podLabels/team'"),
        ("additionalLabels: {a b: c}", "invalid propertyName 'a b'"),
        ("additionalAnnotations: {a b: c}", "invalid propertyName 'a b'"),
        ("nodeSelector: {pool: a b}", "at '/nodeSelector/pool': 'a b' does not match pattern"),
        ("serving: {resources: {limits: {memory: 16GB}}}", "at '/serving/resources/limits/memory': '16GB' does not"),
        ("steps: {resources: {requests: {cpu: -1}}}", "at '/steps/resources/requests/cpu': minimum: got -1, want 0"),
        ("serving: {extraEnv: [{name: A=B, value: c}]}", "at '/serving/extraEnv/0/name': 'A=B' does not match pattern"),
        (
            "serving: {extraEnv: [{name: A, valueFrom: {secretKeyRef: {name: s}}}]}",
            "at '/serving/extraEnv/0/valueFrom/secretKeyRef': missing property 'key'",
        ),
        ("serving: {images: {cpu: 'https://r.example.com/a:1'}}", "at '/serving/images/cpu': 'https://r.example.com/a"),
        ("serving: {images: {cpu: 'r.example.com/A:1'}}", "at '/serving/images/cpu': 'r.example.com/A:1' does not"),
        (
            "workloads: {tolerations: [{operator: Equal, value: b}]}",
            "at '/workloads/tolerations/0/operator': value must",
        ),
        (
            "workloads: {tolerations: [{key: a, operator: Exists, value: b}]}",
            "at '/workloads/tolerations/0/value': value must be ''",
        ),
        ("tolerations: [{key: a, operator: Equals}]", "at '/tolerations/0/operator': value must be one of 'Equal'"),
        ("affinity: {nodeAfinity: {}}", "at '/affinity': additional properties 'nodeAfinity' not allowed"),
        ("topologySpreadConstraints: [{topologyKey: a}]", "missing properties 'maxSkew', 'whenUnsatisfiable'"),
        (
            "controllerNetworkPolicy: {metricsFrom: [{ipBlock: {cidr: 10.0.0.0}}]}",
            "at '/controllerNetworkPolicy/metricsFrom/0/ipBlock/cidr': '10.0.0.0' does not match pattern",
        ),
        ("strategy: {type: Recreate}", "at '/strategy/rollingUpdate': got object, want null"),
        (
            "strategy: {rollingUpdate: {maxSurge: 0}}",
            "strategy.rollingUpdate.maxSurge and maxUnavailable are both 0, so that no Pod could take another's place",
        ),
        ("podDisruptionBudget: {maxUnavailable: many}", "at '/podDisruptionBudget/maxUnavailable': 'many' does not"),
        ("metrics: {port: 8081}", "metrics.port and healthProbe.port are both 8081: the Pod needs a port for each"),
        ("priorityClassName: My Class", "at '/priorityClassName': 'My Class' does not match pattern"),
        (
            "nvidiaDevicePlugin: {image: {repository: 'r.example.com/a:v1'}}",
            "at '/nvidiaDevicePlugin/image/repository'",
        ),
        ("registries: {plainHTTP: ['http://a:5000']}", "at '/registries/plainHTTP/0': 'http://a:5000' does not match"),
        ("registries: {mirrors: {docker.io: 'http://u:p@a'}}", "at '/registries/mirrors/docker.io': 'http://u:p@a'"),
        ("registries: {caBundle: /etc/ssl/ca.crt}", "at '/registries/caBundle': '/etc/ssl/ca.crt' does not match"),
        ("huggingFaceEndpoint: 'https://${HUB}'", "at '/huggingFaceEndpoint': 'https://${HUB}' does not match pattern"),
        (
            "tuning: {download: {allowedPrivateCIDRs: [10.0.0.0/33]}}",
            "at '/tuning/download/allowedPrivateCIDRs/0': '10.0.0.0/33' does not match pattern",
        ),
        ("timeouts: {buyBackoffMin: 0s}", "at '/timeouts/buyBackoffMin': '0s' does not match pattern '[1-9]'"),
        ("uncheckedInstanceTypePrefixes: ['']", "at '/uncheckedInstanceTypePrefixes/0': minLength: got 0, want 1"),
        (
            "nodeClaim: {extraRequirements: [{key: a, operator: In}]}",
            "at '/nodeClaim/extraRequirements/0': missing property 'values'",
        ),
        ("nodeClaim: {nodeClassRef: {name: My Class}}", "at '/nodeClaim/nodeClassRef/name': 'My Class' does not match"),
    ],
)
def test_a_value_that_the_cluster_would_refuse_is_refused_by_helm(values: str, said: str) -> None:
    assert said in refused("kaito", values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            f"presets: {{my: {{{MINE}: {{image: {{path: /a}}}}}}}}",
            "presets.my.weights.image has no tag: name the version of the image, or set accessMode: private",
        ),
        (
            f"presets: {{My: {{{MINE}: {{image: {{tag: '1', path: /a}}}}}}}}",
            "presets.My: weights.image would be kaito-My, and no image has such a name",
        ),
        (
            f"presets: {{my: {{{MINE}: {{image: {{tag: 1 0, path: /a}}}}}}}}",
            "/weights/image/tag': '1 0' does not match",
        ),
        (
            f"presets: {{my: {{{MINE}: {{volume: {{persistentVolumeClaim: {{claimName: ''}}}}}}}}}}",
            "/weights/volume/persistentVolumeClaim/claimName': '' does not match pattern",
        ),
        (f"presets: {{my: {{{MINE}: {{volume: {{hostPath: {{path: a}}}}}}}}}}", "hostPath/path': 'a' does not match"),
        (f"presets: {{my model: {{{MINE}: {{image: {{tag: '1'}}}}}}}}", "invalid propertyName 'my model'"),
        (
            "presets: {phi-2: {distributed: true}}",
            "presets.phi-2 is distributed, and vllm alone serves such: set presets.phi-2.engines to [vllm]",
        ),
        ("presets: {phi-2: {readinessTimeout: 0s}}", "at '/presets/phi-2/readinessTimeout': '0s' does not match"),
        ("presets: {phi-2: {totalGPUMemoryGiB: 99999999999}}", "/totalGPUMemoryGiB': maximum: got 9.99"),
        (
            "instanceTypes: {Standard_nc6s_v3: {gpuCount: 1, totalGPUMemoryGiB: 32}}",
            "instanceTypes has Standard_NC6s_v3 and Standard_nc6s_v3, which are one type",
        ),
        ("instanceTypes: {My Type: {gpuCount: 1, totalGPUMemoryGiB: 1}}", "invalid propertyName 'My Type'"),
        (
            "instanceTypes: {A: {gpuCount: 1, totalGPUMemoryGiB: 1, retired: '2025-13-01'}}",
            "at '/instanceTypes/A/retired': '2025-13-01' does not match pattern",
        ),
    ],
)
def test_a_model_or_a_type_that_nothing_could_run_is_refused(values: str, said: str) -> None:
    assert said in refused("kaito", values)


def changed(**changes: str) -> str:
    values = {
        "settings": {"azure": {**AKS["settings"]["azure"]}},
        "workloadIdentity": {**AKS["workloadIdentity"]},
    }
    for name, value in changes.items():
        where = values["workloadIdentity"] if name in values["workloadIdentity"] else values["settings"]["azure"]
        where[name] = value
    return yaml.safe_dump(values)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("subscriptionId", "00000000-0000-0000-0000-000000000001\n", "\\n\": write the subscription's id (az account"),
        ("subscriptionId", "My Subscription", 'settings.azure.subscriptionId is "My Subscription": write the subscr'),
        ("subscriptionId", "/subscriptions/00000000", "not its name or path"),
        ("resourceGroup", "/subscriptions/a/resourceGroups/b", "write the resource group's name alone"),
        ("clusterName", "models ", 'settings.azure.clusterName is "models ": write the cluster\'s name alone'),
        ("location", "West Europe", 'settings.azure.location is "West Europe": write the region\'s name as eastus'),
        ("clientId", "00000000-0000-0000-0000-000000000002\r", "\\r\": write the identity's clientId alone"),
        ("clientId", "/subscriptions/a/resourcegroups/b", "workloadIdentity.clientId is"),
        ("tenantId", "a b", 'workloadIdentity.tenantId is "a b": write the tenant\'s id alone'),
    ],
)
def test_what_is_no_id_of_azure_is_told_with_what_to_write(name: str, value: str, said: str) -> None:
    assert said in refused("gpu-provisioner", changed(**{name: value}))


def test_ids_as_azure_writes_them_are_taken() -> None:
    values = changed(resourceGroup="Größe_(1).a-b", tenantId="contoso.onmicrosoft.com", location="EastUS2")
    assert helm("gpu-provisioner", values=values).returncode == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("agentPool: {osSKU: Debian}", "at '/agentPool/osSKU': value must be one of '', 'Ubuntu', 'AzureLinux'"),
        (
            "agentPool: {gpuProfile: {driver: none}}",
            "at '/agentPool/gpuProfile/driver': value must be one of 'Install'",
        ),
        (
            "agentPool: {availabilityZones: [eastus-1]}",
            "at '/agentPool/availabilityZones/0': 'eastus-1' does not match",
        ),
        ("agentPool: {podSubnetID: pods}", "at '/agentPool/podSubnetID': 'pods' does not match pattern"),
        ("provisioner: {gcInterval: '0'}", "at '/provisioner/gcInterval': '0' does not match pattern"),
        (
            "controller: {image: {repository: 'https://a/b'}}",
            "at '/controller/image/repository': 'https://a/b' does not",
        ),
        (
            "controller: {metrics: {port: 8081}}",
            "controller.metrics.port and controller.healthProbe.port are both 8081",
        ),
        ("strategy: {type: Recreate}", "at '/strategy/rollingUpdate': got object, want null"),
        ("workloadIdentity: null", "no value is given for workloadIdentity.clientId (AZURE_CLIENT_ID)"),
        ("azure: {caBundle: ca.crt}", "at '/azure/caBundle': 'ca.crt' does not match pattern"),
    ],
)
def test_what_the_provisioner_would_end_with_is_refused_by_helm(values: str, said: str) -> None:
    assert said in refused("gpu-provisioner", values)


def test_a_label_of_a_users_own_never_takes_the_identity_off() -> None:
    done = helm("gpu-provisioner", values="podLabels: {azure.workload.identity/use: 'false'}")
    assert done.stdout.count("azure.workload.identity/use:") == 1
    assert 'azure.workload.identity/use: "true"' in done.stdout


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
@pytest.mark.parametrize("release", ["5models", "my.models"])
def test_a_release_whose_name_no_service_can_have_is_told_the_way_out(chart: str, release: str) -> None:
    done = helm(chart, release=release)
    assert done.returncode != 0
    assert f'"{release}-{chart}" would be the name of a Service' in done.stderr
    assert "or set fullnameOverride" in done.stderr
    assert helm(chart, "--set=fullnameOverride=models", release=release).returncode == 0


@pytest.mark.parametrize("chart", ["kaito", "gpu-provisioner"])
def test_no_job_has_a_name_that_is_too_long_for_its_pods(chart: str) -> None:
    done = helm(chart, release="a" * 53)
    names = [obj["metadata"]["name"] for obj in yaml.safe_load_all(done.stdout) if obj and obj["kind"] == "Job"]
    assert names
    assert [name for name in names if len(name) > 63] == []


@pytest.mark.parametrize(
    "values",
    [
        "serving: {resources: {limits: {cpu: 2, memory: 1.5Gi, ephemeral-storage: 1e9, nvidia.com/gpu: 1}}}",
        "serving: {images: {cpu: 'localhost:5000/a/b__c:v1.0_x@sha256:" + "0" * 64 + "'}}",
        "workloads: {tolerations: [{operator: Exists}, {key: a, value: b}, {key: '', operator: Exists, effect: ''}]}",
        "additionalLabels: {example.com/team: '', a.b_c-D: X.y_z-1}",
        "additionalAnnotations: {Example.com/Any_thing: 'what ever: #?'}",
        "controllerNetworkPolicy: {metricsFrom: [{namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}]}",
        "controllerNetworkPolicy: {metricsFrom: [{ipBlock: {cidr: 'fd00::/8', except: ['fd00::1/128']}}]}",
        "tuning: {download: {allowedPrivateCIDRs: [10.0.0.0/8, '::/0', 192.168.255.0/24]}}",
        "registries: {mirrors: {docker.io: 'http://10.0.0.1:5000/docker.io'}, plainHTTP: ['[fd00::1]:5000', R.io/]}",
        "strategy: {type: Recreate, rollingUpdate: null}",
        "strategy: {rollingUpdate: {maxSurge: 25%, maxUnavailable: 0}}",
        "extraEnv: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]",
        "serving: {resources: {limits: {memory: null}}}",
    ],
)
def test_what_the_cluster_takes_is_still_rendered(values: str) -> None:
    if values.startswith("strategy"):
        assert helm("gpu-provisioner", values=values).returncode == 0
    done = helm("kaito", values=values)
    assert done.returncode == 0, done.stderr
