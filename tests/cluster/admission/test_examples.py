"""Every manifest that we or the quick start print is admitted, as a user applies it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaito_local.cluster.controlplane import ControlPlane

EXAMPLES = Path(__file__).parents[3] / "examples"

QUICK_START_INFERENCE = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata:
  name: workspace-phi-3-mini
resource:
  instanceType: "Standard_NC6s_v3"
  labelSelector:
    matchLabels:
      apps: phi-3
inference:
  preset:
    name: phi-3-mini-4k-instruct
"""
QUICK_START_ADAPTERS = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata:
  name: workspace-phi-3-mini-adapter
resource:
  instanceType: "Standard_NC6s_v3"
  labelSelector:
    matchLabels:
      apps: phi-3-adapter
inference:
  preset:
    name: phi-3-mini-128k-instruct
  adapters:
    - source:
        name: "phi-3-adapter"
        image: "myregistry.azurecr.io/adapter:0.0.1"
      strength: "1.0"
"""
QUICK_START_TUNING = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata:
  name: workspace-tuning-phi-3
resource:
  instanceType: "Standard_NC6s_v3"
  labelSelector:
    matchLabels:
      app: tuning-phi-3
tuning:
  preset:
    name: phi-3-mini-128k-instruct
  method: qlora
  input:
    urls:
      - "https://example.com/data/train-00000-of-00001.parquet?download=true"
  output:
    image: "myregistry.azurecr.io/adapter:0.0.1"
    imagePushSecret: acr-push-secret
"""


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES).with_suffix(""))
)
def test_an_example_is_admitted(installed: ControlPlane, path: Path) -> None:
    assert "created (server dry run)" in installed.kubectl("apply", "--dry-run=server", "-f", str(path))


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(QUICK_START_INFERENCE, id="inference"),
        pytest.param(QUICK_START_ADAPTERS, id="inference with an adapter"),
        pytest.param(QUICK_START_TUNING, id="tuning"),
    ],
)
def test_a_quick_start_is_admitted(installed: ControlPlane, manifest: str) -> None:
    assert "created (server dry run)" in installed.kubectl("apply", "--dry-run=server", "-f", "-", input=manifest)
