"""Where Pod security is `restricted` all Pods of both charts are admitted, but NVIDIA's device plugin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.cluster.admission.conftest import CHARTS
from tests.cluster.charts.helm import Helm
from tests.eventually import eventually

from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.errors import CommandError

NAMESPACE = "restricted"
EVERYTHING = {
    "kaito": ("--set=replicaCount=2",),
    "gpu-provisioner": ("--set=azure.caBundle=-----BEGIN CERTIFICATE-----",),
}
Pod = dict[str, Any]


@pytest.fixture(scope="module")
def restricted(plane: ControlPlane) -> ControlPlane:
    plane.kubectl("create", "namespace", NAMESPACE)
    plane.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    eventually(
        lambda: plane.kubectl("get", "serviceaccount", "default", "-n", NAMESPACE), every=0.1, despite=CommandError
    )
    return plane


def pods(rendered: str) -> Iterator[tuple[str, Pod]]:
    """The Pods that controllers would make of what helm renders, by the kind and name of their owner."""
    for document in yaml.safe_load_all(rendered):
        template = ((document or {}).get("spec") or {}).get("template")
        if template:
            # The accounts are not here.
            spec = template["spec"] | {"serviceAccountName": "default"}
            name = document["metadata"]["name"]
            yield (
                f"{document['kind']}/{name}",
                {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec},
            )


def admit(plane: ControlPlane, pod: Pod) -> str:
    """ "" or why the API server refuses the Pod."""
    try:
        plane.kubectl("create", "--dry-run=server", "-n", NAMESPACE, "-f", "-", input=yaml.safe_dump(pod))
    except CommandError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("chart", "owners"),
    [
        (
            "kaito",
            {
                *("Deployment/kaito", "Job/kaito-upgrade-crds", "Job/kaito-guard-uninstall", "Job/kaito-preflight"),
                "DaemonSet/kaito-nvidia-device-plugin",
            },
        ),
        (
            "gpu-provisioner",
            {
                "Deployment/gpu-provisioner",
                "Job/gpu-provisioner-upgrade-crds",
                "Job/gpu-provisioner-guard-uninstall",
            },
        ),
    ],
)
def test_only_the_device_plugin_is_refused(restricted: ControlPlane, helm: Helm, chart: str, owners: set[str]) -> None:
    found = dict(pods(helm("template", chart, str(CHARTS / chart), *EVERYTHING[chart])))
    assert owners <= found.keys()
    refused = {owner: why for owner, pod in found.items() if (why := admit(restricted, pod))}
    assert set(refused) == {owner for owner in owners if owner.startswith("DaemonSet")}
    for why in refused.values():
        assert "restricted volume types" in why
        assert "hostPath" in why


def test_the_device_plugin_can_run_where_pod_security_lets_it(restricted: ControlPlane, helm: Helm) -> None:
    rendered = helm("template", "kaito", str(CHARTS / "kaito"), "--set=nvidiaDevicePlugin.namespace=kube-system")
    [plugin] = [obj for obj in yaml.safe_load_all(rendered) if obj and obj["kind"] == "DaemonSet"]
    restricted.kubectl("create", "--dry-run=server", "-f", "-", input=yaml.safe_dump(plugin))
    assert plugin["metadata"]["namespace"] == "kube-system"
    rendered = helm("template", "kaito", str(CHARTS / "kaito"), "--set=nvidiaDevicePlugin.enabled=false")
    assert not [why for _, pod in pods(rendered) if (why := admit(restricted, pod))]
