"""What a user gets wrong is refused at apply, or explained in the Workspace, and nothing is bought."""

from __future__ import annotations

import pytest
from tests.demo.local_cluster import Cluster

pytestmark = pytest.mark.nodes

RESOURCE = "resource: {instanceType: %s, labelSelector: {matchLabels: {apps: phi-3}}}"
INFERENCE = "inference: {preset: {name: %s}}"
TUNING = (
    "tuning: {preset: {name: phi-3-mini-4k-instruct}, method: qlora, input: {urls: [http://x/y]},"
    " output: {image: 'r/a:b', imagePushSecret: s}}"
)


def manifest(*sections: str, name: str = "refused") -> str:
    return "\n".join(["apiVersion: kaito.sh/v1alpha1", "kind: Workspace", f"metadata: {{name: {name}}}", *sections])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            manifest(RESOURCE % "Standard_NC6s_v3", "inference: {presett: {name: phi-3-mini-4k-instruct}}"),
            'unknown field "inference.presett"',
            id="a misspelt field",
        ),
        pytest.param(
            manifest(RESOURCE % "Standard_NC6s_v3", INFERENCE % "phi-9-mega"),
            "Unsupported inference preset name phi-9-mega",
            id="an unknown preset",
        ),
        pytest.param(
            manifest(RESOURCE % "Standard_NC6s_v3", INFERENCE % "falcon-40b"),
            "Insufficient number of GPUs: Instance type Standard_NC6s_v3 provides 1, "
            "but preset falcon-40b requires at least 2",
            id="an instance type with too few GPUs",
        ),
        pytest.param(
            manifest(RESOURCE % "Standard_NV6", INFERENCE % "phi-2"),
            "Insufficient total GPU memory: Instance type Standard_NV6 has a total of 8Gi, "
            "but preset phi-2 requires at least 12Gi",
            id="an instance type with too little GPU memory",
        ),
        pytest.param(
            manifest(RESOURCE % "Mega_42", INFERENCE % "phi-2"),
            "Unsupported instance type Mega_42. Supported SKUs: ",
            id="an unknown instance type",
        ),
        pytest.param(
            manifest(RESOURCE % "Standard_NC6s_v3"),
            "Either Inference or Tuning must be specified, not neither",
            id="neither inference nor tuning",
        ),
        pytest.param(
            manifest(RESOURCE % "Standard_NC6s_v3", INFERENCE % "phi-2", TUNING),
            "Either Inference or Tuning must be specified, but not both",
            id="both inference and tuning",
        ),
    ],
)
def test_a_bad_workspace_is_refused_at_apply_with_a_sentence(cluster: Cluster, text: str, said: str) -> None:
    before = len(cluster.pools_created())
    answer = cluster.kubectl("apply", "-f", "-", stdin=text, check=False)
    assert said in answer
    assert cluster.find("workspace", "refused") is None
    assert len(cluster.pools_created()) == before


def test_a_correction_of_the_manifest_is_accepted(cluster: Cluster) -> None:
    text = manifest(RESOURCE % "Standard_NC6s_v3", INFERENCE % "phi-3-mini-4k-instruct", name="corrected")
    assert "corrected" in cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text)
