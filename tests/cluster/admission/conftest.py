"""A control plane with both charts installed by helm, as a user installs them; there are no nodes, so nothing runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from tests.cluster.admission import rules_table
from tests.cluster.charts.helm import Helm
from tests.eventually import eventually

from kaito_hooks.runtime import Client, NotFound, Resource, TooManyRequests
from kaito_local.cluster.controlplane import ControlPlane

CHARTS = Path(__file__).parents[3] / "charts"
KINDS = (
    Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True),
    Resource("kaito.sh", "v1alpha1", "catalogs", "Catalog", False),
    Resource("karpenter.sh", "v1alpha5", "machines", "Machine", False),
    Resource("karpenter.sh", "v1", "nodeclaims", "NodeClaim", False),
)


@pytest.fixture(scope="session")
def plane(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own: policies and CRDs are the cluster's, and would bind the tests of other rooms."""
    with ControlPlane.start(tmp_path_factory.mktemp("admission"), programs=programs, scheduler=False) as started:
        yield started


@pytest.fixture(scope="session")
def helm(plane: ControlPlane, programs: Mapping[str, Path]) -> Helm:
    """Runs helm on that control plane and returns what it prints."""
    return Helm(plane, programs["helm"], timeout=120)


@pytest.fixture(scope="session")
def installed(plane: ControlPlane, helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    """The control plane with both charts; the Catalog also holds the table's own presets and instance types."""
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    values.write_text(yaml.safe_dump(dict(rules_table.catalog_values())))
    helm("install", "kaito", str(CHARTS / "kaito"), "-n", "kaito-workspace", "--create-namespace", "-f", str(values))
    helm("install", "gpu-provisioner", str(CHARTS / "gpu-provisioner"), "-n", "gpu-provisioner", "--create-namespace")
    return plane


@pytest.fixture(scope="session")
def admin(installed: ControlPlane) -> Client:
    """The product's own client, as administrator; the kinds of both charts are served."""
    client = Client.load(kubeconfig=str(installed.kubeconfig))
    for kind in KINDS:
        # For a moment after a CRD was created its storage is not ready.
        eventually(
            lambda kind=kind: client.list(kind) is not None,
            every=0.1,
            what=f"{kind} is not served",
            despite=(NotFound, TooManyRequests),
        )
    return client
