"""The quick start, as its reader types it."""

from __future__ import annotations

import json
import pty
import re
import subprocess
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.demo.local_cluster import ROOT, Cluster
from tests.eventually import PATIENCE, eventually

EXAMPLE = ROOT / "examples" / "inference" / "phi-3-mini.yaml"
NAME = "workspace-phi-3-mini"

pytestmark = pytest.mark.nodes


@pytest.fixture(scope="module")
def bought_before(cluster: Cluster) -> int:
    """Agent pools that the cloud created for other tests."""
    return len(cluster.pools_created())


@pytest.fixture(scope="module")
def served(cluster: Cluster, bought_before: int) -> str:
    assert cluster.pools() == []
    cluster.kubectl("apply", "-f", str(EXAMPLE))
    cluster.wait_ready(NAME)
    return NAME


def test_the_columns_of_kubectl_get_workspace_are_those_of_the_quick_start(cluster: Cluster, served: str) -> None:
    header, row = cluster.kubectl("get", "workspace", served).splitlines()
    assert header.split() == ["NAME", "INSTANCE", "RESOURCEREADY", "INFERENCEREADY", "WORKSPACEREADY", "AGE"]
    assert row.split()[:5] == [served, "Standard_NC6s_v3", "True", "True", "True"]


def test_one_gpu_node_was_bought_with_the_labels_and_taint_of_the_claim(
    cluster: Cluster, served: str, bought_before: int
) -> None:
    (pool,) = cluster.pools()
    assert re.fullmatch(r"ws[0-9a-f]{9}", pool["name"])
    assert pool["properties"]["vmSize"] == "Standard_NC6s_v3"
    assert len(cluster.pools_created()) == bought_before + 1
    (node,) = cluster.get("nodes", "-l", f"kaito.sh/workspace={served}")["items"]
    assert node["metadata"]["labels"]["apps"] == "phi-3"
    assert node["metadata"]["labels"]["accelerator"] == "nvidia"
    assert {"key": "sku", "value": "gpu", "effect": "NoSchedule"} in node["spec"]["taints"]
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "1"
    (claim,) = cluster.get("machines")["items"]
    assert claim["status"]["nodeName"] == node["metadata"]["name"]
    assert cluster.get("workspace", served)["status"]["workerNodes"] == [node["metadata"]["name"]]


def test_chat_answers_in_words_on_the_cluster_ip(cluster: Cluster, served: str) -> None:
    answer = cluster.chat(served, "What is Kubernetes?", do_sample=False)
    assert len(re.findall(r"[A-Za-z]{3,}", answer)) >= 4, answer


def test_chat_answers_from_a_throw_away_curl_pod(cluster: Cluster, served: str) -> None:
    """`kubectl run -it --rm` needs a terminal, so it gets one. It attaches late on a busy machine: some tries."""
    address = cluster.get("service", served)["spec"]["clusterIP"]
    body = json.dumps({"prompt": "What is Kubernetes?", "generate_kwargs": {"max_length": 40}})
    printed = []
    for _ in range(4):
        ours, theirs = pty.openpty()
        with (
            open(ours, "rb", buffering=0),
            open(theirs, "rb", buffering=0) as terminal,
            suppress(subprocess.TimeoutExpired),
        ):
            done = subprocess.run(
                [
                    *("kubectl", "run", "-it", "--rm", "--restart=Never", "curl", "--image=curlimages/curl", "--"),
                    *("curl", "-sS", "-X", "POST", f"http://{address}/chat", "-H", "accept: application/json"),
                    *("-H", "Content-Type: application/json", "-d", body),
                ],
                env=cluster.environment,
                stdin=terminal,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            printed.append(done.stdout)
            said = re.search(r'\{"Result":.*?"\}', done.stdout)
            if said:
                assert json.loads(said[0])["Result"].startswith("What is Kubernetes?")
                return
        cluster.kubectl("delete", "pod", "curl", "--ignore-not-found", "--now")
    raise AssertionError(printed)


def test_the_pods_run_without_privilege(cluster: Cluster, served: str) -> None:
    (pod,) = cluster.get("pods", "-l", f"kaito.sh/workspace={served}")["items"]
    assert pod["spec"]["automountServiceAccountToken"] is False
    for container in pod["spec"]["containers"] + pod["spec"]["initContainers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, container["name"]
        assert security["allowPrivilegeEscalation"] is False, container["name"]
        assert security["capabilities"] == {"drop": ["ALL"]}, container["name"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_our_share_from_node_ready_to_pod_created_is_printed(cluster: Cluster, served: str) -> None:
    """In between lies the GPU plugin's announcement, which kubelet passes on within a second."""
    (node,) = cluster.get("nodes", "-l", f"kaito.sh/workspace={served}")["items"]
    (pod,) = cluster.get("pods", "-l", f"kaito.sh/workspace={served}")["items"]
    ready = next(c for c in node["status"]["conditions"] if c["type"] == "Ready")["lastTransitionTime"]
    created = pod["metadata"]["creationTimestamp"]
    resource_ready = cluster.conditions(served)["ResourceReady"]["lastTransitionTime"]
    print(f"\nNode Ready {ready}, ResourceReady {resource_ready}, Pod created {created}")
    assert ready <= resource_ready <= created
    share = (datetime.fromisoformat(created) - datetime.fromisoformat(ready)).total_seconds()
    print(f"Node Ready to Pod created: {share:.0f} s")


def test_the_start_is_told_by_phases_that_add_up_to_the_age_at_ready(cluster: Cluster, served: str) -> None:
    workspace = cluster.get("workspace", served)
    start = workspace["status"]["startup"]
    print(f"\n{json.dumps(start)}\n{cluster.kubectl('get', 'workspace', served, '-o', 'wide')}")
    print(re.sub(r"(?s).*?\n(  Startup:.*?)\n  \S.*", r"\1", cluster.kubectl("describe", "workspace", served)))
    seconds = {phase["name"]: phase["seconds"] for phase in start["phases"]}
    assert list(seconds) == ["Bought", "NodeReady", "ImagePulled", "WeightsFetched", "ModelLoaded", "Answering"]
    created, ready = (
        datetime.fromisoformat(moment)
        for moment in (
            workspace["metadata"]["creationTimestamp"],
            cluster.conditions(served)["WorkspaceReady"]["lastTransitionTime"],
        )
    )
    assert sum(seconds.values()) == start["totalSeconds"]
    assert abs(start["totalSeconds"] - (ready - created).total_seconds()) <= 2
    # A node takes its time to come, and a model to load.
    assert min(seconds["NodeReady"], seconds["ModelLoaded"]) >= 1
    # Others of this name may have been here before.
    own = f"involvedObject.uid={workspace['metadata']['uid']}"

    def told() -> list[str]:
        messages = [e["message"] for e in cluster.get("events", "--field-selector", own)["items"]]
        return [m for m in messages if f"workspace is ready after {start['totalSeconds']} s: " in m]

    assert len(eventually(told, every=0.5)) == 1


def test_all_pods_run_where_pod_security_is_restricted_in_every_namespace(cluster: Cluster, served: str) -> None:
    """That it is, test_pod_security shows."""
    assert "pod-security.kubernetes.io/enforce" not in cluster.get("namespace", "default")["metadata"]["labels"]
    pods = cluster.pods_ready()
    for owner in ("kaito-workspace/kaito-", "gpu-provisioner/gpu-provisioner-", f"default/{served}-"):
        assert any(pod.startswith(owner) for pod in pods), owner


def test_a_second_apply_of_the_same_manifest_changes_nothing(cluster: Cluster, served: str) -> None:

    def written() -> dict[str, Any]:
        """All but what the controller writes into the status."""
        found = cluster.get("workspace", served)
        metadata = {k: v for k, v in found["metadata"].items() if k not in ("resourceVersion", "managedFields")}
        return {**found, "metadata": metadata, "status": None}

    before = written()
    assert "unchanged" in cluster.kubectl("apply", "-f", str(EXAMPLE))
    assert written() == before


def test_deleting_the_workspace_gives_node_and_pool_back(cluster: Cluster, served: str, bought_before: int) -> None:
    cluster.kubectl("delete", "workspace", served, "--timeout=120s")
    assert cluster.pools() == []
    assert cluster.get("machines")["items"] == []
    assert cluster.get("nodes", "-l", f"kaito.sh/workspace={served}")["items"] == []
    eventually(lambda: cluster.find("deployment", served) is None)
    assert len(cluster.pools_created()) == bought_before + 1


def test_the_manifest_is_the_one_of_the_readme(served: str) -> None:
    assert str(EXAMPLE.relative_to(ROOT)) in Path(ROOT / "README.md").read_text()
