"""Pod security is `restricted` in every namespace of the local cluster, and with default values all Pods run there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from tests.demo.local_cluster import ROOT, TEMPLATE, Cluster
from tests.eventually import eventually

pytestmark = pytest.mark.nodes

CHART = str(ROOT / "charts" / "kaito")
RELEASE = ("kaito", "--namespace", "kaito-workspace")
PRIVILEGED = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "privileged"},
    "spec": {"containers": [{"name": "shell", "image": "curlimages/curl", "securityContext": {"privileged": True}}]},
}
# The cluster's administrator is exempt, as docs/security.md says; this user may do as much, and is not.
SOMEBODY = ("--as=somebody", "--as-group=system:masters")


@pytest.fixture
def with_device_plugin(cluster: Cluster) -> Iterator[None]:
    """The chart with its default for NVIDIA's device plugin, which the nodes of a local cluster bring themselves."""
    plugin = "nvidiaDevicePlugin.enabled=true"
    cluster.run("helm", "upgrade", RELEASE[0], CHART, *RELEASE[1:], "--reset-then-reuse-values", "--set", plugin)
    yield
    cluster.run("helm", "rollback", *RELEASE, "--wait")


def test_a_privileged_pod_is_refused_in_every_namespace(cluster: Cluster) -> None:
    namespaces = [item["metadata"]["name"] for item in cluster.get("namespaces")["items"]]
    assert {"default", "kube-system", "kaito-workspace", "gpu-provisioner"} <= set(namespaces)
    for namespace in namespaces:
        said = cluster.kubectl(
            *("create", "--dry-run=server", "-f", "-", "-n", namespace, *SOMEBODY),
            stdin=json.dumps(PRIVILEGED),
            check=False,
        )
        assert 'violates PodSecurity "restricted:latest": privileged' in said, namespace


def test_pods_that_nobody_made_by_hand_are_not_exempt(cluster: Cluster) -> None:
    """A Deployment of the exempt administrator gets no Pod that `restricted` refuses."""
    name = "by-the-administrator"
    cluster.kubectl("create", "deployment", name, "--image=curlimages/curl")
    try:
        failed = eventually(
            lambda: [
                condition["message"]
                for condition in cluster.get("deployment", name)["status"].get("conditions", ())
                if condition["type"] == "ReplicaFailure"
            ]
        )
        assert 'violates PodSecurity "restricted:latest"' in failed[0]
    finally:
        cluster.kubectl("delete", "deployment", name)


def test_with_default_values_all_pods_run_but_those_of_the_device_plugin_and_helm_says_so(
    cluster: Cluster, workspace: Callable[..., str], with_device_plugin: None
) -> None:
    name = workspace(TEMPLATE % {"name": "strict"})
    cluster.wait_ready(name)
    plugin = "kaito-nvidia-device-plugin"

    def refused() -> bool:
        status = cluster.get("daemonset", plugin, "-n", "kaito-workspace")["status"]
        return (status["desiredNumberScheduled"], status["currentNumberScheduled"]) == (1, 0)

    def told() -> bool:
        events = cluster.get("events", "-n", "kaito-workspace", "--field-selector", f"involvedObject.name={plugin}")
        return any('violates PodSecurity "restricted:latest"' in event["message"] for event in events["items"])

    eventually(refused)
    eventually(told)
    said = cluster.run("helm", "test", *RELEASE, "--logs", check=False)
    assert f"DaemonSet kaito-workspace/{plugin}: 0 of 1 Pods could be created" in said
    pods = cluster.pods_ready()
    owners = ["kaito-workspace/kaito", "gpu-provisioner/gpu-provisioner", "kube-system/coredns", f"default/{name}"]
    assert [owner for owner in owners if not any(pod.startswith(f"{owner}-") for pod in pods)] == []
    assert [pod for pod in pods if plugin in pod] == []
