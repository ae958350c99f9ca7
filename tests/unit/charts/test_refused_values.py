"""A values file that cannot work ends helm with one sentence that names the place."""

from __future__ import annotations

import pytest
from tests.helm_versions import PROGRAMS
from tests.unit.charts.test_rendered_objects import helm

AKS = "clusterName: aks, subscriptionId: '0000', resourceGroup: group"


@pytest.mark.parametrize("version", PROGRAMS)
@pytest.mark.parametrize(
    ("chart", "values", "said"),
    [
        pytest.param(
            "kaito",
            "serving: {varient: cpu}",
            "at '/serving': additional properties 'varient' not allowed",
            id="a typo",
        ),
        pytest.param(
            "kaito",
            "presets: {phi-2: {gpuCount: -1}}",
            "at '/presets/phi-2/gpuCount': minimum: got -1, want 1",
            id="a preset with a negative GPU count",
        ),
        pytest.param(
            "kaito",
            "instanceTypes: {Box: {gpuCount: 8}}",
            "instanceTypes.Box has no totalGPUMemoryGiB, and is none of ours that could be changed: say how much",
            id="an instance type without memory",
        ),
        pytest.param(
            "kaito", "cloudProviderName: ", "at '': missing property 'cloudProviderName'", id="an empty cloud"
        ),
        pytest.param("kaito", "nodeAPI: ''", "at '/nodeAPI': value must be one of 'Machine', ", id="an empty node API"),
        pytest.param(
            "kaito",
            "presetRegistryName: ''",
            "presetRegistryName is empty: name the registry",
            id="an empty registry of models",
        ),
        pytest.param(
            "kaito",
            "image: {registry: ''}",
            "image.registry is empty: name the registry that holds the images; if it came from a variable of the shell",
            id="an empty registry of images",
        ),
        *(
            pytest.param(
                chart,
                "image: {tag: '${TAG}'}",
                "at '/image/tag': '${TAG}' does not match pattern",
                id=f"a tag of {chart}",
            )
            for chart in ("kaito", "gpu-provisioner")
        ),
        pytest.param(
            "kaito",
            "instanceTypes: {Box: {gpuCount: 8, totalGPUMemoryGiB: 0}}",
            "at '/instanceTypes/Box/totalGPUMemoryGiB': minimum: got 0, want 1",
            id="an instance type with no memory at all",
        ),
        pytest.param(
            "gpu-provisioner",
            f"settings: {{azure: {{{AKS}, location: eastus}}}}\nworkloadIdentity: {{clientId: '', tenantId: tenant}}",
            "no value is given for workloadIdentity.clientId (AZURE_CLIENT_ID); if it came from a variable of the",
            id="an empty client id",
        ),
        pytest.param(
            "gpu-provisioner",
            f"settings: {{azure: {{{AKS}, location: ''}}}}\nworkloadIdentity: {{clientId: client, tenantId: tenant}}",
            "no value is given for settings.azure.location (LOCATION); if it came from a variable of the shell",
            id="an empty location",
        ),
        pytest.param(
            "gpu-provisioner",
            "workloadIdentity: {clientId: '${CLIENT_ID}'}",
            'workloadIdentity.clientId is "${CLIENT_ID}": the variable was not replaced by its value',
            id="a file that envsubst never saw",
        ),
        pytest.param(
            "gpu-provisioner", "provisionr: {}", "at '': additional properties 'provisionr' not allowed", id="a section"
        ),
    ],
)
def test_helm_says_where_a_values_file_is_wrong(version: str, chart: str, values: str, said: str) -> None:
    done = helm(chart, values=values, version=version)
    assert done.returncode != 0
    assert said in done.stderr
    assert "nil pointer" not in done.stderr
